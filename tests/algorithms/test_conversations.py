"""Algorithms whose policy speaks twice: exact gradients by enumeration, what the later prompts hold, and their length."""

import itertools
from pathlib import Path

import pytest
import torch
from helpers import Compared, encoding_of, load_policy, random_batch, refused_smoke

from alignrun.algorithms.base import Algorithm, Tools, discover
from alignrun.algorithms.common.conversations import Conversations
from alignrun.algorithms.stackelberg import Led
from alignrun.data.follow_up import FollowUps
from alignrun.errors import InputError, RunError
from alignrun.games.files import load_game
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.models.sources import load_tokenizer
from alignrun.models.tiny import byte_tokenizer
from alignrun.preferences.base import build_preference
from alignrun.types import Completions, Example, Prompt, PromptBatch, Role

GAME = load_game("cyc")


def longer(prompts, first, second) -> torch.Tensor:
    return torch.tensor([len(one) / (len(one) + len(other) + 1e-9) for one, other in zip(first, second, strict=True)])


def build(name: str, *overrides: str, preference=longer) -> Algorithm:
    policy, config = load_policy(f"algo={name}", "generation.max_new_tokens=6", *overrides)
    return discover()[name](config.algo, Tools(policy, Compared(preference), config))


def game_algorithm(name: str, *overrides: str) -> Algorithm:
    """The algorithm with a language model that plays CYC, away from its reference."""
    config = compose(["experiment=game", f"algo={name}", "algo.samples_per_prompt=1", *overrides])
    policy = Policy.load(config.model, config.adapter, config.reference, load_tokenizer(config.model), 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return discover()[name](config.algo, Tools(policy, build_preference(config.preference, policy.backbone), config))


class Tree:
    """Every course of a conversation of two turns, one token each, on a game's model: V tokens, then V tokens."""

    def __init__(self, algorithm: Algorithm, reply: str) -> None:
        self.policy = algorithm.tools.policy
        tokenizer = self.policy.tokenizer
        self.texts = [text.strip() for text in tokenizer.batch_decode(range(len(tokenizer)), skip_special_tokens=True)]
        self.size = len(self.texts)
        opening = Prompt("play")
        self.first = self.prompts([opening])
        self.later = self.prompts([algorithm.follow_ups.after(opening, text, reply) for text in self.texts])

    def prompts(self, asked: list[Prompt]) -> PromptBatch:
        rows = [self.policy.tokenizer(str(one), add_special_tokens=False).input_ids for one in asked]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        attention = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return PromptBatch(tuple(asked), ids, attention)

    def log_probs(self, role: Role) -> tuple[torch.Tensor, torch.Tensor]:
        """[V] of the first token, and [V, V] of the second after each first one."""
        tokens = torch.arange(self.size)
        first, later = (
            self.policy.log_probs(role, batch, one_token(tokens.repeat(len(batch)))).reshape(len(batch), -1)
            for batch in (self.first, self.later)
        )
        return first[0], later

    def conversation(self, one: int, two: int) -> Conversations:
        first, later = (one_token(torch.tensor([token])) for token in (one, two))
        return Conversations(
            self.first,
            Completions(first.tokens[None], first.mask[None]),
            self.later.input_ids[None, None, one : one + 1],
            self.later.attention_mask[None, None, one : one + 1],
            Completions(later.tokens[None, None], later.mask[None, None]),
        )


def one_token(tokens: torch.Tensor) -> Completions:
    return Completions(tokens[:, None], torch.ones(len(tokens), 1, dtype=torch.bool))


def table(algorithm: Algorithm, texts: list[str]) -> torch.Tensor:
    """[n, n] P(row ≻ column) of completions."""
    pairs = list(itertools.product(texts, texts))
    judged = algorithm.tools.preference(["play"] * len(pairs), *map(list, zip(*pairs, strict=True)))
    return judged.reshape(len(texts), len(texts))


def assert_close(found: list[torch.Tensor], expected: tuple[torch.Tensor, ...]) -> None:
    largest = max(float(gradient.abs().max()) for gradient in expected)
    assert largest > 1e-3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=largest * 1e-3, rtol=1e-3)


@pytest.mark.parametrize("whole", [True, False])
def test_leader_and_follower_step_along_the_gradients_of_their_game(whole: bool) -> None:
    """E[g] = −∇_π f + κ∇_ω f of f = E[P(y ≻ y') + τ_F KL(ω‖μ)] − τ KL(π‖μ), over all courses of a conversation."""
    tau, follower_tau, weight = 0.1, 0.3, 2.0
    settings = [f"algo.kl_tau={tau}", f"algo.follower_kl_tau={follower_tau}", f"algo.follower_weight={weight}"]
    settings += ["algo.follower_prompt=play", f"algo.follower_kl_for_leader={str(whole).lower()}"]
    algorithm = game_algorithm("stackelberg", *settings)
    tree = Tree(algorithm, "play")
    preferences = table(algorithm, tree.texts)
    weights = list(tree.policy.trainable().values())
    leader, follower = tree.log_probs(Role.policy)
    leader_mu, follower_mu = tree.log_probs(Role.reference)
    drift = (follower.detach().exp() * (follower.detach() - follower_mu)).sum(1)
    kept = (follower.detach().exp() * preferences).sum(1) + (follower_tau * drift if whole else 0.0)
    led = (leader.exp() * (kept - tau * (leader - leader_mu))).sum()
    lost = leader.detach().exp() @ (follower.exp() * (1 - preferences - follower_tau * (follower - follower_mu))).sum(1)
    exact = torch.autograd.grad(-led - weight * lost, weights)

    expected = [torch.zeros_like(part) for part in weights]
    for one, two in itertools.product(range(tree.size), range(tree.size)):
        batch = Led(tree.conversation(one, two), preferences[one, two].reshape(1, 1))
        chance = float((leader[one] + follower[one, two]).detach().exp())
        for total, part in zip(expected, torch.autograd.grad(algorithm.loss(batch).total, weights), strict=True):
            total += chance * part
    assert_close(expected, exact)


def test_the_follower_reads_the_leaders_answer_and_is_judged_against_it() -> None:
    asked = []

    def remember(prompts, first, second) -> torch.Tensor:
        asked.extend(zip(prompts, first, second, strict=True))
        return longer(prompts, first, second)

    algorithm = build("stackelberg", "algo.samples_per_prompt=2", preference=remember)
    policy = algorithm.tools.policy
    opening = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"})
    tools = ({"type": "function", "function": {"name": "look_up", "parameters": {}}},)
    texts = (Prompt("first"), Prompt("second", opening, {"answer": 3}, tools))
    prompts, _ = random_batch(policy, prompts=2)
    prompts = PromptBatch(texts, prompts.input_ids, prompts.attention_mask)
    (batch,) = list(algorithm.collect(prompts, step=3))
    (ours, _), (_, led), (following, improved) = (prompts, None), *batch.said.turns()
    answers = [[text[0] for text in algorithm.rollouts.texts(one)] for one in split(led, 2)]
    assert len(asked) == 4
    for place, (prompt, first, second) in enumerate(sorted(asked, key=lambda one: texts.index(one[0]))):
        assert prompt is texts[place // 2]
        written = [first, second]
        found = decoded(algorithm, led, place), decoded(algorithm, improved, place)
        assert sorted(written) == sorted(found) or written == list(found)
    del ours, answers
    for row, (prompt, place) in enumerate(itertools.product(texts, range(2))):
        ids = following.input_ids[row][following.attention_mask[row].bool()]
        whole = policy.tokenizer.decode(ids)
        answer = decoded(algorithm, led, row)
        assert whole.endswith(
            f"<|im_start|>assistant\n{answer}<|im_end|>\n<|im_start|>user\nImprove the previous answer. "
            "Phrase it as if it was the original response.<|im_end|>\n<|im_start|>assistant\n"
        )
        assert ("look_up" in whole) == ("Be brief." in whole) == (prompt is texts[1])
        wins = float(longer(None, [answer], [decoded(algorithm, improved, row)]))
        assert float(batch.preference[row // 2, place]) == pytest.approx(wins, rel=1e-5)


def split(completions: Completions, count: int) -> list[Completions]:
    return [Completions(completions.tokens[None, k::count], completions.mask[None, k::count]) for k in range(count)]


def decoded(algorithm: Algorithm, completions: Completions, row: int) -> str:
    one = Completions(completions.tokens[None, row : row + 1], completions.mask[None, row : row + 1])
    return algorithm.rollouts.texts(one)[0][0]


def test_prompts_leave_room_for_the_whole_conversation() -> None:
    tokenizer = byte_tokenizer()
    config = compose(["experiment=smoke", "algo=stackelberg", "algo.follower_prompt=better"]).algo
    kind = discover()["stackelberg"]
    added = FollowUps(tokenizer, None, None).added("better")
    wrapped = len(tokenizer("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n").input_ids)
    limit = wrapped + 4  # letters beside the one that is counted
    encoding = encoding_of(tokenizer, context=limit + 8 + added + 8, max_new_tokens=8)
    assert len(kind.dataset(config, [Example("x" * 5, "fits")], encoding)) == 1
    with pytest.raises(InputError, match=rf"too: the prompt has {limit + 1} tokens, and the limit is {limit};"):
        kind.dataset(config, [Example("x" * 6, "too")], encoding)
    with pytest.raises(InputError, match="have no room for a prompt: lower generation.max_new_tokens"):
        kind.dataset(config, [Example("x", "x")], encoding_of(tokenizer, context=60, max_new_tokens=30))


def test_a_later_prompt_is_never_cut() -> None:
    algorithm = build("stackelberg")
    with pytest.raises(RunError, match="set data.max_prompt_tokens lower by"):
        algorithm.encoded([Prompt("x" * 5000)])


def test_without_a_template_plain_text_is_continued() -> None:
    plain = byte_tokenizer()
    plain.chat_template = None
    follow_ups = FollowUps(plain, None, None)
    later = follow_ups.after(Prompt("Once upon", None, {"answer": 1}), "a time", "go on")
    assert later == "Once upon a time\n\ngo on\n\n"
    assert later.columns == {"answer": 1}
    assert plain.decode(follow_ups.encode(later)) == later


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("algo=stackelberg", "algo.follower_weight=0"), "algo.follower_weight must be positive"),
        (("algo=stackelberg", "algo.follower_prompt=' '"), "algo.follower_prompt must ask for something"),
        (("algo=stackelberg", "generation.max_new_tokens=4000"), "have no room for a prompt"),
    ],
)
def test_wrong_settings_are_one_line(
    overrides: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused_smoke(capsys, tmp_path, *overrides)
