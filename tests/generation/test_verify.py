"""Drafts that become completions of a target, by enumeration of every draft, acceptance and redraw on a game LM."""

import pytest
import torch
from drafts import LENGTH, VOCABULARY, Texts, all_texts, cells, game_policy, mixture, outcomes, tempered, whole
from torch import Tensor

from alignrun.generation.streams import Source
from alignrun.generation.verify import verify
from alignrun.types import Completions, Role


@pytest.fixture(scope="module")
def texts() -> Texts:
    """Some tokens are nearly impossible in the first place; here they are not."""
    return all_texts(game_policy()[0], least=-4)


CASES = [
    *((Role.policy, mixture(beta), 1.0, 0) for beta in (0.0, 0.125, 0.5, 1.0)),
    *((Role.policy, mixture(beta), temperature, 0) for beta in (0.125, 0.6) for temperature in (0.5, 1.7)),
    (Role.policy, mixture(0.3), 0.8, 3),
    (Role.reference, mixture(0.3), 1.0, 0),
    (Role.policy, Role.reference, 1.0, 0),
    (mixture(0.5), Role.policy, 0.7, 0),
]


@pytest.mark.parametrize(("drawn_from", "target", "temperature", "top_k"), CASES)
def test_the_results_have_exactly_the_distribution_of_the_target(
    texts: Texts, drawn_from: Source, target: Source, temperature: float, top_k: int
) -> None:
    """Σ_y π(y) Σ_outcomes P(outcome) m(y' | prefix) = m(y') for all 156 completions y', end tokens included."""
    pi, m = (tempered(texts, source, temperature, top_k) for source in (drawn_from, target))
    joint, found = outcomes(texts, drawn_from, target, texts.sampling(temperature=temperature, top_k=top_k), pi, m)
    torch.testing.assert_close(joint.sum(1), whole(texts, pi), rtol=0, atol=1e-15)
    torch.testing.assert_close(joint.sum(0), whole(texts, m), rtol=0, atol=1e-15)
    same = (pi - m).abs().max() < 1e-12
    assert bool(same) == (not bool(found.rejected.any()))
    assert same or float((joint - torch.outer(joint.sum(1), joint.sum(0))).abs().max()) > 1e-3, "they are not paired"


def test_a_token_is_rejected_as_often_as_the_total_variation_says(texts: Texts) -> None:
    pi, m = (tempered(texts, source, 1.0) for source in (Role.policy, mixture(0.5)))
    drafted, accepting, redrawing, weights = cells(texts, pi, m)
    drafts = Completions(texts.completions.tokens[drafted], texts.completions.mask[drafted])
    found = verify(
        drafts, Role.policy, mixture(0.5), texts.sampling(),
        lambda role, places: texts.logits[role][drafted].flatten(0, 1)[places], accepting, redrawing,
    )  # fmt: skip
    first = weights[found.rejected & (found.accepted == 0)].sum()
    torch.testing.assert_close(first, (pi - m)[0, 0].abs().sum() / 2, rtol=0, atol=1e-14)


def test_a_draft_that_the_target_forbids_is_redrawn_and_a_broken_model_gives_valid_tokens(texts: Texts) -> None:
    drafts = Completions(torch.tensor([[4, 5, 1]]), torch.ones(1, LENGTH, dtype=torch.bool))
    logits = torch.zeros(LENGTH, VOCABULARY)
    logits[1, 5] = -torch.inf
    policy = torch.zeros(LENGTH, VOCABULARY)
    numbers = torch.zeros(1, LENGTH, dtype=torch.float64)

    def at(role: Role, places: Tensor) -> Tensor:
        return (policy if role is Role.policy else logits)[places]

    found = verify(drafts, Role.policy, Role.reference, texts.sampling(), at, numbers, numbers + 0.5)
    assert (found.accepted.tolist(), found.rejected.tolist(), found.ended.tolist()) == ([1], [True], [False])
    assert found.prefix.tokens.tolist() == [[4, int(found.redrawn), texts.pad]]
    assert int(found.redrawn) != 5
    policy[1, 5] = -torch.inf  # a token that neither would draw, as from a server that rounds differently
    assert verify(drafts, Role.policy, Role.reference, texts.sampling(), at, numbers, numbers).accepted.tolist() == [1]
    logits[0] = torch.nan
    broken = verify(drafts, Role.policy, Role.reference, texts.sampling(), at, numbers, numbers)
    assert broken.accepted.tolist() == [0]
    assert 0 <= int(broken.redrawn) < VOCABULARY
