import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from alignrun.errors import InputError
from alignrun.evaluation.calibration import accuracy
from alignrun.evaluation.disagreement import agreement_with_disagreement, human_ceiling, intransitive_share, triples


def test_ceiling_by_hand() -> None:
    """Unanimous: three agree. Split 2 to 1: only the third has others of one mind. With a tie: see the last row."""
    ceiling = human_ceiling([(1, 1, 1), (1, 1, 0), (1, 0), (1, 0.5, 1)])
    assert ceiling is not None
    # In the last row each 1 has the others ½ and 1, which lean to 1; the ½ takes no side.
    assert ceiling.pairs.tolist() == [0, 0, 0, 1, 2, 2, 3, 3]
    assert ceiling.scores.tolist() == [1, 1, 1, 0, 0, 0, 1, 1]
    assert ceiling.majorities.tolist() == [1, 1, 1, 1, 0, 1, 1, 1]
    assert ceiling.agreement == 5 / 8


@pytest.mark.parametrize("annotators", [2, 3, 4, 5])
def test_ceiling_of_independent_votes_is_the_chance_that_one_joins_the_majority(annotators: int) -> None:
    rng = np.random.default_rng(annotators)
    votes = (rng.random((8000, annotators)) < 0.8).astype(float)
    ceiling = human_ceiling(votes.tolist())
    others = annotators - 1
    chosen = sum(math.comb(others, k) * 0.8**k * 0.2 ** (others - k) for k in range(others + 1) if 2 * k > others)
    rejected = sum(math.comb(others, k) * 0.8**k * 0.2 ** (others - k) for k in range(others + 1) if 2 * k < others)
    expected = (0.8 * chosen + 0.2 * rejected) / (chosen + rejected)
    assert ceiling is not None
    assert ceiling.agreement == pytest.approx(expected, abs=0.01)


def test_coin_tosses_agree_half_of_the_time() -> None:
    votes = np.random.default_rng(0).integers(0, 2, (8000, 3)).astype(float)
    ceiling = human_ceiling(votes.tolist())
    assert ceiling is not None
    assert ceiling.agreement == pytest.approx(0.5, abs=0.015)


def test_a_model_answers_the_questions_of_the_ceiling() -> None:
    """Where 80% would choose the first, a model that says so is right more often than one annotator."""
    rng = np.random.default_rng(0)
    votes = (rng.random((4000, 4)) < 0.8).astype(float)
    ceiling = human_ceiling(votes.tolist())
    assert ceiling is not None
    scores, judged = accuracy(np.full(4000, 0.8)[ceiling.pairs], ceiling.majorities)
    assert judged.all()
    assert scores.mean() == pytest.approx((0.512 + 0.384) / (0.512 + 0.384 + 0.104), abs=0.01)
    assert scores.mean() > ceiling.agreement + 0.05


@pytest.mark.parametrize("votes", [[], [()], [(1,), (0,)], [(0.5, 0.5), (1, 0.5)], [(0.5, 0.5, 1)]])
def test_no_ceiling_without_two_votes_for_a_side(votes: list[tuple[float, ...]]) -> None:
    assert human_ceiling(votes) is None


@pytest.mark.parametrize("wrong", [2, 0.7, -1, math.nan])
def test_unknown_votes(wrong: float) -> None:
    with pytest.raises(InputError, match="row 1 has"):
        human_ceiling([(1, 0), (1, wrong)])
    with pytest.raises(InputError, match="row 1 has"):
        agreement_with_disagreement([0.5, 0.5], [(1, 0), (1, wrong)])


VOTES = [(1.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.5), (1.0,), (1.0, 0.0), (1.0, 1.0, 1.0, 0.0)]
SHARES = np.array([1, 2 / 3, 3 / 4, 1 / 2, 3 / 4])
PREDICTED = np.array([0.9, 0.4, 0.8, 0.99, 0.45, 0.6])
HELD = PREDICTED[[0, 1, 2, 4, 5]]


def test_agreement_by_hand() -> None:
    result = agreement_with_disagreement(PREDICTED, VOTES)
    assert result is not None
    assert result.pairs == 5, "the pair of one vote is left out"
    # |P − ½| = .4 .1 .3 .05 .1 has the ranks 5 2½ 4 1 2½; |share − ½| = ½ ⅙ ¼ 0 ¼ has 5 2 3½ 1 3½.
    assert result.certainty_correlation == pytest.approx(np.corrcoef([5, 2.5, 4, 1, 2.5], [5, 2, 3.5, 1, 3.5])[0, 1])
    # P and its complements: .1 .2 .4 .4 .45 .55 .6 .6 .8 .9; shares: 0 ¼ ¼ ⅓ ½ ½ ⅔ ¾ ¾ 1.
    p = [10, 3.5, 9, 5, 7.5, 1, 7.5, 2, 6, 3.5]
    share = [10, 7, 8.5, 5.5, 8.5, 1, 4, 2.5, 5.5, 2.5]
    assert result.preference_correlation == pytest.approx(np.corrcoef(p, share)[0, 1])
    divergence = stats.entropy([SHARES, 1 - SHARES], [HELD, 1 - HELD]).mean()
    assert result.excess_log_loss == pytest.approx(divergence)


def test_agreement_does_not_depend_on_the_order_of_a_pair() -> None:
    rng = np.random.default_rng(0)
    votes = rng.choice([0.0, 0.5, 1.0], (60, 3))
    predicted = rng.integers(1, 20, 60) / 20
    flip = rng.random(60) < 0.5
    flipped = np.where(flip[:, None], 1 - votes, votes)
    first = agreement_with_disagreement(predicted, votes.tolist())
    other = agreement_with_disagreement(np.where(flip, 1 - predicted, predicted), flipped.tolist())
    assert first is not None
    assert other is not None
    assert other.certainty_correlation == pytest.approx(first.certainty_correlation)
    assert other.preference_correlation == pytest.approx(first.preference_correlation)
    assert other.excess_log_loss == pytest.approx(first.excess_log_loss)


def test_a_model_that_knows_the_shares() -> None:
    result = agreement_with_disagreement(SHARES, [VOTES[i] for i in (0, 1, 2, 4, 5)])
    assert result is not None
    assert result.certainty_correlation == pytest.approx(1)
    assert result.preference_correlation == pytest.approx(1)
    assert result.excess_log_loss == pytest.approx(0, abs=1e-7)


def test_a_model_that_is_surest_where_people_are_divided() -> None:
    result = agreement_with_disagreement([0.6, 0.8, 0.95], [(1, 1, 1, 1), (1, 1, 1, 0), (1, 1, 0, 0)])
    assert result is not None
    assert result.certainty_correlation == pytest.approx(-1)
    assert result.preference_correlation is not None
    assert 0 < result.preference_correlation < 1, "the side is right nevertheless"


def test_correlations_of_constants() -> None:
    unanimous = agreement_with_disagreement([0.6, 0.8], [(1, 1), (1, 1)])
    assert unanimous is not None
    assert unanimous.certainty_correlation is None
    assert unanimous.preference_correlation == pytest.approx(2 / math.sqrt(5))
    undecided = agreement_with_disagreement([0.5, 0.5], [(1, 1), (1, 0)])
    assert undecided is not None
    assert undecided.certainty_correlation is None
    assert undecided.preference_correlation is None
    sure = agreement_with_disagreement([0.3, 0.7, 0.7], [(1, 1), (1, 1), (1, 0)])
    assert sure is not None
    assert sure.certainty_correlation is None, "as sure of 0.3 as of 0.7"


def test_no_agreement_without_two_votes() -> None:
    assert agreement_with_disagreement([0.6, 0.8], [(1,), ()]) is None


def test_a_prediction_for_every_pair() -> None:
    with pytest.raises(InputError, match="2 predictions for the votes of 1 pairs"):
        agreement_with_disagreement([0.6, 0.8], [(1, 1)])


def test_triples_ask_each_pair_once() -> None:
    found = triples([["a", "b", "a", "c", "d"], ["a", "a", "b"], ["x", "y", "z"], []], cap=10)
    asked = [(prompt, {first, second}) for prompt, first, second in found.pairs]
    expected = [(0, set(pair)) for pair in combinations("abcd", 2)] + [
        (2, set(pair)) for pair in combinations("xyz", 2)
    ]
    assert len(asked) == 9
    assert all(pair in asked for pair in expected)
    assert found.prompts.tolist() == [0, 0, 0, 0, 2]


def test_tables_hold_the_answers_of_their_own_triple() -> None:
    strength = {"a": 0.1, "b": 0.15, "c": 0.3, "d": 0.31, "x": 0.0, "y": 0.4, "z": 0.2}
    found = triples([list("abcd"), list("xyz")], cap=10)
    tables = found.tables([0.5 + strength[first] - strength[second] for _, first, second in found.pairs])
    members = [*combinations("abcd", 3), tuple("xyz")]
    expected = [[[0.5 + strength[a] - strength[b] for b in trio] for a in trio] for trio in members]
    np.testing.assert_allclose(tables, expected)
    with pytest.raises(InputError, match=r"9 questions, answers of shape \(2,\)"):
        found.tables([0.5, 0.5])


def test_a_cap_chooses_by_the_seed_and_asks_only_what_it_needs() -> None:
    groups = [list("abcdefgh"), list("abcdefgh"), list("abc")]
    capped = triples(groups, cap=2, seed=1)
    assert capped.prompts.tolist() == [0, 0, 1, 1, 2]
    assert len({tuple(row) for row in capped.questions}) == 5, "no triple twice"
    assert len(capped.pairs) <= 15
    assert set(capped.questions.ravel()) == set(range(len(capped.pairs)))
    again, other = triples(groups, cap=2, seed=1), triples(groups, cap=2, seed=2)
    assert again.pairs == capped.pairs
    assert other.pairs != capped.pairs
    sets = [
        {frozenset(capped.pairs[q][1:]) for row in capped.questions[capped.prompts == p] for q in row} for p in (0, 1)
    ]
    assert sets[0] != sets[1], "not the same choice for every prompt"
    assert triples([["q"], groups[1]], cap=2, seed=1).pairs == tuple(p for p in capped.pairs if p[0] == 1)


def test_a_capped_choice_is_uniform() -> None:
    """Every one of ten triples of five completions is as likely."""
    several = triples([list("abcde")] * 20, cap=7)
    assert len({tuple(row) for row in several.questions}) == 20 * 7, "no triple twice"
    found = triples([list("abcde")] * 4000, cap=1)
    counts: dict[frozenset[str], int] = {}
    for row in found.questions:
        trio = frozenset(text for q in row for text in found.pairs[q][1:])
        counts[trio] = counts.get(trio, 0) + 1
    assert len(counts) == 10
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def cycle(strength: float) -> list[list[float]]:
    up, down = 0.5 + strength, 0.5 - strength
    return [[0.5, up, down], [down, 0.5, up], [up, down, 0.5]]


ORDER = [[0.5, 0.6, 0.9], [0.4, 0.5, 0.7], [0.1, 0.3, 0.5]]
TIED = [[0.5, 0.6, 0.5], [0.4, 0.5, 0.6], [0.5, 0.4, 0.5]]


def test_cycles_by_hand() -> None:
    result = intransitive_share([cycle(0.3), cycle(-0.01), ORDER, TIED, ORDER], [0, 1, 2, 3, 4], 0.95)
    assert result is not None
    assert (result.share, result.triples) == (0.4, 5)
    assert 0 <= result.low < 0.4 < result.high <= 1


@pytest.mark.parametrize("swap", [(0, 1), (1, 2), (0, 2)])
def test_renaming_keeps_cycles_and_orders(swap: tuple[int, int]) -> None:
    order = np.arange(3)
    order[list(swap)] = order[list(swap)[::-1]]
    for table, share in ((cycle(0.2), 1.0), (ORDER, 0.0)):
        result = intransitive_share([np.array(table)[np.ix_(order, order)]], [0], 0.95)
        assert result is not None
        assert result.share == share


def test_coin_tosses_have_a_quarter() -> None:
    rng = np.random.default_rng(0)
    found = triples([range(6)] * 400, cap=20)
    result = intransitive_share(found.tables(rng.random(len(found.pairs))), found.prompts, 0.95)
    assert result is not None
    assert result.triples == 400 * 20
    assert result.share == pytest.approx(0.25, abs=0.02)
    assert result.low < 0.25 < result.high
    assert result.high - result.low < 0.05


def test_a_reward_has_no_cycles() -> None:
    """Not even among rewards that are equal or nearly so."""
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, 4, (200, 6)) + rng.choice([0.0, 1e-16, 1e-9], (200, 6))
    found = triples([range(6)] * 200, cap=20)
    answers = [1 / (1 + math.exp(rewards[prompt, b] - rewards[prompt, a])) for prompt, a, b in found.pairs]
    result = intransitive_share(found.tables(answers), found.prompts, 0.95)
    assert result is not None
    assert (result.share, result.low) == (0, 0)
    assert result.high == pytest.approx(1 - 0.025 ** (1 / 200)), "two hundred prompts do not speak for all"


def test_the_interval_is_over_prompts() -> None:
    """Twenty copies of each prompt's answer say no more than one."""
    tables = [cycle(0.2) if i % 3 == 0 else ORDER for i in range(30)]
    once = intransitive_share(tables, range(30), 0.95)
    copied = intransitive_share([t for t in tables for _ in range(20)], [i for i in range(30) for _ in range(20)], 0.95)
    assert once is not None
    assert copied is not None
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))


def test_no_share_without_triples() -> None:
    found = triples([["a", "b"], ["a", "a", "a", "b"]], cap=5)
    assert found.pairs == ()
    assert intransitive_share(found.tables([]), found.prompts, 0.95) is None


def test_unusable_tables() -> None:
    with pytest.raises(InputError, match="P \\+ Pᵀ = 1"):
        intransitive_share([[[0.5, 0.6, 0.5], [0.6, 0.5, 0.5], [0.5, 0.5, 0.5]]], [0], 0.95)
    with pytest.raises(InputError, match=r"shape is \(1, 2, 2\)"):
        intransitive_share([[[0.5, 0.6], [0.4, 0.5]]], [0], 0.95)
    with pytest.raises(InputError, match="P \\+ Pᵀ = 1"):
        intransitive_share([np.full((3, 3), math.nan)], [0], 0.95)
