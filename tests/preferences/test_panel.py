"""The panel: exact majorities, a real Condorcet cycle, and scorers that say what their sources say on any text."""

import itertools
import math
import time

import pytest
import torch
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from alignrun import cli
from alignrun.errors import InputError
from alignrun.games import largest_equilibrium
from alignrun.launch.build import build_preference
from alignrun.launch.compose import compose, dump, load
from alignrun.preferences.panel import Panel, PanelConfig, PanelRule, build, majority
from alignrun.preferences.scorers import SCORERS, Scorer, scorer
from alignrun.preferences.sentiment import Sentiment, SentimentConfig

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
    return SCORERS[name].score(prompt, completion)


def table(preference: Panel, texts: list[str]) -> torch.Tensor:
    first, second = zip(*itertools.product(texts, repeat=2), strict=True)
    return preference([PROMPT] * len(first), first, second).reshape(len(texts), -1)


class Fixed:
    """A judge with one probability for every pair."""

    def __init__(self, vote: float) -> None:
        self._vote = vote

    def __call__(self, prompts: list[str], first: list[str], second: list[str]) -> torch.Tensor:
        return torch.full((len(prompts),), self._vote)


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
    judges = [Fixed(0.9), Fixed(0.8), Fixed(0.1)]
    ask = (["p", "q"], ["a", "b"], ["c", "d"])
    won = 0.9 * 0.8 * 0.9 + 0.9 * 0.2 * 0.1 + 0.1 * 0.8 * 0.1 + 0.9 * 0.8 * 0.1
    assert Panel(judges, PanelRule.majority)(*ask).tolist() == pytest.approx([won] * 2)
    assert Panel(judges, PanelRule.mean)(*ask).tolist() == pytest.approx([0.6] * 2)


# The panel


@pytest.mark.parametrize("rule", list(PanelRule))
@pytest.mark.parametrize(
    "members", [["readability", "formality", "spokenness"], sorted(SCORERS), ["brevity", "sentiment"]]
)
def test_it_is_antisymmetric_on_any_texts(members: list[str], rule: PanelRule) -> None:
    preferences = table(build(PanelConfig(scorers=members, rule=rule)), ODD_TEXTS)
    assert preferences.dtype == torch.float32
    assert bool(((preferences >= 0) & (preferences <= 1)).all())
    torch.testing.assert_close(preferences + preferences.T, torch.ones_like(preferences), rtol=0, atol=1e-6)
    assert preferences.diagonal().eq(0.5).all()


def test_each_judge_votes_by_the_difference_in_its_own_spread() -> None:
    config = PanelConfig(scorers=["brevity", "diversity", "sentiment"], temperature=0.7)
    votes = []
    for name in config.scorers:
        lead = score(name, FORMAL) - score(name, SPOKEN)
        votes.append(1 / (1 + math.exp(-lead / (0.7 * SCORERS[name].spread))))
    a, b, c = votes
    assert len({round(vote, 3) for vote in votes}) == 3
    expected = a * b * c + a * b * (1 - c) + a * (1 - b) * c + (1 - a) * b * c
    assert build(config)([PROMPT], [FORMAL], [SPOKEN]).item() == pytest.approx(expected, abs=1e-5)


def test_at_the_default_the_sentiment_judge_is_the_sentiment_preference() -> None:
    alone = Sentiment(SentimentConfig().temperature)
    panel = build(PanelConfig(scorers=["sentiment", "brevity"], rule=PanelRule.mean))
    first, second = "We had a good walk", "We had a nice walk"  # as brief as each other
    expected = (alone(["p"], [first], [second]).item() + 0.5) / 2
    assert panel(["p"], [first], [second]).item() == pytest.approx(expected)
    assert abs(expected - 0.5) > 0.01


def test_a_typical_difference_decides_a_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        monkeypatch.setitem(SCORERS, name, Scorer(lambda _, text: 3.0 * len(text), spread=3.0))
    preference = build(PanelConfig(scorers=["one", "two"]))
    assert preference(["p"], ["ab"], ["a"]).item() == pytest.approx(1 / (1 + math.exp(-8)))


def test_the_default_panel_runs_in_a_circle_on_real_texts() -> None:
    """A Condorcet triple: whichever answer is given, the panel prefers another, so only a mixture is not beaten."""
    preferences = table(build(PanelConfig()), [PLAIN, SPOKEN, FORMAL])
    assert all(preferences[i, j] > 0.99 for i, j in ((0, 1), (1, 2), (2, 0)))
    policy = largest_equilibrium(preferences.double().numpy())
    assert policy.tolist() == pytest.approx([1 / 3] * 3, abs=0.01)
    assert table(build(PanelConfig(rule=PanelRule.mean)), [PLAIN, SPOKEN, FORMAL])[0, 1].item() == pytest.approx(
        2 / 3, abs=0.01
    )
    for name in PanelConfig().scorers:  # no judge does so alone
        assert len({score(name, text) for text in (PLAIN, SPOKEN, FORMAL)}) == 3


def test_every_text_is_scored_once_for_each_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def count(prompt: str, text: str) -> float:
        asked.append((prompt, text))
        return len(text)

    monkeypatch.setitem(SCORERS, "count", Scorer(count, 1.0))
    preference = build(PanelConfig(scorers=["count", "brevity"]))
    preference(["p", "p", "q"], ["a", "a", "a"], ["b", "c", "a"])
    assert sorted(asked) == [("p", "a"), ("p", "b"), ("p", "c"), ("q", "a")]


# The scorers


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_a_scorer_is_finite_and_quick_on_any_text(name: str) -> None:
    started = time.perf_counter()
    for text in ODD_TEXTS:
        for prompt in (PROMPT, "", text):
            value = score(name, text, prompt)
            assert isinstance(value, float)
            assert math.isfinite(value), text[:20]
    assert time.perf_counter() - started < 20
    assert SCORERS[name].spread > 0


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
    monkeypatch.setattr("alignrun.preferences.scorers.SCORERS", added := {})

    @scorer(spread=2.0)
    def shout(_prompt: str, completion: str) -> float:
        return float(completion.count("!"))

    assert added == {"shout": Scorer(shout, 2.0)}


# The settings


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("scorers=[readabilty,brevity]", "preference.scorers has no readabilty: did you mean readability? choose from"),
        ("scorers=[xyz,brevity]", "preference.scorers has no xyz: choose from sentiment, readability, diversity"),
        ("scorers=[brevity]", "preference.scorers must name at least two, not 1: choose from sentiment"),
        ("scorers=[]", "preference.scorers must name at least two, not 0"),
        ("scorers=[brevity,sentiment,brevity]", "preference.scorers names one twice: brevity, sentiment, brevity"),
        ("rule=best", "expected one of [majority, mean]"),
        ("temperature=0", "preference.temperature must be positive, not 0"),
        ("temperature=.nan", "preference.temperature"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_in_one_line(override: str, expected: str) -> None:
    with pytest.raises(InputError) as error:
        compose(["experiment=smoke", "preference=panel", f"preference.{override}"])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_survive_their_file_and_reach_the_panel(tmp_path) -> None:
    given = ["preference.scorers=[brevity,diversity,sentiment]", "preference.rule=mean", "preference.temperature=2"]
    config = compose(["preference=panel", *given])
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load(tmp_path / "config.yaml") == config
    leads = [
        (score(name, "I like it") - score(name, SPOKEN)) / (2 * SCORERS[name].spread)
        for name in ("brevity", "diversity", "sentiment")
    ]
    expected = sum(1 / (1 + math.exp(-lead)) for lead in leads) / 3
    assert build_preference(config.preference)(["p"], ["I like it"], [SPOKEN]).item() == pytest.approx(expected)


def test_a_run_trains_on_it(tmp_path) -> None:
    arguments = ["experiment=smoke", "preference=panel", "train.steps=1", f"run.dir={tmp_path / 'run'}"]
    assert cli.main(arguments) == 0
