"""Algorithms whose policy speaks more than once: exact gradients by enumeration, and what its later prompts hold."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Compared, encoding_of, load_policy, random_batch, refused_smoke, turned_cycle

import alignrun
from alignrun import cli
from alignrun.algorithms.base import Algorithm, Tools, discover
from alignrun.algorithms.common.conversations import Conversations
from alignrun.algorithms.mtpo import JudgedConversations
from alignrun.algorithms.stackelberg import Led
from alignrun.data.follow_up import FollowUps, transcript
from alignrun.errors import InputError, RunError
from alignrun.games import Game, equilibrium
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.models.sources import load_tokenizer
from alignrun.models.tiny import byte_tokenizer
from alignrun.preferences.base import build_preference
from alignrun.types import Completions, Example, Prompt, PromptBatch, Role

ANY = ("preference=function", "preference.function=helpers:more_letters", "model.architecture.game=cyc")


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
        self.texts = [tokenizer.decode([token], skip_special_tokens=True).strip() for token in range(len(tokenizer))]
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

    def fit(self, first: torch.Tensor, later: torch.Tensor) -> None:
        """Give the policy these distributions, [V] and [V, V], weighed by how often they are met."""
        weights = list(self.policy.trainable().values())
        steps = torch.optim.LBFGS(weights, max_iter=400, tolerance_grad=1e-9, line_search_fn="strong_wolfe")
        wanted = (first[:, None] * later).float()

        def loss() -> torch.Tensor:
            steps.zero_grad()
            value = -(wanted.flatten() * leaves(*self.log_probs(Role.policy))).sum()
            value.backward()
            return value

        steps.step(loss)
        steps.zero_grad()
        reached = leaves(*self.log_probs(Role.policy)).detach().exp()
        torch.testing.assert_close(reached, wanted.flatten(), rtol=0, atol=3e-4)

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


def any_preference(size: int) -> torch.Tensor:
    """[size², size²] P of one conversation of two tokens over another, cyclic and of no structure."""
    noise = torch.rand(size * size, size * size, generator=torch.Generator().manual_seed(5))
    return 0.5 + (noise - noise.T) / 2


def leaves(first: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
    """[V²] log-probabilities of both tokens together."""
    return (first[:, None] + later).flatten()


def assert_close(found: list[torch.Tensor], expected: tuple[torch.Tensor, ...]) -> None:
    largest = max(float(gradient.abs().max()) for gradient in expected)
    assert largest > 1e-3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=largest * 1e-3, rtol=1e-3)


def expected_gradient(
    algorithm: Algorithm, tree: Tree, batches: Callable[[Conversations, int], Any]
) -> tuple[list[torch.Tensor], float]:
    """E[g] over all courses of a conversation, by their place, and |E[g]|/E|g|."""
    weights = list(tree.policy.trainable().values())
    chances = leaves(*tree.log_probs(Role.policy)).detach().exp()
    mean, size = [torch.zeros_like(part) for part in weights], 0.0
    for place, (one, two) in enumerate(itertools.product(range(tree.size), range(tree.size))):
        parts = torch.autograd.grad(algorithm.loss(batches(tree.conversation(one, two), place)).total, weights)
        for total, part in zip(mean, parts, strict=True):
            total += chances[place] * part
        size += float(chances[place]) * norm(parts)
    return mean, norm(mean) / size


def norm(parts: Sequence[torch.Tensor]) -> float:
    return float(torch.cat([part.flatten() for part in parts]).norm())


def judged_against_the_policy(tree: Tree, preferences: torch.Tensor) -> Callable[[Conversations, int], Any]:
    """A conversation of MTPO with its expected win rate, in which its gradient is linear."""
    wins = preferences.float() @ leaves(*tree.log_probs(Role.policy)).detach().exp()
    return lambda said, place: JudgedConversations(said, wins[place].reshape(1, 1))


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

    def led_to(said: Conversations, place: int) -> Led:
        return Led(said, preferences.flatten()[place].reshape(1, 1))

    assert_close(expected_gradient(algorithm, tree, led_to)[0], exact)


def test_an_answer_is_credited_with_the_rest_of_the_conversation() -> None:
    """E[g] = −∇[P(π ≻ sg π) − τ KL(π‖μ)] over conversations of two turns, whose KL is that of both turns."""
    algorithm = game_algorithm("mtpo", "algo.samples_per_prompt=2", "algo.kl_tau=0.2", "algo.user_says=play", *ANY)
    tree = Tree(algorithm, "play")
    preferences = any_preference(tree.size)
    ours, theirs = leaves(*tree.log_probs(Role.policy)), leaves(*tree.log_probs(Role.reference))
    objective = ours.exp() @ (preferences @ ours.detach().exp()) - 0.2 * (ours.exp() * (ours - theirs)).sum()
    exact = torch.autograd.grad(-objective, list(tree.policy.trainable().values()))
    assert_close(expected_gradient(algorithm, tree, judged_against_the_policy(tree, preferences))[0], exact)


def test_mtpo_rests_at_the_equilibrium_of_the_conversations() -> None:
    """With a user who always says the same, that is the equilibrium of the matrix game between whole conversations."""
    algorithm = game_algorithm("mtpo", "algo.samples_per_prompt=2", "algo.kl_tau=0.2", "algo.user_says=play", *ANY)
    tree = Tree(algorithm, "play")
    preferences = any_preference(tree.size).double()
    theirs = leaves(*tree.log_probs(Role.reference)).detach().double()
    names = tuple(str(place) for place in range(len(theirs)))
    target = equilibrium(Game(preferences, theirs.softmax(0), names), 0.2).reshape(tree.size, -1)
    assert expected_gradient(algorithm, tree, judged_against_the_policy(tree, preferences))[1] > 0.2
    tree.fit(target.sum(1), target / target.sum(1, keepdim=True))
    assert expected_gradient(algorithm, tree, judged_against_the_policy(tree, preferences))[1] < 0.02


def test_stackelberg_rests_where_each_answers_the_other_best() -> None:
    """ω ∝ μ exp(−P(y ≻ ·)/τ_F) and π ∝ μ exp(V/τ) with V(y) = E P(y ≻ y') + τ_F KL(ω‖μ), for any κ."""
    tau, follower_tau = 0.2, 0.3
    settings = [f"algo.kl_tau={tau}", f"algo.follower_kl_tau={follower_tau}", "algo.follower_prompt=play"]
    algorithm = game_algorithm("stackelberg", *settings)
    tree = Tree(algorithm, "play")
    preferences = table(algorithm, tree.texts)
    leader_mu, follower_mu = (part.detach() for part in tree.log_probs(Role.reference))
    follower = (follower_mu - preferences / follower_tau).log_softmax(1)
    value = (follower.exp() * (preferences + follower_tau * (follower - follower_mu))).sum(1)
    leader = (leader_mu + value / tau).softmax(0)

    def led(said: Conversations, place: int) -> Led:
        return Led(said, preferences.flatten()[place].reshape(1, 1))

    assert expected_gradient(algorithm, tree, led)[1] > 0.2
    tree.fit(leader, follower.exp())
    assert expected_gradient(algorithm, tree, led)[1] < 0.02


def test_the_follower_reads_the_leaders_answer_and_is_judged_against_it() -> None:
    asked = []

    def remember(prompts, first, second) -> torch.Tensor:
        asked.extend(zip(prompts, first, second, strict=True))
        return longer(prompts, first, second)

    algorithm = build("stackelberg", "algo.samples_per_prompt=2", preference=remember)
    opening = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"})
    tools = ({"type": "function", "function": {"name": "look_up", "parameters": {}}},)
    texts = (Prompt("first"), Prompt("second", opening, {"answer": 3}, tools))
    (batch,) = list(algorithm.collect(opened(algorithm, texts), step=3))
    (_, led), (following, improved) = batch.said.turns()
    answers, improvements = decoded(algorithm, led), decoded(algorithm, improved)
    wanted = list(zip([prompt for prompt in texts for _ in range(2)], answers, improvements, strict=True))
    assert [asked[place] for place in (0, 2, 1, 3)] == wanted, "one sample of every prompt after another"
    for row, (prompt, answer, improvement) in enumerate(wanted):
        whole = read(algorithm, following, row)
        assert whole.endswith(
            f"<|im_start|>assistant\n{answer}<|im_end|>\n<|im_start|>user\nImprove the previous answer. "
            "Phrase it as if it was the original response.<|im_end|>\n<|im_start|>assistant\n"
        )
        assert ("look_up" in whole) == ("Be brief." in whole) == (prompt is texts[1])
        wins = float(longer(None, [answer], [improvement]))
        assert float(batch.preference.flatten()[row]) == pytest.approx(wins, rel=1e-5)


def opened(algorithm: Algorithm, texts: tuple[Prompt, ...]) -> PromptBatch:
    """Some prompt tokens under these texts."""
    prompts, _ = random_batch(algorithm.tools.policy, prompts=len(texts))
    return PromptBatch(texts, prompts.input_ids, prompts.attention_mask)


def decoded(algorithm: Algorithm, completions: Completions) -> list[str]:
    return algorithm.rollouts.texts(Completions(completions.tokens[:, None], completions.mask[:, None]))[0]


def read(algorithm: Algorithm, prompts: PromptBatch, row: int) -> str:
    """What the model reads of a prompt."""
    return algorithm.tools.policy.tokenizer.decode(prompts.input_ids[row][prompts.attention_mask[row].bool()])


@pytest.mark.parametrize("user", ["algo.user_says=null", "algo.user_says='And then?'"])
def test_a_conversation_grows_turn_by_turn_and_is_judged_as_a_whole(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: dict[tuple[str, str], float] = {}

    def remember(prompts, first, second) -> torch.Tensor:
        said = longer(prompts, first, second)
        judged.update(zip(zip(first, second, strict=True), said.tolist(), strict=True))
        return said

    settings = ["algo.samples_per_prompt=3", "algo.opponents_per_sample=null", "algo.turns=3", user]
    algorithm = build("mtpo", *settings, preference=remember)
    spoken: list[tuple[Role, PromptBatch, list[str]]] = []
    say = algorithm.say

    def watch(role, batch, *rest):
        found = say(role, batch, *rest)
        spoken.append((role, batch, found[1]))
        return found

    monkeypatch.setattr(algorithm, "say", watch)
    texts = (Prompt("one"), Prompt("two"))
    (batch,) = list(algorithm.collect(opened(algorithm, texts), step=3))
    (_, first), (second_prompts, second), (third_prompts, third) = batch.said.turns()
    scripted = "null" not in user
    roles = [role for role, _, _ in spoken]
    assert roles == ([] if scripted else [Role.reference]) + [Role.policy] + roles[:1] * (not scripted) + [Role.policy]
    users = [["And then?"] * 6] * 2 if scripted else [said for role, _, said in spoken if role is Role.reference]
    if not scripted:
        asked = read(algorithm, spoken[0][1], 4)
        instruction = algorithm.config.user_instruction
        said = decoded(algorithm, first)[4]
        turns = [("user", instruction), ("assistant", "two"), ("user", said)]
        assert asked == "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + (
            "<|im_start|>assistant\n"
        )
    said = [decoded(algorithm, turn) for turn in (first, second, third)]
    transcripts = []
    for row in range(6):
        one, two, three = (turn[row] for turn in said)
        asks = [reply[row] for reply in users]
        turns = [("user", texts[row // 3]), ("assistant", one), ("user", asks[0])]
        marks = [f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns]
        assert read(algorithm, second_prompts, row) == "".join(marks) + "<|im_start|>assistant\n"
        assert read(algorithm, third_prompts, row).startswith("".join(marks) + f"<|im_start|>assistant\n{two}")
        transcripts.append(f"{one}\n\nuser: {asks[0]}\n\nassistant: {two}\n\nuser: {asks[1]}\n\nassistant: {three}")
    for row in range(6):
        others = [place for place in range(row // 3 * 3, row // 3 * 3 + 3) if place != row]
        wins = [float(longer(None, [transcripts[row]], [transcripts[other]])) for other in others]
        assert float(batch.preference[row // 3, row % 3]) == pytest.approx(sum(wins) / 2, rel=1e-5)
    assert all(pair[0] in transcripts for pair in judged)


def test_prompts_leave_room_for_the_whole_conversation() -> None:
    tokenizer = byte_tokenizer()
    config = compose(["experiment=smoke", "algo=stackelberg", "algo.follower_prompt=better"]).algo
    kind = discover()["stackelberg"]
    added = FollowUps(tokenizer, None, None).added("better")
    wrapped = len(tokenizer("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n").input_ids)
    limit = wrapped + 4  # letters besides the one that is counted
    encoding = encoding_of(tokenizer, context=limit + 8 + added + 8, max_new_tokens=8)
    assert len(kind.dataset(config, [Example("x" * 5, "fits")], encoding)) == 1
    with pytest.raises(InputError, match=rf"too: the prompt has {limit + 1} tokens, and the limit is {limit};"):
        kind.dataset(config, [Example("x" * 6, "too")], encoding)
    with pytest.raises(InputError, match=r"have no room for a prompt: lower generation\.max_new_tokens"):
        kind.dataset(config, [Example("x", "x")], encoding_of(tokenizer, context=60, max_new_tokens=30))


def test_a_later_prompt_is_never_cut() -> None:
    algorithm = build("stackelberg")
    with pytest.raises(RunError, match=r"set data\.max_prompt_tokens lower by"):
        algorithm.later_prompts([Prompt("x" * 5000)])


def test_without_a_template_plain_text_is_continued() -> None:
    plain = byte_tokenizer()
    plain.chat_template = None
    follow_ups = FollowUps(plain, None, None)
    later = follow_ups.after(Prompt("Once upon", None, {"answer": 1}), "a time", "go on")
    assert later == "Once upon a time\n\ngo on\n\n"
    assert later.columns == {"answer": 1}
    assert plain.decode(follow_ups.encode(later)) == later


@pytest.mark.slow
@pytest.mark.nightly
def test_mtpo_reaches_that_equilibrium_through_the_loop(tmp_path: Path) -> None:
    """From μ, on a cycle of the second answers that the first one turns round."""
    settings = [
        "algo.user_says=play",
        "algo.samples_per_prompt=16",
        "algo.opponents_per_sample=null",
        "algo.kl_tau=0.2",
    ]
    run = tmp_path / "run"
    function = "preference.function=helpers:turned_cycle"
    started = ["experiment=game", "algo=mtpo", *settings, *ANY[:1], function, *ANY[2:], "evaluation.every=0"]
    assert cli.main([*started, f"run.dir={run}"]) == 0
    algorithm = game_algorithm("mtpo", *settings, *ANY[:1], function, *ANY[2:])
    tree = Tree(algorithm, "play")
    read = [transcript(one, [("play", two)]) for one, two in itertools.product(tree.texts, tree.texts)]
    preferences = torch.tensor([turned_cycle([""] * len(read), [one] * len(read), read) for one in read]).double()
    theirs = leaves(*tree.log_probs(Role.reference)).detach().double()
    names = tuple(str(place) for place in range(len(theirs)))
    target = equilibrium(Game(preferences, theirs.softmax(0), names), 0.2)
    tree.policy = alignrun.load_policy(run).policy
    reached = leaves(*tree.log_probs(Role.policy)).detach().exp()
    assert float((target - theirs.exp()).abs().sum()) / 2 > 0.1
    assert float((target - reached).abs().sum()) / 2 < 0.06


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("algo=stackelberg", "algo.follower_weight=0"), "algo.follower_weight must be positive"),
        (("algo=stackelberg", "algo.follower_prompt=' '"), "algo.follower_prompt must ask for something"),
        (("algo=stackelberg", "generation.max_new_tokens=4000"), "have no room for a prompt"),
        (("algo=mtpo", "algo.turns=1"), "algo.turns must lie in [2, 8]"),
        (("algo=mtpo", "algo.samples_per_prompt=1"), "algo.samples_per_prompt must be at least 2"),
        (("algo=mtpo", "preference=matrix"), "preference=matrix knows only single actions"),
        (
            ("algo=mtpo", "model=game", "model.architecture.game=cyc", "generation.max_new_tokens=1"),
            "no chat template, so the reference cannot play",
        ),
    ],
)
def test_wrong_settings_are_one_line(
    overrides: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused_smoke(capsys, tmp_path, *overrides)
