"""Completions from a server as draft and verify makes them, against enumeration and the native engine on a game LM."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
import scipy.stats
import torch
from generation.serving import VllmLike
from helpers import Compared
from torch import Tensor

from alignrun.algorithms.base import Tools
from alignrun.algorithms.common.drafting import Drafting, draft_role
from alignrun.algorithms.common.rollout import Rollouts
from alignrun.algorithms.common.scoring import scoring
from alignrun.algorithms.common.server_rollouts import ServerRollouts
from alignrun.errors import RunError
from alignrun.generation.decode import Sampling
from alignrun.generation.server.protocol import Drawn, as_completions
from alignrun.generation.streams import Mixture, Stream
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.models.sources import load_model, load_tokenizer
from alignrun.types import Completions, PromptBatch, Role

LENGTH, DRAWS = 3, 4000
Next = dict[tuple[int, ...], Tensor]
"""[V] probabilities of the next token after every prefix."""


@pytest.fixture(scope="module")
def policy() -> Policy:
    config = compose(["experiment=game"])
    tokenizer = load_tokenizer(config.model)
    ends = [tokenizer.convert_tokens_to_ids("c")]  # the game LM hardly draws its own end token
    policy = Policy.load(config.model, config.adapter, config.reference, tokenizer, config.seed, ends)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return policy


Serve = Callable[[type[VllmLike]], VllmLike]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv("NO_PROXY", "*")
    started: list[VllmLike] = []

    def start(kind: type[VllmLike] = VllmLike) -> VllmLike:
        config = compose(["experiment=game"])
        torch.manual_seed(config.seed)
        started.append(kind(load_model(config.model, load_tokenizer(config.model), torch.float32)))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def prompt_of(policy: Policy, prompts: int = 1) -> PromptBatch:
    ids = torch.tensor([policy.tokenizer.encode("play")] * prompts)
    return PromptBatch(("play",) * prompts, ids, torch.ones_like(ids))


def tools_of(policy: Policy, *overrides: str) -> Tools:
    config = compose(["experiment=game", f"generation.max_new_tokens={LENGTH}", *overrides])
    return Tools(policy, Compared(lambda *texts: torch.full((len(texts[1]),), 0.5)), config)


def served(policy: Policy, server: VllmLike, *overrides: str) -> ServerRollouts:
    return ServerRollouts(
        tools_of(policy, "generation.engine=server", f"generation.server_url={server.url}", *overrides)
    )


def mixture(beta: float) -> Mixture:
    return Mixture(Role.policy, Role.reference, beta)


def prefixes(policy: Policy) -> list[tuple[int, ...]]:
    """Everything that may be continued."""
    size = len(policy.tokenizer)
    grown: list[tuple[int, ...]] = [()]
    for _ in range(LENGTH - 1):
        grown += [
            (*text, token)
            for text in grown
            if len(text) == len(grown[-1])
            for token in range(size)
            if token not in policy.stop_ids
        ]
    return grown


def next_tokens(policy: Policy, role: Role, temperature: float = 1.0) -> Next:
    found = {}
    for text in prefixes(policy):
        ids = torch.cat([prompt_of(policy).input_ids, torch.tensor([text], dtype=torch.long)], 1)
        logits = policy.decoder(PromptBatch(("",), ids, torch.ones_like(ids)), [role], 1).prefill()[0].double()
        found[text] = (logits / temperature).softmax(-1)
    return found


def mixed(ours: Next, theirs: Next, beta: float) -> Next:
    """p ∝ π^(1−β) μ^β, plainly."""
    powers = {text: ours[text] ** (1 - beta) * theirs[text] ** beta for text in ours}
    return {text: each / each.sum() for text, each in powers.items()}


def whole(policy: Policy, each: Next) -> dict[tuple[int, ...], float]:
    """The probability of every completion."""
    found: dict[tuple[int, ...], float] = {}
    begun = {(): 1.0}
    for position in range(LENGTH):
        longer: dict[tuple[int, ...], float] = {}
        for text, share in begun.items():
            for token, chance in enumerate(each[text].tolist()):
                ends = token in policy.stop_ids or position + 1 == LENGTH
                (found if ends else longer)[*text, token] = share * chance
        begun = longer
    return found


def counted(completions: Completions) -> Counter[tuple[int, ...]]:
    flat = completions.flat()
    return Counter(tuple(text[mask].tolist()) for text, mask in zip(flat.tokens, flat.mask, strict=True))


def p_value(found: Counter[tuple[int, ...]], exact: dict[tuple[int, ...], float]) -> float:
    """Of a chi-square test; completions that are expected less than five times count as one."""
    total = found.total()
    often = [text for text, share in exact.items() if share * total >= 5]
    observed, expected = [found[text] for text in often], [exact[text] * total for text in often]
    rest = total - sum(observed), total - sum(expected)
    if rest[1] > 1:
        observed, expected = [*observed, rest[0]], [*expected, rest[1]]
    else:
        assert rest[0] < 10
        expected = [value * sum(observed) / sum(expected) for value in expected]
    return float(scipy.stats.chisquare(observed, expected).pvalue)


def engine(policy: Policy, each: Next) -> Callable[[Sequence[tuple[int, list[int]]], int], list[Drawn]]:
    """An engine that draws from a table, in the place of a server."""
    generator = torch.Generator().manual_seed(11)

    def go_on(known: Sequence[tuple[int, list[int]]], number: int) -> list[Drawn]:
        drawn = [Drawn([], []) for _ in known]
        texts = [tuple(tokens) for _, tokens in known]
        going = {place: text for place, text in enumerate(texts) if len(text) < LENGTH}
        while going:
            for text in sorted(set(going.values())):
                places = [place for place, other in going.items() if other == text]
                tokens = torch.multinomial(each[text], len(places), True, generator=generator).tolist()
                for place, token in zip(places, tokens, strict=True):
                    drawn[place].tokens.append(token)
                    drawn[place].log_probs.append(float(each[text][token].log()))
                    going[place] = (*text, token)
            going = {
                place: text for place, text in going.items() if len(text) < LENGTH and text[-1] not in policy.stop_ids
            }
        return drawn

    return go_on


def drafted(policy: Policy, each: Next, beta: float, *overrides: str) -> tuple[Counter[tuple[int, ...]], Drafting]:
    """Completions of the mixture by drafts from a table, and what did that."""
    tools = tools_of(policy, *overrides)
    drafting, go_on = Drafting(tools, scoring(None, "")), engine(policy, each)
    temperature = tools.config.generation.temperature
    sampling = Sampling(LENGTH, policy.stop_ids, policy.tokenizer.pad_token_id, temperature)
    drafts = as_completions(go_on([(row, []) for row in range(DRAWS)], 0), sampling.pad_id, policy.device)
    stacked = Completions(drafts.tokens[None], drafts.mask[None], drafts.drawn_with[None])
    uniforms = torch.rand(2, 1, DRAWS, LENGTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    drawn = drafting.complete(prompt_of(policy), stacked, mixture(beta), sampling, uniforms, go_on)
    return counted(drawn), drafting


@pytest.mark.parametrize(("beta", "temperature"), [(0.125, 1.0), (0.5, 0.7), (0.8, 1.5)])
def test_the_mixture_has_its_distribution(beta: float, temperature: float, policy: Policy) -> None:
    ours, theirs = (next_tokens(policy, role, temperature) for role in (Role.policy, Role.reference))
    draft = ours if draft_role(mixture(beta)) is Role.policy else theirs
    found, drafting = drafted(policy, draft, beta, f"generation.temperature={temperature}")
    target = mixed(ours, theirs, beta)
    assert p_value(found, whole(policy, target)) > 1e-3
    assert p_value(found, whole(policy, draft)) < 1e-6, "the drafts would be noticed"
    assert len({len(text) for text in found}) == LENGTH, "some completions end before others"
    measured = drafting.drain()
    distance = float((draft[()] - target[()]).abs().sum()) / 2
    assert 0 < 1 - measured["draft_acceptance"] < 3 * distance
    assert measured["draft_rounds"] > 1
    assert measured["draft_mismatch_kl"] == pytest.approx(0, abs=1e-6)
    assert drafting.drain() == {}


def divergence(one: Tensor, other: Tensor) -> float:
    return float((one * (one / other).log()).sum())


def test_an_engine_with_other_numerics_is_biased_as_its_mismatch_predicts(policy: Policy) -> None:
    """q is π with noise in the logits: the result is the map of draft and verify applied to q, at most KL(q‖π) away."""
    noise = 0.4 * torch.randn(len(policy.tokenizer), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ours, theirs = (next_tokens(policy, role) for role in (Role.policy, Role.reference))
    other = {text: (each.log() + noise).softmax(-1) for text, each in ours.items()}
    target = mixed(ours, theirs, 0.5)
    predicted = {}
    for text, q in other.items():
        accept = (target[text] / ours[text]).clamp(max=1)
        excess = (target[text] - ours[text]).clamp(min=0)
        predicted[text] = q * accept + (q * (1 - accept)).sum() * excess / excess.sum()
        assert divergence(predicted[text], target[text]) <= divergence(q, ours[text])
    found, drafting = drafted(policy, other, 0.5, "generation.server_max_kl=null")
    assert p_value(found, whole(policy, predicted)) > 1e-3
    assert p_value(found, whole(policy, target)) < 1e-6, "the bias is seen"
    measured = drafting.drain()
    assert measured["draft_mismatch_kl"] == pytest.approx(divergence(other[()], ours[()]), rel=0.5)
    largest = max(float((ours[text] / other[text]).max()) for text in ours)
    assert 1 < measured["draft_mismatch_largest"] <= largest * (1 + 1e-5)
    with pytest.raises(RunError, match=r"the drafts of the mixture are not of the trained policy: KL.* is 0\.\d+ nats"):
        drafted(policy, other, 0.5, "generation.server_max_kl=0.01")


def test_a_server_draws_what_the_native_engine_draws(policy: Policy, serve: Serve) -> None:
    settings, draws = ["generation.temperature=0.7"], 800
    rollouts = served(policy, serve(), *settings)
    streams = [Stream(Role.policy, 2), Stream(mixture(0.25), draws), Stream(Role.reference, draws)]
    own, *both = rollouts.sample(prompt_of(policy), streams, 0)
    ours, theirs = (next_tokens(policy, role, 0.7) for role in (Role.policy, Role.reference))
    native = Rollouts(tools_of(policy, *settings)).sample(prompt_of(policy), streams, 0)[1:]
    for drawn, other, exact in zip(both, native, (mixed(ours, theirs, 0.25), theirs), strict=True):
        found, expected = counted(drawn), counted(other)
        assert p_value(found, whole(policy, exact)) > 1e-3
        often = [text for text in found if min(found[text], expected[text]) >= 5]
        table = [[counts[text] for text in often] for counts in (found, expected)]
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-3
        assert drawn.drawn_with is None, "nothing is corrected in what is not the policy's"
    log_probs = policy.log_probs(Role.policy, prompt_of(policy), own.flat(), 0.7)
    torch.testing.assert_close(own.drawn_with.flatten(0, 1), log_probs, atol=1e-5, rtol=0)


def test_every_prompt_and_sample_is_drawn_for_itself_and_again_with_its_seed(policy: Policy, serve: Serve) -> None:
    server = serve()
    rollouts = served(policy, server, "train.micro_batch_size=2")
    streams = [Stream(mixture(0.5), 4)]
    first, again, other = (rollouts.sample(prompt_of(policy, 5), streams, step)[0] for step in (0, 0, 1))
    assert torch.equal(first.tokens, again.tokens)
    assert counted(first) != counted(other)
    assert len({tuple(map(tuple, rows.tolist())) for rows in first.tokens}) == 5
    whole_batch = served(policy, server).sample(prompt_of(policy, 5), streams, 0)[0]
    assert torch.equal(first.tokens, whole_batch.tokens), "micro-batches change nothing"
    seeds = Counter(body["seed"] for body in server.bodies("/v1/completions"))
    assert set(seeds.values()) <= {1, 3}, "each request of a draw has a seed of its own"
