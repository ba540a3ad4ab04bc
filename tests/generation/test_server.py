"""Rollouts from a real server with vLLM's protocol on this machine: the same policy, and every way to go wrong."""

import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from generation.serving import BASE, SglangLike, VllmLike, error
from helpers import load_policy, random_batch

from alignrun.algorithms.common.rollout import sample_streams, step_generator
from alignrun.config.training import Engine, GenerationConfig, ServerKind
from alignrun.errors import InputError, RunError
from alignrun.generation.decode import Sampling
from alignrun.generation.server.dialect import SGLANG
from alignrun.generation.server.rollout_server import RolloutServer
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.models.sources import load_model, load_tokenizer
from alignrun.types import Completions, PromptBatch, Role

KEY = "sk-secret-0123456789"
Serve = Callable[..., VllmLike]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[VllmLike] = []

    def start(*overrides: str, kind: type[VllmLike] = VllmLike, **options: Any) -> VllmLike:
        config = compose(list(overrides) or ["experiment=smoke"])
        torch.manual_seed(config.seed)  # the base of `load_policy`
        model = load_model(config.model, load_tokenizer(config.model), torch.float32)
        servers.append(kind(model, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy and no key of the machine's."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("ALIGNRUN_ROLLOUT_API_KEY", raising=False)


@pytest.fixture
def adapter(policy: Policy, tmp_path: Path) -> Path:
    policy.save_adapter(tmp_path / "adapter")
    return tmp_path / "adapter"


def connect(server: VllmLike, **changes: Any) -> RolloutServer:
    return RolloutServer(**{"url": server.url, "timeout": 20.0, "retries": 2, "backoff": 0.01, **changes})


def loaded(server: VllmLike, adapter: Path, **changes: Any) -> RolloutServer:
    rollouts = connect(server, **changes)
    rollouts.load_adapter(adapter, 0)
    return rollouts


def sampling(**changes: Any) -> Sampling:
    return Sampling(**{"max_new_tokens": 8, "stop_ids": [258], "pad_id": 257, **changes})


def equal(ours: Completions, theirs: Completions) -> bool:
    return torch.equal(ours.tokens, theirs.tokens) and torch.equal(ours.mask, theirs.mask)


def native(policy: Policy, prompts: PromptBatch, rules: Sampling) -> Completions:
    return sample_streams(policy, prompts, [Role.policy], rules, step_generator(policy.device, 0, 0))[0]


def refused(call: Callable[[], Any], kind: type[Exception] = RunError) -> str:
    """The one line in which it gives up."""
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return str(caught.value)


# The same policy


def test_its_most_likely_tokens_are_those_of_the_native_engine(serve: Serve, policy: Policy, adapter: Path) -> None:
    prompts, _ = random_batch(policy, prompts=6)
    assert prompts.attention_mask.sum(1).unique().numel() == 3, "the prompts are padded unequally"
    rules = sampling(top_k=1, max_new_tokens=12, stop_ids=[*range(100)])
    server = serve()
    streams = loaded(server, adapter).sample(prompts, 2, rules, seed=3)
    expected = native(policy, prompts, rules)
    assert expected.mask.sum(1).unique().numel() > 1, "some completions end before others"
    assert len(streams) == 2
    for stream in streams:
        assert equal(stream, expected)
        assert (stream.tokens.dtype, stream.mask.dtype) == (torch.long, torch.bool)
    sent = server.bodies("/v1/completions")
    real = [ids[mask.bool()].tolist() for ids, mask in zip(prompts.input_ids, prompts.attention_mask, strict=True)]
    assert sorted(body["prompt"] for body in sent) == sorted(real)
    assert all(body["stop_token_ids"] == rules.stop_ids for body in sent), "no completion goes on past its end"


def test_the_adapter_makes_the_difference_and_another_replaces_it(
    serve: Serve, policy: Policy, adapter: Path, tmp_path: Path
) -> None:
    prompts, _ = random_batch(policy, prompts=4)
    rules = sampling(top_k=1)
    server = serve()
    rollouts = loaded(server, adapter)
    before = rollouts.sample(prompts, 1, rules, seed=0)[0]
    other, _ = load_policy()
    with torch.no_grad():
        for weight in other.trainable().values():
            weight.neg_().mul_(1.5).add_(0.05)
    other.save_adapter(tmp_path / "next")
    rollouts.load_adapter(tmp_path / "next", 1)
    after = rollouts.sample(prompts, 1, rules, seed=0)[0]
    assert equal(before, native(policy, prompts, rules))
    assert equal(after, native(other, prompts, rules))
    assert not torch.equal(before.tokens[:, :1], after.tokens[:, :1])
    assert list(server.loras.values()) == [str(tmp_path / "next")], "the one before is gone"
    rollouts.close()
    assert server.loras == {}


def test_a_relative_folder_is_named_in_full(
    serve: Serve, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    policy.save_adapter(Path("here"))
    server = serve()
    loaded(server, Path("here"))
    assert list(server.loras.values()) == [str(tmp_path / "here")]


def test_the_adapter_in_use_is_not_loaded_again(serve: Serve, adapter: Path) -> None:
    server = serve()
    rollouts = loaded(server, adapter)
    rollouts.load_adapter(adapter, 0)
    assert len(server.bodies("/v1/load_lora_adapter")) == 1
    assert server.bodies("/v1/unload_lora_adapter") == []


def test_a_run_that_continues_gets_nothing_of_what_was_cached_before(
    serve: Serve, policy: Policy, adapter: Path, tmp_path: Path
) -> None:
    """Two processes of one run load different weights under one version; the server caches by name."""
    prompts, _ = random_batch(policy, prompts=4)
    rules = sampling(top_k=1)
    server = serve()
    first = loaded(server, adapter)
    first.sample(prompts, 1, rules, seed=0)
    first.close()
    other, _ = load_policy("seed=9")
    other.model.load_state_dict({**policy.model.state_dict(), **{k: v + 0.3 for k, v in other.trainable().items()}})
    other.save_adapter(tmp_path / "other")
    again = loaded(server, tmp_path / "other").sample(prompts, 1, rules, seed=0)[0]
    assert equal(again, native(other, prompts, rules))


def outcomes(policy: Policy, prompt: list[int], length: int, stop: int) -> dict[tuple[int, ...], float]:
    """The probability of every completion of up to `length` tokens."""
    vocabulary = len(policy.tokenizer)
    found: dict[tuple[int, ...], float] = {}
    begun = {(): 1.0}
    for position in range(length):
        longer: dict[tuple[int, ...], float] = {}
        for text, share in begun.items():
            ids = torch.tensor([[*prompt, *text]])
            logits = policy.decoder(PromptBatch(("",), ids, torch.ones_like(ids)), [Role.policy], 1).prefill()[0]
            probabilities = logits.double().softmax(-1).tolist()
            for token in range(vocabulary):
                ends = token == stop or position + 1 == length
                (found if ends else longer)[*text, token] = share * probabilities[token]
        begun = longer
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_frequencies_are_the_exact_probabilities(serve: Serve, tmp_path: Path, temperature: float) -> None:
    """Every completion of up to two tokens of a vocabulary of six, drawn 6000 times. The base's generation config
    asks for other things, as many bases on the hub do."""
    config = compose(["experiment=game"])
    tokenizer = load_tokenizer(config.model)
    policy = Policy.load(config.model, config.adapter, config.reference, tokenizer, config.seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
        policy.model.lm_head.weight /= temperature  # to tempered outcomes, for `outcomes` alone
    prompt = tokenizer.encode("play")
    stop = int(tokenizer.eos_token_id)
    exact = outcomes(policy, prompt, 2, stop)
    policy.save_adapter(tmp_path / "adapter")
    server = serve("experiment=game", defaults={"top_p": 0.6, "top_k": 2, "repetition_penalty": 1.5})
    ids = torch.tensor([prompt] * 4)
    batch = PromptBatch(("play",) * 4, ids, torch.ones_like(ids))
    rules = Sampling(max_new_tokens=2, stop_ids=[stop], pad_id=0, temperature=temperature)
    streams = loaded(server, tmp_path / "adapter").sample(batch, 1500, rules, seed=11)
    rows = [
        tuple(tokens[mask].tolist())
        for stream in streams
        for tokens, mask in zip(stream.tokens, stream.mask, strict=True)
    ]
    assert len(rows) == 6000
    likely = {text: share for text, share in exact.items() if share * len(rows) >= 8}
    assert len(likely) > 6
    assert any(text[-1] == stop for text in likely)
    observed = [rows.count(text) for text in likely]
    expected = [share * len(rows) for share in likely.values()]
    rest = len(rows) - sum(observed), len(rows) - sum(expected)
    if rest[1] > 1:
        observed, expected = [*observed, rest[0]], [*expected, rest[1]]
    else:
        assert rest[0] < 10
        expected = [value * sum(observed) / sum(expected) for value in expected]
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("truncation", [{"top_k": 3}, {"top_p": 0.5}])
def test_truncation_is_asked_for(serve: Serve, policy: Policy, adapter: Path, truncation: dict[str, Any]) -> None:
    prompts, _ = random_batch(policy, prompts=1)
    log_probs = policy.decoder(prompts, [Role.policy], 1).prefill()[0].log_softmax(-1)
    ranked, order = log_probs.exp().sort(descending=True)
    kept = 3 if "top_k" in truncation else int((ranked.cumsum(0) < 0.5).sum()) + 1
    streams = loaded(serve(), adapter).sample(prompts, 60, sampling(max_new_tokens=1, **truncation), seed=0)
    assert {int(stream.tokens[0, 0]) for stream in streams} == set(order[:kept].tolist())


def test_the_seed_determines_the_draws_and_no_two_share_theirs(serve: Serve, policy: Policy, adapter: Path) -> None:
    one, _ = random_batch(policy, prompts=1)
    prompts = PromptBatch(one.texts * 5, one.input_ids.repeat(5, 1), one.attention_mask.repeat(5, 1))
    server = serve()
    rollouts = loaded(server, adapter)

    def tokens(seed: int) -> torch.Tensor:
        return torch.stack([stream.tokens for stream in rollouts.sample(prompts, 4, sampling(), seed)])

    first = tokens(1)
    assert torch.equal(first, tokens(1))
    assert not torch.equal(first, tokens(2))
    assert len({tuple(row) for row in first.flatten(0, 1).tolist()}) == 20, "equal prompts are drawn independently"
    # A server gives the streams of a prompt the seeds that follow its own: none may be another prompt's.
    seeds = sorted({body["seed"] for body in server.bodies("/v1/completions")})
    assert len(seeds) == 10
    assert min(after - before for before, after in itertools.pairwise(seeds)) >= 4


def test_prompts_are_sent_side_by_side_up_to_the_limit_and_come_back_in_order(
    serve: Serve, policy: Policy, adapter: Path
) -> None:
    prompts, _ = random_batch(policy, prompts=12)
    rules = sampling(top_k=1)
    server = serve()
    rollouts = loaded(server, adapter, parallel=4)
    delays = itertools.cycle([0.09, 0.01, 0.05])

    def late(path: str, body: Any) -> None:
        time.sleep(next(delays))

    server.interfere, server.peak = late, 0
    assert equal(rollouts.sample(prompts, 1, rules, seed=0)[0], native(policy, prompts, rules))
    assert 2 <= server.peak <= 4


def test_streams_are_distinguished_by_their_number(serve: Serve, policy: Policy, adapter: Path) -> None:
    prompts, _ = random_batch(policy)
    server = serve()
    rollouts = loaded(server, adapter)
    expected = rollouts.sample(prompts, 3, sampling(), seed=0)
    server.alter = lambda answer: answer | {"choices": answer["choices"][::-1]}
    assert all(map(equal, rollouts.sample(prompts, 3, sampling(), seed=0), expected))


def test_log_probabilities_are_those_of_the_policy_at_the_temperature(
    serve: Serve, policy: Policy, adapter: Path
) -> None:
    prompts, _ = random_batch(policy)
    rules = sampling(temperature=0.7, stop_ids=[*range(60)])
    (drawn,) = loaded(serve(), adapter).sample(prompts, 1, rules, seed=1)
    assert drawn.mask.sum(1).unique().numel() > 1
    log_probs = policy.log_probs(Role.policy, prompts, drawn, 0.7)
    assert drawn.drawn_with is not None
    torch.testing.assert_close(drawn.drawn_with, log_probs, atol=1e-4, rtol=1e-4)


# SGLang


def test_sglang_is_recognised_and_asked_in_its_own_way(
    serve: Serve, policy: Policy, adapter: Path, tmp_path: Path
) -> None:
    prompts, _ = random_batch(policy, prompts=4)
    server = serve(kind=SglangLike)
    rollouts = loaded(server, adapter)
    assert rollouts.dialect is SGLANG
    greedy = sampling(top_k=1, max_new_tokens=12, stop_ids=[*range(100)])
    expected = native(policy, prompts, greedy)
    assert expected.mask.sum(1).unique().numel() > 1
    for stream in rollouts.sample(prompts, 2, greedy, seed=3):
        assert equal(stream, expected)
    one, other = rollouts.sample(prompts, 2, sampling(), seed=3)
    assert not torch.equal(one.tokens, other.tokens), "samples of a prompt differ"
    sent = server.bodies("/v1/completions")
    assert {body["model"] for body in sent} == {f"{BASE}:{list(server.loras)[-1]}"}
    assert {body["n"] for body in sent} == {1}
    assert server.bodies("/v1/load_lora_adapter") == []
    rollouts.load_adapter(adapter, 1)
    assert len(server.loras) == 1, "the one before is gone"
    base = rollouts.sample(prompts, 1, greedy, seed=3, slot=None)[0]
    assert server.bodies("/v1/completions")[-1]["model"] == BASE
    streams = sample_streams(policy, prompts, [Role.reference], greedy, step_generator(policy.device, 0, 0))
    assert equal(base, streams[0])
    rollouts.close()
    assert server.loras == {}


def test_what_sglang_refuses_is_reported(serve: Serve, policy: Policy, adapter: Path, prompts: PromptBatch) -> None:
    server = serve(kind=SglangLike)
    rollouts = connect(server)
    message = refused(lambda: rollouts.load_adapter(adapter / "none", 0))
    assert "/load_lora_adapter answered 400" in message
    assert "set generation.server_adapter_folder" in message
    server.max_lora_rank = 2
    assert "is greater than max_lora_rank 2.: start SGLang with" in refused(lambda: rollouts.load_adapter(adapter, 0))
    assert "answered 404" in refused(lambda: loaded(server, adapter, kind=ServerKind.vllm))
    server.max_lora_rank = 512
    rollouts.load_adapter(adapter, 0)
    server.model.generation_config.eos_token_id = int(native(policy, prompts, sampling(top_k=1)).tokens[0, 1])
    message = refused(lambda: rollouts.sample(prompts, 1, sampling(top_k=1), seed=0))
    assert "which is not an end token of the policy" in message


# Ends


def ends_in(stops: list[int]) -> dict[str, Any]:
    return {"stop_ids": stops, "top_k": 1, "max_new_tokens": 6}


@pytest.fixture
def prompts(policy: Policy) -> PromptBatch:
    return random_batch(policy, prompts=4)[0]


@pytest.fixture
def endless(policy: Policy, prompts: PromptBatch) -> list[list[int]]:
    """The most likely continuation of each prompt, six tokens long."""
    return native(policy, prompts, sampling(**ends_in([258]))).tokens.tolist()


def without_end(answer: dict[str, Any]) -> dict[str, Any]:
    """As servers answer that leave the end token out."""
    for choice in answer["choices"]:
        if choice["finish_reason"] == "stop":
            choice["token_ids"].pop()
    return answer


def without_reason(answer: dict[str, Any]) -> dict[str, Any]:
    for choice in without_end(answer)["choices"]:
        choice["stop_reason"] = None
    return answer


@pytest.mark.parametrize("alter", [None, without_end, without_reason])
def test_a_completion_has_its_end_token_and_a_cut_one_has_none(
    serve: Serve, policy: Policy, adapter: Path, prompts: PromptBatch, endless: list[list[int]], alter: Any
) -> None:
    stop = next(token for token in endless[0][1:4] if sum(token in row for row in endless) < 4)
    rules = sampling(**ends_in([stop]))
    server = serve()
    server.alter = alter or server.alter
    (result,) = loaded(server, adapter).sample(prompts, 1, rules, seed=0)
    assert equal(result, native(policy, prompts, rules))
    lengths = result.mask.sum(1).tolist()
    assert min(lengths) < max(lengths) == 6
    for row, length in enumerate(lengths):
        assert (stop in result.tokens[row, :length].tolist()) == (stop in endless[row])
        assert (result.tokens[row, length:] == 257).all()


def test_an_end_at_the_last_place_is_an_end(
    serve: Serve, policy: Policy, adapter: Path, prompts: PromptBatch, endless: list[list[int]]
) -> None:
    """vLLM gave `length` as the reason there, once."""
    stop = next(token for token in endless[0] if endless[0].index(token) == 2)
    server = serve()
    for old in (False, True):
        server.end_of_length_first = old
        rules = sampling(**ends_in([stop]) | {"max_new_tokens": 3})
        (result,) = loaded(server, adapter).sample(prompts, 1, rules, seed=0)
        assert equal(result, native(policy, prompts, rules))
        assert result.tokens[0].tolist() == endless[0][:3]


def test_the_policys_ends_count_and_not_the_servers(
    serve: Serve, policy: Policy, adapter: Path, prompts: PromptBatch, endless: list[list[int]]
) -> None:
    server = serve()
    server.model.generation_config.eos_token_id = endless[0][1]
    rules = sampling(**ends_in([endless[0][4], 258]))
    (result,) = loaded(server, adapter).sample(prompts, 1, rules, seed=0)
    assert equal(result, native(policy, prompts, rules))
    assert result.mask[0].sum() == endless[0].index(endless[0][4]) + 1 > 2


def test_what_follows_an_end_is_no_part_of_it(
    serve: Serve, policy: Policy, adapter: Path, prompts: PromptBatch, endless: list[list[int]]
) -> None:
    rules = sampling(**ends_in([endless[0][2]]))

    def went_on(path: str, body: Any) -> None:
        if body is not None:
            body.pop("stop_token_ids", None)

    server = serve()
    server.interfere = went_on
    (result,) = loaded(server, adapter).sample(prompts, 1, rules, seed=0)
    assert equal(result, native(policy, prompts, rules))


# What goes wrong


def altered(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    def alter(answer: dict[str, Any]) -> dict[str, Any]:
        for choice in answer["choices"]:
            choice.update(changes)
        return answer

    return alter


@pytest.mark.parametrize(
    ("alter", "expected"),
    [
        (altered(token_ids=None), "returned no token ids: use vLLM 0.10.2 or newer, which supports return_token_ids"),
        (altered(token_ids=["1", "2"]), "returned no token ids"),
        (altered(token_ids=[True]), "returned no token ids"),
        (altered(token_ids=[-1]), "returned no token ids"),
        (altered(token_ids=[1 << 70]), "returned no token ids"),
        (altered(token_ids=[5] * 9), "continued past 8 tokens"),
        (
            altered(token_ids=[5], finish_reason="length"),
            "cut a completion at 1 of 8 tokens: start it with a --max-mod",
        ),
        (altered(token_ids=[5], finish_reason="stop", stop_reason="\nUser:"), "ended a completion at '\\nUser:'"),
        (
            altered(token_ids=[5], finish_reason="stop", stop_reason=77),
            "at '77', which is not an end token of the policy",
        ),
        (altered(token_ids=[5], finish_reason="abort"), "aborted a completion (finish_reason='abort')"),
        (altered(token_ids=[5], finish_reason=None), "aborted a completion (finish_reason='None')"),
        (altered(logprobs=None), "returned no log-probability for each of"),
        (altered(logprobs={"token_logprobs": [-1.0]}), "returned no log-probability for each of"),
        (altered(logprobs={"token_logprobs": [None] * 8}), "returned no log-probability for each of"),
        (altered(logprobs={"token_logprobs": [0.5] * 8}), "returned no log-probability for each of"),
        (altered(logprobs={"token_logprobs": [float("nan")] * 8}), "returned no log-probability for each of"),
        (altered(prompt_token_ids=[1, 2, 3]), "changed the prompt that it was sent"),
        (altered(index=0), "did not return 2 completions"),
        (lambda answer: {"choices": answer["choices"][:1]}, "did not return 2 completions"),
        (lambda answer: {"choices": [None, 3]}, "did not return 2 completions"),
        (lambda answer: {"choices": None}, "did not return 2 completions"),
        (lambda answer: [answer], "did not return 2 completions"),
        (lambda answer: b"not JSON", "did not return 2 completions"),
        (lambda answer: b"[" * 100_000, "did not return 2 completions"),
    ],
)
def test_an_invalid_answer_gives_a_one_line_error(
    serve: Serve, policy: Policy, adapter: Path, alter: Any, expected: str
) -> None:
    server = serve()
    rollouts = loaded(server, adapter)
    server.alter = alter
    message = refused(lambda: rollouts.sample(random_batch(policy)[0], 2, sampling(), seed=0))
    assert expected in message
    assert f"{server.url}/v1/completions" in message


def test_a_completion_cut_by_the_context_is_reported(serve: Serve, policy: Policy, adapter: Path) -> None:
    prompts, _ = random_batch(policy)
    server = serve()
    rollouts = loaded(server, adapter)
    server.max_model_len = 8
    assert "--max-model-len" in refused(lambda: rollouts.sample(prompts, 1, sampling(), seed=0))
    server.max_model_len = 3
    message = refused(lambda: rollouts.sample(prompts, 1, sampling(), seed=0))
    assert "answered 400: This model's maximum context length is 3 tokens.: check" in message


def test_a_missing_server_is_reported() -> None:
    message = refused(lambda: RolloutServer("http://127.0.0.1:9", 5.0, 1, backoff=0.01))
    assert "http://127.0.0.1:9/v1/models failed 2 times (" in message
    assert "start the server, check generation.server_url" in message


def test_a_slow_server_is_reported(serve: Serve, policy: Policy, adapter: Path) -> None:
    server = serve()
    rollouts = loaded(server, adapter, timeout=0.3, retries=1)
    server.interfere = lambda path, body: time.sleep(2)
    message = refused(lambda: rollouts.sample(random_batch(policy)[0], 1, sampling(), seed=0))
    assert "failed 2 times (no answer within 0.3 seconds)" in message


def test_waiting_for_a_place_is_no_delay_of_the_servers(serve: Serve, policy: Policy, adapter: Path) -> None:
    server = serve()
    rollouts = loaded(server, adapter, timeout=1.0, retries=0, parallel=1)
    server.interfere = lambda path, body: time.sleep(0.2)
    assert len(rollouts.sample(random_batch(policy, prompts=9)[0], 1, sampling(), seed=0)) == 1


def fails_first(times: int, reply: tuple[int, Any]) -> Callable[[str, Any], Any]:
    counts: dict[str, int] = {}
    lock = threading.Lock()

    def interfere(path: str, body: Any) -> Any:
        with lock:
            place = json.dumps([path, body])
            counts[place] = counts.get(place, 0) + 1
            return reply if counts[place] <= times else None

    return interfere


@pytest.mark.parametrize("reply", [*(error(status, "busy") for status in (503, 500, 502, 429, 408)), (0, None)])
def test_it_tries_again(
    serve: Serve, policy: Policy, adapter: Path, prompts: PromptBatch, reply: tuple[int, Any]
) -> None:
    server = serve()
    rollouts = loaded(server, adapter)
    expected = rollouts.sample(prompts, 1, sampling(), seed=4)[0]
    server.interfere = fails_first(2, reply)
    server.asked.clear()
    assert equal(rollouts.sample(prompts, 1, sampling(), seed=4)[0], expected)
    assert len(server.bodies("/v1/completions")) == 3 * len(prompts)
    server.interfere = fails_first(3, reply)
    assert "failed 3 times" in refused(lambda: rollouts.sample(prompts, 1, sampling(), seed=4))


def test_a_503_while_it_starts_is_waited_for(serve: Serve) -> None:
    server = serve()
    server.interfere = fails_first(2, error(503, "starting"))
    assert connect(server).base == BASE
    assert len(server.asked) == 3


def test_an_attempt_whose_answer_was_lost_has_loaded_the_adapter(serve: Serve, policy: Policy, adapter: Path) -> None:
    server = serve()
    lost = fails_first(1, (0, None))

    def interfere(path: str, body: Any) -> Any:
        reply = lost(path, body) if path == "/v1/load_lora_adapter" else None
        if reply:
            server.answer(path, body, "")
        return reply

    server.interfere = interfere
    rollouts = loaded(server, adapter)
    assert len(server.bodies("/v1/load_lora_adapter")) == 2
    assert len(rollouts.sample(random_batch(policy)[0], 1, sampling(), seed=0)) == 1


def test_a_server_without_adapter_loading_is_reported(serve: Serve, adapter: Path, tmp_path: Path) -> None:
    server = serve()
    rollouts = connect(server)
    with pytest.raises(ValueError, match="no adapter"):
        rollouts.sample(PromptBatch(("",), torch.ones(1, 1), torch.ones(1, 1)), 1, sampling(), seed=0)
    message = refused(lambda: rollouts.load_adapter(tmp_path / "elsewhere", 0))
    assert "No adapter found for" in message
    assert "set generation.server_adapter_folder" in message
    server.interfere = lambda path, body: error(500, "LoRA rank 64 is greater than max_lora_rank 16.") if body else None
    server.asked.clear()
    message = refused(lambda: rollouts.load_adapter(adapter, 0))
    assert "answered 500: LoRA rank 64 is greater than max_lora_rank 16.: start vLLM with" in message
    assert "--max-lora-rank" in message
    assert len(server.asked) == 1, "a second attempt changes nothing"
    server.interfere = lambda path, body: None
    server.runtime_lora = False
    message = refused(lambda: rollouts.load_adapter(adapter, 0))
    assert (
        "/v1/load_lora_adapter answered 404: Not Found: start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME" in message
    )


def test_a_failed_load_leaves_the_adapter_that_was_there(serve: Serve, policy: Policy, adapter: Path) -> None:
    prompts, _ = random_batch(policy)
    rollouts = loaded(serve(), adapter)
    refused(lambda: rollouts.load_adapter(adapter / "none", 1))
    assert equal(rollouts.sample(prompts, 1, sampling(top_k=1), 0)[0], native(policy, prompts, sampling(top_k=1)))


@pytest.mark.parametrize("reply", [error(404, "cannot be found"), error(400, "no"), error(503, "busy"), (0, None)])
def test_what_happens_to_the_adapter_before_is_no_matter(
    serve: Serve, policy: Policy, adapter: Path, reply: tuple[int, Any]
) -> None:
    prompts, _ = random_batch(policy)
    server = serve()
    rollouts = loaded(server, adapter)
    server.interfere = lambda path, body: reply if "unload" in path else None
    rollouts.load_adapter(adapter, 1)
    assert len(server.bodies("/v1/unload_lora_adapter")) == 1
    assert server.bodies("/v1/unload_lora_adapter")[0] != {"lora_name": list(server.loras)[-1]}
    assert equal(rollouts.sample(prompts, 1, sampling(top_k=1), 0)[0], native(policy, prompts, sampling(top_k=1)))
    rollouts.close()


def test_a_server_that_was_started_again_is_reported(serve: Serve, policy: Policy, adapter: Path) -> None:
    server = serve()
    rollouts = loaded(server, adapter)
    server.loras.clear()
    message = refused(lambda: rollouts.sample(random_batch(policy)[0], 1, sampling(), seed=0))
    assert "answered 404: The model `alignrun-" in message
    assert "`alignrun resume RUN` loads the adapter again" in message


def test_another_base_and_something_else_than_a_server_are_reported(serve: Serve) -> None:
    server = serve()
    assert connect(server, model=BASE).base == BASE
    assert connect(server, url=f"{server.url}/v1/").base == BASE
    message = refused(lambda: connect(server, model="llama"), InputError)
    assert f"generation.server_model=llama is not served by {server.url}: name one of {BASE}" in message
    server.loras["llama"] = "an adapter of someone else's"
    assert "llama is not" in refused(lambda: connect(server, model="llama"), InputError)
    for nothing in ({"data": []}, {"data": None}, [], b"<html>", {"data": [{"id": 3}, None]}):
        server.interfere = lambda path, body, nothing=nothing: (200, nothing)
        assert "lists no model" in refused(lambda: connect(server))
    server.interfere = lambda path, body: (404, b"<html>nothing\nhere</html>")
    assert "answered 404: <html>nothing here</html>: check generation.server_url" in refused(lambda: connect(server))


def test_a_redirect_is_not_followed(serve: Serve) -> None:
    server, other = serve(), serve()
    server.interfere = lambda path, body: (307, {"Location": f"{other.url}{path}?key={KEY}"})
    message = refused(lambda: connect(server, api_key=KEY))
    assert f"set generation.server_url to where it leads, {other.url}/v1/models?key=[key]" in message
    assert other.asked == []


def test_broken_proxy_settings_are_reported(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("ALL_PROXY", "carrier-pigeon://coop")
    assert "check the proxy" in refused(lambda: connect(serve()))


# The key and the configuration


def configured(server: VllmLike, **changes: Any) -> GenerationConfig:
    return GenerationConfig(engine=Engine.server, server_url=server.url, server_retries=0, **changes)


def test_the_key_is_sent_and_shown_nowhere(
    serve: Serve, policy: Policy, adapter: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    prompts, _ = random_batch(policy)
    server = serve()
    server.key = KEY
    missing = refused(lambda: RolloutServer.connect(configured(server)))
    assert "answered 401: Unauthorized: set ALIGNRUN_ROLLOUT_API_KEY" in missing
    monkeypatch.setenv("ALIGNRUN_ROLLOUT_API_KEY", f" {KEY}\n")
    rollouts = RolloutServer.connect(configured(server))
    server.headers.clear()
    rollouts.load_adapter(adapter, 0)
    rollouts.sample(prompts, 1, sampling(), seed=0)
    assert len(server.headers) == 1 + len(prompts)
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert KEY not in json.dumps(server.asked)
    shown = []
    for status in (400, 401, 404, 500):
        server.interfere = lambda path, body, status=status: error(status, "x" * 190 + f" {KEY} {KEY}")
        shown.append(refused(lambda: rollouts.sample(prompts, 1, sampling(), seed=0)))
        shown.append(refused(lambda: rollouts.load_adapter(adapter, 1)))
        shown.append(refused(lambda: RolloutServer.connect(configured(server))))
    assert KEY[:6] not in "".join(shown) + caplog.text + repr(rollouts) + repr(vars(rollouts))
    assert "/v1/completions" in caplog.text, "the requests were logged"
    monkeypatch.setenv("ALIGNRUN_ROLLOUT_API_KEY", "sk-ä")
    assert "sk-" not in refused(lambda: RolloutServer.connect(configured(server)), InputError)


def test_without_a_key_no_header_is_sent(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    monkeypatch.setenv("ALIGNRUN_ROLLOUT_API_KEY", " ")
    RolloutServer.connect(configured(server))
    assert "Authorization" not in server.headers[0]


def test_the_configuration_reaches_the_server(serve: Serve, policy: Policy, adapter: Path) -> None:
    server = serve()
    config = configured(server, server_parallel=1, server_timeout_seconds=2, server_model=BASE)
    rollouts = RolloutServer.connect(config)
    rollouts.load_adapter(adapter, 0)
    server.peak = 0
    rollouts.sample(random_batch(policy, prompts=6)[0], 1, sampling(), seed=0)
    assert server.peak == 1
    server.interfere = lambda path, body: time.sleep(3)
    assert "failed 1 times (no answer within 2 seconds)" in refused(
        lambda: rollouts.sample(random_batch(policy)[0], 1, sampling(), seed=0)
    )
    server.interfere = lambda path, body: None
    assert "server_model=llama" in refused(
        lambda: RolloutServer.connect(configured(server, server_model="llama")), InputError
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"engine": Engine.server}, "generation.server_url is missing"),
        ({"engine": Engine.server, "server_url": "http://h", "temperature": 0.001}, "must be at least 0.01 with"),
        ({"server_url": "h:8000"}, "generation.server_url must be http"),
        ({"server_url": "ftp://h"}, "generation.server_url must be http"),
        ({"server_url": "http://h?key=1"}, "generation.server_url must be http"),
        ({"server_url": f"http://user:{KEY}@h"}, "generation.server_url must be http"),
        ({"server_url": "http://h:99999"}, "generation.server_url must be http"),
        ({"server_timeout_seconds": 0.0}, "generation.server_timeout_seconds must be positive"),
        ({"server_timeout_seconds": float("inf")}, "generation.server_timeout_seconds must be positive"),
        ({"server_retries": -1}, "generation.server_retries must not be negative"),
        ({"server_parallel": 0}, "generation.server_parallel must be at least 1"),
        ({"server_weight_cap": 0.5}, "generation.server_weight_cap must be at least 1, not 0.5"),
        ({"server_max_kl": 0.0}, "generation.server_max_kl must be positive"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], expected: str) -> None:
    message = refused(lambda: GenerationConfig(**changes), InputError)
    assert expected in message
    assert KEY not in message


def test_the_preset_asks_a_server_and_the_default_asks_none() -> None:
    assert compose([]).generation.engine is Engine.native
    generation = compose(["generation=server", "generation.server_url=https://h:1/v1"]).generation
    assert (generation.engine, generation.server_url) == (Engine.server, "https://h:1/v1")
