"""The panel: exact rules, a real Condorcet cycle, members of every kind, and scorers true to their sources."""

import itertools
import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import load_policy
from published_models import random_causal, random_model
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from alignrun import cli
from alignrun.config import Precision
from alignrun.config.paths import anchored
from alignrun.errors import InputError, RunError
from alignrun.games import largest_equilibrium
from alignrun.launch.compose import compose, dump, load, plain
from alignrun.launch.pins import _preference_pins
from alignrun.objectives.votes import egalitarian, majority, weighted_mean, worst_served
from alignrun.preferences.base import Preference, build_preference
from alignrun.preferences.measure import MeasureConfig
from alignrun.preferences.panel import Panel, PanelConfig, PanelRule, build
from alignrun.preferences.reward_model import RewardModelConfig
from alignrun.preferences.sentiment import Sentiment, SentimentConfig
from alignrun.preferences.text_measures import TEXT_MEASURES, TextMeasure, text_measure
from alignrun.run.trust import check_own, sign
from alignrun.types import Example

PROMPT = "How can I stay healthy?"
PLAIN = "Walk more. Eat fruit. Sleep well. Drink water."
SPOKEN = (
    "If you can, go out for a walk with someone you like, because it is good for both of you and you will want to do "
    "it again."
)
FORMAL = "You should exercise regularly, because it improves both your concentration and your sleep."
ODD_TEXTS = [
    *("", " \n\t ", "Yes", "...", "12 345", "🦊🦊", "日本語の文章です。次の文。", "مرحبا بالعالم", "e\u0301te\u0301"),
    *("a\ud800b", "\u0000\u200b", "’’--''", "x" * 20_000, "word " * 20_000, "A. " * 5_000, "but not good! " * 500),
    *(PLAIN, SPOKEN, FORMAL),
]


def score(name: str, completion: str, prompt: str = PROMPT) -> float:
    return TEXT_MEASURES[name].score(prompt, completion)


def table(preference: Preference, texts: list[str]) -> torch.Tensor:
    first, second = zip(*itertools.product(texts, repeat=2), strict=True)
    return preference([PROMPT] * len(first), first, second).reshape(len(texts), -1)


class Fixed(Preference):
    """A judge with one probability for every pair in this order."""

    def __init__(self, vote: float | list[float]) -> None:
        self._vote = vote

    def __call__(self, prompts: Any, first: Any, second: Any) -> torch.Tensor:
        return torch.tensor(self._vote).expand(len(prompts))


def measures(*names: str, temperature: float = 0.125, **settings: Any) -> Preference:
    members = {name: MeasureConfig(measure=name, temperature=temperature) for name in names}
    return build(PanelConfig(members=members, **settings))


STYLE = ("readability", "formality", "spokenness")


# The rules


@pytest.mark.parametrize("judges", [1, 2, 3, 4, 5, 6])
def test_a_majority_is_the_sum_over_all_votes(judges: int) -> None:
    generator = torch.Generator().manual_seed(judges)
    votes = torch.rand(judges, 2, 3, generator=generator, dtype=torch.float64)
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for ballot in itertools.product((0, 1), repeat=judges):
        chance = torch.ones(2, 3, dtype=torch.float64)
        for vote, yes in zip(votes, ballot, strict=True):
            chance = chance * (vote if yes else 1 - vote)
        expected += chance * (1.0 if 2 * sum(ballot) > judges else 0.5 if 2 * sum(ballot) == judges else 0.0)
    torch.testing.assert_close(majority(votes), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(majority(1 - votes), 1 - expected, rtol=0, atol=1e-14)


def test_published_majorities() -> None:
    """Condorcet's jury: three judges who are each right with 0.6 are right together with 0.648, five with 0.68256."""
    for judges, expected in ((1, 0.6), (2, 0.6), (3, 0.648), (5, 0.68256)):
        assert majority(torch.full((judges, 1), 0.6, dtype=torch.float64)).item() == pytest.approx(expected, abs=1e-12)


def test_the_rules_differ() -> None:
    judges = {"a": Fixed(0.9), "b": Fixed(0.8), "c": Fixed(0.1)}
    ask = (["p", "q"], ["a", "b"], ["c", "d"])
    won = 0.9 * 0.8 * 0.9 + 0.9 * 0.2 * 0.1 + 0.1 * 0.8 * 0.1 + 0.9 * 0.8 * 0.1
    assert Panel(judges, PanelRule.majority)(*ask).tolist() == pytest.approx([won] * 2)
    assert Panel(judges, PanelRule.mean)(*ask).tolist() == pytest.approx([0.6] * 2)
    weighted = Panel(judges, PanelRule.mean, {"c": 3, "a": 1, "b": 0})
    assert weighted(*ask).tolist() == pytest.approx([(0.9 + 3 * 0.1) / 4] * 2)
    assert Panel(judges, PanelRule.maxmin)(*ask).tolist() == pytest.approx([0.5] * 2)


def test_rules_of_one_pair_are_antisymmetric() -> None:
    votes = torch.rand(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5])
    for rule in (majority, egalitarian, lambda one: weighted_mean(one, weights)):
        torch.testing.assert_close(rule(votes) + rule(1 - votes), torch.ones(7, dtype=torch.float64))
    worst = [min(row) for row in votes.T.tolist()]
    against = [min(row) for row in (1 - votes).T.tolist()]
    expected = [(1 + one - other) / 2 for one, other in zip(worst, against, strict=True)]
    assert egalitarian(votes).tolist() == pytest.approx(expected)


def test_a_learner_with_maxmin_serves_the_worst_served_member() -> None:
    """On a game of two members the gradient of min_m P_m(π ≻ π') is that of the member with the lower win rate."""
    votes = torch.tensor([[0.9, 0.4, 0.3], [0.2, 0.8, 0.7], [0.6, 0.9, 1.0]])  # means 0.533, 0.567, 0.833
    assert worst_served(votes).tolist() == pytest.approx([0.9, 0.4, 0.3])
    tied = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert worst_served(tied).tolist() == [0.5, 0.5]
    members = {name: Fixed(row) for name, row in zip("abc", votes.tolist(), strict=True)}
    ask = (["p"] * 3, ["x", "y", "z"], ["u", "v", "w"])
    panel = Panel(members, PanelRule.maxmin)
    assert panel.for_learner(*ask).tolist() == pytest.approx([0.9, 0.4, 0.3])
    assert panel(*ask).tolist() == pytest.approx([0.55, 0.65, 0.65])
    other = Panel(members, PanelRule.mean)
    assert torch.equal(other.for_learner(*ask), other(*ask))


def test_the_gradient_of_the_worst_served_is_that_of_the_minimum() -> None:
    tables = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    opponent = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    logits = torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64, requires_grad=True)
    policy = torch.softmax(logits, 0)
    (exact,) = torch.autograd.grad(torch.einsum("a,mab,b->m", policy, tables, opponent).min(), logits)
    policy = torch.softmax(logits, 0)  # by enumeration, every pair as often as it is drawn
    joint = (policy.detach()[:, None] * opponent).flatten()
    rates = torch.einsum("mp,p->m", tables.flatten(1), joint)
    copies = (tables.flatten(1) * joint / joint.mean()).clone()  # whose plain mean is that expectation
    assert copies.mean(1).tolist() == pytest.approx(rates.tolist())
    worst = worst_served(copies) / (joint / joint.mean())
    scores = torch.log(policy)[:, None].expand(4, 4).flatten()
    (sampled,) = torch.autograd.grad((joint * worst * scores).sum(), logits)
    torch.testing.assert_close(sampled, exact)


# The panel


@pytest.mark.parametrize("rule", list(PanelRule))
@pytest.mark.parametrize(
    "members", [["readability", "formality", "spokenness"], sorted(TEXT_MEASURES), ["brevity", "sentiment"]]
)
def test_it_is_antisymmetric_on_any_texts(members: list[str], rule: PanelRule) -> None:
    preferences = table(measures(*members, rule=rule), ODD_TEXTS)
    assert preferences.dtype == torch.float32
    assert bool(((preferences >= 0) & (preferences <= 1)).all())
    torch.testing.assert_close(preferences + preferences.T, torch.ones_like(preferences), rtol=0, atol=1e-6)
    assert preferences.diagonal().eq(0.5).all()


def test_each_judge_votes_by_the_difference_in_its_own_spread() -> None:
    names, votes = ["brevity", "diversity", "sentiment"], []
    for name in names:
        lead = score(name, FORMAL) - score(name, SPOKEN)
        votes.append(1 / (1 + math.exp(-lead / (0.7 * TEXT_MEASURES[name].spread))))
    a, b, c = votes
    assert len({round(vote, 3) for vote in votes}) == 3
    expected = a * b * c + a * b * (1 - c) + a * (1 - b) * c + (1 - a) * b * c
    found = measures(*names, temperature=0.7)([PROMPT], [FORMAL], [SPOKEN])
    assert found.item() == pytest.approx(expected, abs=1e-5)


def test_at_the_default_the_sentiment_judge_is_the_sentiment_preference() -> None:
    alone = Sentiment(SentimentConfig().temperature)
    panel = measures("sentiment", "brevity", rule=PanelRule.mean)
    first, second = "We had a good walk", "We had a nice walk"  # as brief as each other
    expected = (alone(["p"], [first], [second]).item() + 0.5) / 2
    assert panel(["p"], [first], [second]).item() == pytest.approx(expected)
    assert abs(expected - 0.5) > 0.01


def test_a_typical_difference_decides_a_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        monkeypatch.setitem(TEXT_MEASURES, name, TextMeasure(lambda _, text: 3.0 * len(text), spread=3.0))
    assert measures("one", "two")(["p"], ["ab"], ["a"]).item() == pytest.approx(1 / (1 + math.exp(-8)))


def test_the_style_panel_is_cyclic_on_real_texts() -> None:
    """A Condorcet triple: whichever answer is given, the panel prefers another, so only a mixture is not beaten."""
    section = compose(["preference=style_panel"]).preference
    assert section == PanelConfig(members={name: MeasureConfig(measure=name) for name in STYLE})
    preferences = table(build_preference(section), [PLAIN, SPOKEN, FORMAL])
    assert all(preferences[i, j] > 0.99 for i, j in ((0, 1), (1, 2), (2, 0)))
    policy = largest_equilibrium(preferences.double().numpy())
    assert policy.tolist() == pytest.approx([1 / 3] * 3, abs=0.01)
    mean = table(measures(*STYLE, rule=PanelRule.mean), [PLAIN, SPOKEN, FORMAL])
    assert mean[0, 1].item() == pytest.approx(2 / 3, abs=0.01)
    for name in STYLE:  # no judge does so alone
        assert len({score(name, text) for text in (PLAIN, SPOKEN, FORMAL)}) == 3


def test_every_text_is_scored_once_for_each_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def count(prompt: str, text: str) -> float:
        asked.append((prompt, text))
        return len(text)

    monkeypatch.setitem(TEXT_MEASURES, "count", TextMeasure(count, 1.0))
    preference = measures("count", "brevity")
    preference(["p", "p", "q"], ["a", "a", "a"], ["b", "c", "a"])
    assert sorted(asked) == [("p", "a"), ("p", "b"), ("p", "c"), ("q", "a")]


# The scorers


@pytest.mark.parametrize("name", sorted(TEXT_MEASURES))
def test_a_scorer_is_finite_and_quick_on_any_text(name: str) -> None:
    started = time.perf_counter()
    for text in ODD_TEXTS:
        for prompt in (PROMPT, "", text):
            value = score(name, text, prompt)
            assert isinstance(value, float)
            assert math.isfinite(value), text[:20]
    assert time.perf_counter() - started < 20
    assert TEXT_MEASURES[name].spread > 0


def test_sentiment_is_vaders_compound_score() -> None:
    for text in ("I love it!", "I hate it.", ""):
        expected = SentimentIntensityAnalyzer().polarity_scores(text)["compound"]
        assert score("sentiment", text) == pytest.approx(expected, abs=1e-6)
    assert score("sentiment", "I love it!") > 0.5 > -0.5 > score("sentiment", "I hate it.")


def test_readability_is_minus_lix() -> None:
    # 8 words, 2 sentences, 2 words of more than six letters: 8/2 + 100 · 2/8.
    assert score("readability", "The foxes jumped gracefully. They rested quietly afar.") == pytest.approx(-29)
    # Seven letters are long, six are not: 2/1 + 100 · 1/2.
    assert score("readability", "letters letter") == pytest.approx(-52)
    # An apostrophe and a hyphen are no letters.
    assert score("readability", "they've so-so") == pytest.approx(-2)
    # Lines of a list are sentences and their numbers are no words: 3 of 2, 1 and 1 words.
    assert score("readability", "1. Eat well\n2. Sleep\n\n3. Run") == pytest.approx(-4 / 3)
    assert score("readability", "Eat well\n- Sleep\n\n- Run") == pytest.approx(-4 / 3)
    assert score("readability", 'He said "no." She left. It cost 3.50 at most') == pytest.approx(-9 / 3)
    assert score("readability", "犬。猫。") == pytest.approx(-1)
    assert score("readability", "Go! Now? Yes: do") == pytest.approx(-1)
    assert score("readability", "") == score("readability", "...") == -100
    assert score("readability", PLAIN) > score("readability", SPOKEN) > score("readability", FORMAL)


def test_diversity_is_guirauds_root_ratio() -> None:
    assert score("diversity", "A rose is a rose is a rose") == pytest.approx(3 / math.sqrt(8))
    assert score("diversity", "Yes") == 1
    assert score("diversity", "one two three four") == pytest.approx(2)
    assert score("diversity", "") == 0
    assert score("diversity", "word " * 100) == pytest.approx(0.1)


def test_relevance_is_rouge_1_recall_of_the_prompt() -> None:
    # Lin's own example: "police killed the gunman" against "police kill the gunman".
    assert score("relevance", "Police kill the gunman", "police killed the gunman") == pytest.approx(3 / 4)
    assert score("relevance", "the the the", "the cat and the dog") == pytest.approx(2 / 5), "matches are clipped"
    assert score("relevance", "dog") == 0
    assert score("relevance", "dog", "") == 0
    assert score("relevance", PROMPT) == 1


def test_formality_is_letters_a_word() -> None:
    assert score("formality", "a bcd, efgh!") == pytest.approx(8 / 3)
    assert score("formality", "Don't 1234") == 4, "only letters count"
    assert score("formality", "") == 0


def test_spokenness_is_the_share_of_function_words() -> None:
    assert score("spokenness", "The dog slept on the sofa") == pytest.approx(3 / 6)
    assert score("spokenness", "It's you’ll DON'T isn’t") == 1
    assert score("spokenness", "dogs bark") == score("spokenness", "") == 0


def test_brevity_is_minus_the_words() -> None:
    assert score("brevity", "One, two 3 and well-known four") == -5
    assert score("brevity", "") == 0


def test_a_scorer_is_added_by_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignrun.preferences.text_measures.TEXT_MEASURES", added := {})

    @text_measure(spread=2.0)
    def shout(_prompt: str, completion: str) -> float:
        return float(completion.count("!"))

    assert added == {"shout": TextMeasure(shout, 2.0)}


# The members


def reward(folder: Path, **values: Any) -> RewardModelConfig:
    return RewardModelConfig(path=str(folder), dtype=Precision.float32, device="cpu", **values)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A reward model of two scores, a pair model, and runs of two reward models on one base."""
    folder = tmp_path_factory.mktemp("members")
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(f'{{"prompt": "{n}?", "chosen": "yes {n}", "rejected": "no"}}\n' for n in range(4)))
    data = ["data=jsonl", f"data.path={pairs}", f"data.eval_path={pairs}", "preference=none"]
    for name, rate in (("first", 0.01), ("second", 0.05)):
        smoke = ["experiment=smoke", "algo=reward_model", "train.steps=1", f"optim.learning_rate={rate}"]
        assert cli.main([*smoke, *data, f"run.dir={folder / name}"]) == 0
    labels = {"id2label": {0: "helpful", 1: "brief"}, "label2id": {"helpful": 0, "brief": 1}}
    return {
        "reward": random_model("qwen3", folder / "reward", **labels),
        "pair": random_causal("llama", folder / "pair"),
        "first": folder / "first",
        "second": folder / "second",
    }


ASK = (["0?", "1?"], ["yes 0", "no"], ["no", "yes 1"])


def sections(folders: dict[str, Path]) -> dict[str, Any]:
    """A member of every kind, as it is typed."""
    pair = {"path": str(folders["pair"]), "dtype": "float32", "device": "cpu"}
    return {
        "helpful": {"name": "reward_model", "path": str(folders["reward"]), "labels": {"helpful": 1}, "device": "cpu"},
        "brief": {"name": "reward_model", "path": str(folders["reward"]), "labels": {"brief": 1}, "device": "cpu"},
        "pair": {"name": "pair_model", **pair},
        "first": {"name": "bradley_terry", "path": str(folders["first"])},
        "second": {"name": "reward_model", "path": str(folders["second"])},
        "letters": {"name": "letters"},
        "style": {"name": "style_panel", "rule": "mean"},
    }


def test_anything_may_be_a_member(folders: dict[str, Path]) -> None:
    """Votes are what each preference says alone; adapters share the policy's base, and scores of one model it."""
    policy, _ = load_policy()
    section = PanelConfig(members=sections(folders), rule=PanelRule.mean)
    panel = build(section, policy.backbone)
    assert isinstance(panel, Panel)
    votes = panel.votes(*ASK)
    other, _ = load_policy()
    for vote, member in zip(votes, section.members.values(), strict=True):
        torch.testing.assert_close(vote.float(), build_preference(member, other.backbone)(*ASK), rtol=0, atol=1e-6)
    assert len({round(vote[0].item(), 6) for vote in votes}) == len(votes)
    assert panel(*ASK).tolist() == pytest.approx(votes.mean(0).tolist(), abs=1e-6)
    torch.testing.assert_close(panel(*ASK) + panel(ASK[0], ASK[2], ASK[1]), torch.ones(2))
    helpful, brief, *_ = panel._members.values()
    assert helpful._published.model is brief._published.model
    assert [name for name in policy.backbone.peft.peft_config if "feedback" in name] == ["feedback", "feedback_2"]
    assert panel.counts()["helpful/reward_model/asked"] > 0


def test_each_member_is_logged_and_the_lowest_of_them() -> None:
    panel = Panel(
        {"a": Fixed([0.2, 0.4]), "b": Fixed(0.9), "in": Panel({"x": Fixed(0.5), "y": Fixed(1.0)}, PanelRule.mean)},
        PanelRule.mean,
    )
    assert panel.drain() == {}
    for _ in range(2):
        panel(["p", "q"], ["a", "b"], ["c", "d"])
    found = panel.drain()
    assert found.pop("panel_worst") == pytest.approx(0.3)
    expected = {
        "panel/a": 0.3,
        "panel/b": 0.9,
        "panel/in": 0.75,
        "in/panel/x": 0.5,
        "in/panel/y": 1.0,
        "in/panel_worst": 0.5,
    }
    assert found == pytest.approx(expected)
    assert panel.drain() == {}


class Meeting(Preference):
    """Answers only while another one is being asked."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self._barrier = barrier

    def __call__(self, prompts: Any, first: Any, second: Any) -> torch.Tensor:
        self._barrier.wait(timeout=10)
        return torch.full((len(prompts),), 0.5)


class Counting(Fixed):
    """Counts how often it is asked."""

    asked = 0

    def __call__(self, prompts: Any, first: Any, second: Any) -> torch.Tensor:
        self.asked += 1
        return super().__call__(prompts, first, second)


class Failing(Preference):
    def __call__(self, prompts: Any, first: Any, second: Any) -> torch.Tensor:
        raise RunError("preference=judge: http://x failed 7 times: raise preference.timeout_seconds")


def test_members_are_asked_side_by_side_and_one_failure_loses_no_answer() -> None:
    barrier = threading.Barrier(3)
    members: dict[str, Preference] = {name: Meeting(barrier) for name in "abc"}
    assert Panel(members, PanelRule.mean, waiting="ab")(*ASK).tolist() == [0.5, 0.5]
    good, slow = Counting(0.5), Counting(0.5)
    panel = Panel({"bad": Failing(), "good": good, "slow": slow}, PanelRule.mean, waiting=["slow"])
    with pytest.raises(RunError) as caught:
        panel(*ASK)
    expected = "preference=judge: http://x failed 7 times: raise preference.members.bad.timeout_seconds"
    assert str(caught.value) == expected
    assert good.asked == slow.asked == 1


def test_rows_are_checked_for_every_member() -> None:
    function = {"name": "function", "function": "alignrun.preferences.examples:last_number", "kind": "reward"}
    panel = build(PanelConfig(members={"right": function, "short": {"name": "measure", "measure": "brevity"}}))
    with pytest.raises(InputError, match=r"^preference\.members\.right\.function=.* takes 'answer', and a:1 has no"):
        panel.check([Example("p", "a:1")])
    panel.check([Example("p", "a:1", columns={"answer": "3"})])


def test_a_stored_panel_of_others_runs_and_loads_nothing(folders: dict[str, Path]) -> None:
    members = (
        "{a: {name: function, function: 'pty:spawn'}, b: {name: reward_model, path: some/model}, c: {name: letters}}"
    )
    found = plain(compose(["preference=panel", f"preference.members={members}"]))
    ask = r"run preference\.members\.a\.function=pty:spawn; load a model from .*members\.b\.path=some/model"
    with pytest.raises(InputError, match=ask):
        check_own(found, "", "run")
    check_own(found, sign(found), "run")
    changed = json.loads(json.dumps(found))
    changed["preference"]["members"]["a"]["function"] = "pty:fork"
    with pytest.raises(InputError, match="pty:fork"):
        check_own(changed, sign(found), "run")
    own = ["preference.members.a.function=mine:f", "preference.members.b.path=/mine"]
    check_own(found, "", "run", overrides=own)
    with pytest.raises(InputError, match="pty:spawn"):  # since it is merged with what is stored
        check_own(found, "", "run", overrides=["preference.members={d: {name: letters}}"])
    safe = plain(compose(["preference=style_panel"]))
    check_own(safe, "", "run")


def test_members_are_pinned_and_their_paths_are_absolute(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    section = PanelConfig(members=sections(folders))
    pins = _preference_pins(section)
    assert set(pins) == {f"feedback model {name}" for name in ("helpful", "brief", "pair", "first", "second")}
    assert all(pins.values())
    monkeypatch.chdir(folders["first"].parent)
    members = "{a: {name: bradley_terry, path: ./first}, b: {name: letters}}"
    config = anchored(compose(["preference=panel", f"preference.members={members}"]))
    assert config.preference.members["a"].path == str(folders["first"])


def test_a_run_trains_and_evaluates_on_a_panel(folders: dict[str, Path], tmp_path: Path) -> None:
    members = f"{{one: {{name: bradley_terry, path: {folders['first']}}}, other: {{name: measure, measure: brevity}}}}"
    run = tmp_path / "run"
    smoke = ["experiment=smoke", "train.steps=1", f"run.dir={run}"]
    assert cli.main([*smoke, "preference=panel", f"preference.members={members}", "preference.rule=maxmin"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = {name: value for row in rows for name, value in row.items() if "panel" in name}
    assert {"panel/one", "panel/other", "panel_worst", "eval/panel/one", "eval/panel/other", "eval/panel_worst"} == set(
        seen
    )
    assert seen["eval/panel_worst"] == min(seen["eval/panel/one"], seen["eval/panel/other"])
    assert '"feedback model one"' in (run / "pins.json").read_text()


# The settings


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ("{}", "preference.members must name at least two, as in preference.members='{helpful:"),
        ("{a: {name: letters}}", "preference.members must name at least two"),
        ("{a: 3, b: {name: letters}}", "preference.members.a must be a section with the name of a preference"),
        ("{a: {name: mesure}}", "preference.members.a.name has no mesure: did you mean measure?"),
        ("{a: {name: none}}", "preference.members.a.name has no none: "),
        ("{a: {name: measure, measur: brevity}}", "preference.members.a.measur is unknown: did you mean measure?"),
        ("{a: {name: measure, measure: wit}}", "preference.members.a.measure has no wit: choose from sentiment, "),
        ("{a: {name: measure, measure: readabilty}}", "a.measure has no readabilty: did you mean readability?"),
        ("{a: {name: sentiment, temperature: hot}}", "preference.members.a.temperature: Value 'hot' of type 'str'"),
        ("{a: {name: sentiment, temperature: 0}}", "preference.members.a.temperature must be positive, not 0"),
        ("{a: {name: judge, url: 'http://x'}}", "preference.members.a.model must be given"),
        ("{a: {name: panel, members: {b: {name: letters}}}}", "preference.members.a.members must name at least two"),
        ("{a: {name: pair_model, path: x, answers: {frist: A}}}", "a.answers.frist is unknown: did you mean first?"),
        ("{a b: {name: letters}}", "preference.members.a b must be named with letters, digits, _ and -"),
    ],
)  # fmt: skip
def test_wrong_members_are_refused_in_one_line(members: str, expected: str) -> None:
    with pytest.raises(InputError) as error:
        compose(["experiment=smoke", "preference=panel", f"preference.members={members}"])
    assert expected in str(error.value)
    assert str(error.value).startswith("config: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["rule=best"], "expected one of [majority, mean, maxmin]"),
        (["weights={readability: 1}"], "preference.weights are those of a mean: set preference.rule=mean"),
        (["rule=mean", "weights={readability: 1}"], "weight to each of readability, formality, spokenness, and form"),
        (["rule=mean", "weights={readability: 1, formality: 0, spokenness: -1}"], "must not be negative"),
        (["rule=mean", "weights={readability: 0, formality: 0, spokenness: 0}"], "must not all be 0"),
        (["members.formality.temperature=0"], "preference.members.formality.temperature must be positive"),
        (["member={}"], "unknown key preference.member"),
    ],
)  # fmt: skip
def test_wrong_rules_are_refused_in_one_line(overrides: list[str], expected: str) -> None:
    with pytest.raises(InputError) as error:
        compose(["experiment=smoke", "preference=style_panel", *(f"preference.{override}" for override in overrides)])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_keys_of_a_dictionary_may_be_new_and_those_of_another_choice_not() -> None:
    labelled = compose(["preference=reward_model", "preference.path=x", "preference.labels={brief: 1}"])
    assert labelled.preference.labels == {"brief": 1.0}
    with pytest.raises(InputError, match=r"preference\.members is not valid here: it belongs to preference=panel"):
        compose(["preference=sentiment", "preference.members={a: {name: letters}}"])
    with pytest.raises(InputError, match=r"unknown key preference\.membres: did you mean preference\.members\?"):
        compose(["preference=style_panel", "+preference.membres=1"])


def test_settings_survive_their_file_and_reach_the_members(tmp_path: Path) -> None:
    texts = "{name: judge, url: 'http://x', model: m, template: '\\${x} {prompt} {first} {second}', cache: false}"
    members = f"{{long: {{name: measure, measure: brevity, temperature: 2}}, other: {texts}}}"
    config = compose(["preference=panel", f"preference.members={members}", "preference.rule=mean"])
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load(tmp_path / "config.yaml") == config
    assert config.preference.members["other"].template == "${x} {prompt} {first} {second}"
    changed = load(tmp_path / "config.yaml", ["preference.members.long.temperature=3"])
    assert changed.preference.members["long"] == MeasureConfig(measure="brevity", temperature=3.0)
