"""The losses on pairs against closed forms in numpy, and against what each must be minimised by."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.testing import assert_close

from alignrun.objectives.preference import (
    SURROGATES,
    antisymmetric_logits,
    bradley_terry_loss,
    dpo_loss,
    gpo_loss,
    ipo_loss,
    margins,
    preference_loss,
    sequence_log_probs,
    smooth,
)

Array = NDArray[np.float64]
Loss = Callable[[Tensor, Tensor], Tensor]

TAU, SCALE = 0.7, 1.3
LABELS = (0.0, 0.25, 0.5, 0.9, 1.0)
MARGINS = (-3.0, -0.6, 0.0, 0.4, 2.5)
"""On both sides of every kink: those of the hinges lie at ±1/1.3."""


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def grid() -> tuple[Tensor, Tensor]:
    """Every margin with every label, [25] each."""
    pairs = torch.cartesian_prod(double(*MARGINS), double(*LABELS))
    return pairs[:, 0].clone().requires_grad_(), pairs[:, 1]


def sigma(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def as_pairs(loss: Loss) -> Loss:
    """A loss of two columns as one of their difference, which neither column alone determines."""
    return lambda h, labels: loss(torch.stack([h + 0.3, torch.full_like(h, 0.3)], dim=-1), labels)


class Case(NamedTuple):
    loss: Loss
    value: Callable[[Array, Array], Array]
    """The loss of the margin h and the label p, multiplied out."""
    slope: Callable[[Array, Array], Array]
    """Its derivative in h."""


def gpo(surrogate: str) -> Loss:
    return partial(gpo_loss, margin_scale=SCALE, surrogate=surrogate)


def entropy(scale: float) -> tuple[Callable[[Array, Array], Array], Callable[[Array, Array], Array]]:
    """The cross-entropy of σ(scale·h): log(1 + e^(scale·h)) − p·scale·h."""
    return (
        lambda h, p: np.log1p(np.exp(scale * h)) - p * scale * h,
        lambda h, p: scale * (sigma(scale * h) - p),
    )


CASES = {
    "dpo": Case(partial(dpo_loss, kl_tau=TAU), *entropy(TAU)),
    "bradley_terry": Case(as_pairs(bradley_terry_loss), *entropy(1.0)),
    "preference": Case(as_pairs(preference_loss), *entropy(0.5)),
    "ipo": Case(
        partial(ipo_loss, kl_tau=TAU),
        lambda h, p: h**2 - (2 * p - 1) * h / TAU + 1 / (4 * TAU**2),
        lambda h, p: 2 * (h - (2 * p - 1) / (2 * TAU)),
    ),
    "gpo logistic": Case(gpo("logistic"), *entropy(SCALE)),
    "gpo squared": Case(
        gpo("squared"),
        lambda h, p: (SCALE * h) ** 2 - 2 * (2 * p - 1) * SCALE * h + 1,
        lambda h, p: 2 * SCALE * (SCALE * h - (2 * p - 1)),
    ),
    "gpo hinge": Case(
        gpo("hinge"),
        lambda h, p: (
            np.where(h < 1 / SCALE, p * (1 - SCALE * h), 0) + np.where(h > -1 / SCALE, (1 - p) * (1 + SCALE * h), 0)
        ),
        lambda h, p: SCALE * ((1 - p) * (h > -1 / SCALE) - p * (h < 1 / SCALE)),
    ),
    "gpo exponential": Case(
        gpo("exponential"),
        lambda h, p: np.cosh(SCALE * h) - (2 * p - 1) * np.sinh(SCALE * h),
        lambda h, p: SCALE * (np.sinh(SCALE * h) - (2 * p - 1) * np.cosh(SCALE * h)),
    ),
    "gpo truncated_quadratic": Case(
        gpo("truncated_quadratic"),
        lambda h, p: (
            np.where(h < 1 / SCALE, p * (1 - SCALE * h) ** 2, 0)
            + np.where(h > -1 / SCALE, (1 - p) * (1 + SCALE * h) ** 2, 0)
        ),
        lambda h, p: (
            2
            * SCALE
            * (np.where(h > -1 / SCALE, (1 - p) * (1 + SCALE * h), 0) - np.where(h < 1 / SCALE, p * (1 - SCALE * h), 0))
        ),
    ),
    # With q = σ(sh): p(1 − q)² + (1 − p)q², so that q = p is best.
    "gpo savage": Case(
        gpo("savage"),
        lambda h, p: sigma(SCALE * h) ** 2 - 2 * p * sigma(SCALE * h) + p,
        lambda h, p: 2 * (sigma(SCALE * h) - p) * SCALE * sigma(SCALE * h) * sigma(-SCALE * h),
    ),
}

every_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def test_every_surrogate_has_a_case() -> None:
    assert {f"gpo {name}" for name in SURROGATES} < set(CASES)


@every_loss
def test_values_and_gradients(case: Case) -> None:
    h, labels = grid()
    losses = case.loss(h, labels)
    (slopes,) = torch.autograd.grad(losses.sum(), h)
    points = h.detach().numpy(), labels.numpy()
    assert_close(losses.detach(), torch.from_numpy(case.value(*points)), rtol=0, atol=1e-12)
    assert_close(slopes, torch.from_numpy(case.slope(*points)), rtol=0, atol=1e-12)


@every_loss
def test_gradients_are_those_of_the_values(case: Case) -> None:
    h, labels = grid()
    assert torch.autograd.gradcheck(lambda h: case.loss(h, labels), (h,))


@every_loss
def test_a_pair_turned_round_has_the_same_loss(case: Case) -> None:
    h, labels = grid()
    assert_close(case.loss(-h, 1 - labels), case.loss(h, labels), rtol=0, atol=1e-14)
    assert not torch.allclose(case.loss(-h, labels), case.loss(h, labels))


@every_loss
def test_a_soft_label_is_the_mean_over_hard_ones(case: Case) -> None:
    h, labels = grid()
    won, lost = case.loss(h, torch.ones_like(labels)), case.loss(h, torch.zeros_like(labels))
    assert_close(case.loss(h, labels), labels * won + (1 - labels) * lost, rtol=0, atol=1e-14)


@every_loss
def test_labels_of_other_pairs_are_refused(case: Case) -> None:
    h, labels = grid()
    for wrong in (labels[:, None], labels[:1]):
        with pytest.raises(ValueError, match="not of the same pairs"):
            case.loss(h, wrong)


@every_loss
def test_float32_labels_cost_no_digits(case: Case) -> None:
    h, labels = grid()
    assert case.loss(h, labels.float()).dtype == torch.float64
    assert case.loss(h.float(), labels.float()).dtype == torch.float32


@pytest.mark.parametrize("kl_tau", [0.1, 1.0, 10.0])
def test_single_pairs_by_hand(kl_tau: float) -> None:
    # A certain winner: dDPO/dh = −τσ(−τh) and dIPO/dh = 2(h − 1/(2τ)).
    h = double(-0.5, 0.0, 2.0).requires_grad_()
    (dpo,) = torch.autograd.grad(dpo_loss(h, torch.ones_like(h), kl_tau).sum(), h)
    assert_close(dpo, double(*(-kl_tau / (1 + math.exp(kl_tau * x)) for x in (-0.5, 0.0, 2.0))))
    (ipo,) = torch.autograd.grad(ipo_loss(h, torch.ones_like(h), kl_tau).sum(), h)
    assert_close(ipo, double(*(2 * (x - 0.5 / kl_tau) for x in (-0.5, 0.0, 2.0))))


def test_numbers_by_hand() -> None:
    assert_close(ipo_loss(double(2.0), double(1.0), 0.1), double(9.0))  # (2 − 5)²
    assert_close(ipo_loss(double(2.0), double(0.0), 0.1), double(49.0))
    assert_close(dpo_loss(double(0.0), double(0.3), 0.1), double(math.log(2)))
    assert_close(bradley_terry_loss(double(math.log(9), 0.0)[None], double(1.0)), double(math.log(10 / 9)))
    assert_close(preference_loss(double(2 * math.log(9), 0.0)[None], double(0.0)), double(math.log(10)))


def test_gpo_holds_dpo_and_ipo() -> None:
    h, labels = grid()
    assert_close(gpo_loss(h, labels, TAU, "logistic"), dpo_loss(h, labels, TAU), rtol=0, atol=1e-14)
    assert_close(gpo_loss(h, labels, 2 * TAU, "squared") / (2 * TAU) ** 2, ipo_loss(h, labels, TAU), rtol=0, atol=1e-13)


# The shapes of the surrogates


@pytest.mark.parametrize(
    ("surrogate", "first", "second"),
    [
        ("logistic", -1 / 2, 1 / 4),
        ("squared", -2, 2),
        ("hinge", -1, 0),
        ("exponential", -1, 1),
        ("truncated_quadratic", -2, 2),
        ("savage", -1 / 4, 1 / 8),
    ],
)
def test_slope_and_curvature_at_zero(surrogate: str, first: float, second: float) -> None:
    slope = torch.func.grad(SURROGATES[surrogate])
    zero = torch.tensor(0.0, dtype=torch.float64)
    assert slope(zero).item() == pytest.approx(first, abs=1e-12)
    assert torch.func.grad(slope)(zero).item() == pytest.approx(second, abs=1e-12)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


BEST = {
    "dpo": lambda p: logit(p) / TAU,
    "bradley_terry": logit,
    "preference": lambda p: 2 * logit(p),
    "ipo": lambda p: (2 * p - 1) / (2 * TAU),
    "gpo logistic": lambda p: logit(p) / SCALE,
    "gpo squared": lambda p: (2 * p - 1) / SCALE,
    "gpo hinge": lambda p: math.copysign(1, p - 0.5) / SCALE,
    "gpo exponential": lambda p: 0.5 * logit(p) / SCALE,
    "gpo truncated_quadratic": lambda p: (2 * p - 1) / SCALE,
    "gpo savage": lambda p: logit(p) / SCALE,
}
"""The margin at which the loss is least if y_w wins with probability p."""


@pytest.mark.parametrize("p", [0.1, 0.3, 0.45, 0.7, 0.95])
@pytest.mark.parametrize("name", CASES)
def test_the_best_margin(name: str, p: float) -> None:
    def loss(h: float) -> float:
        return CASES[name].loss(double(h), double(p)).item()

    # A scan before the search, as Savage is not convex.
    start = min(np.linspace(-10, 10, 201), key=loss)
    found = minimize_scalar(loss, bounds=(start - 0.2, start + 0.2), method="bounded", options={"xatol": 1e-9})
    assert found.x == pytest.approx(BEST[name](p), abs=1e-6)


def test_an_unknown_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no surrogate 'sqared': choose from logistic, squared, hinge, .*savage"):
        gpo_loss(double(0.0), double(1.0), 1.0, "sqared")


# Far margins


FAR = {
    "dpo": (partial(dpo_loss, kl_tau=1.0), 0, 1e3, -1),
    "bradley_terry": (as_pairs(bradley_terry_loss), 0, 1e3, -1),
    "preference": (as_pairs(preference_loss), 0, 500, -0.5),
    "ipo": (partial(ipo_loss, kl_tau=1.0), 999.5**2, 1000.5**2, -2001),
    "logistic": (partial(gpo_loss, margin_scale=1.0, surrogate="logistic"), 0, 1e3, -1),
    "squared": (partial(gpo_loss, margin_scale=1.0, surrogate="squared"), 999**2, 1001**2, -2002),
    "hinge": (partial(gpo_loss, margin_scale=1.0, surrogate="hinge"), 0, 1001, -1),
    "exponential": (partial(gpo_loss, margin_scale=1.0, surrogate="exponential"), 0, math.inf, -math.inf),
    "truncated_quadratic": (partial(gpo_loss, margin_scale=1.0, surrogate="truncated_quadratic"), 0, 1001**2, -2002),
    "savage": (partial(gpo_loss, margin_scale=1.0, surrogate="savage"), 0, 1, 0),
}
"""The losses of the margins 1000 and −1000 if y_w won, and the slope at the second."""


@pytest.mark.parametrize(("loss", "right", "wrong", "slope"), FAR.values(), ids=FAR)
@pytest.mark.parametrize("label", [1.0, 0.0])
def test_far_margins_in_float32(loss: Loss, right: float, wrong: float, slope: float, label: float) -> None:
    sign = 2 * label - 1
    h = torch.tensor([sign * 1e3, sign * -1e3], requires_grad=True)
    losses = loss(h, torch.full((2,), label))
    assert_close(losses.detach(), torch.tensor([right, wrong], dtype=torch.float32), rtol=1e-6, atol=0)
    (slopes,) = torch.autograd.grad(losses.sum(), h)
    assert not slopes.isnan().any()
    assert slopes[1].item() == pytest.approx(sign * slope, rel=1e-6)


def test_the_logistic_loss_is_exact_where_it_looks_linear() -> None:
    h = double(-25.0).requires_grad_()
    loss = dpo_loss(h, double(1.0), 1.0)
    assert (loss - 25).item() == pytest.approx(math.exp(-25), rel=1e-3)
    assert (torch.autograd.grad(loss.sum(), h)[0] + 1).item() == pytest.approx(math.exp(-25), rel=1e-3)


# Labels, sequences and margins


def test_label_smoothing() -> None:
    assert_close(smooth(double(1.0, 0.0, 0.5, 0.8), 0.1), double(0.9, 0.1, 0.5, 0.74))
    assert_close(smooth(double(0.8), 0.0), double(0.8))
    # Conservative DPO with ε = σ(−τh*) is least at h*, where plain DPO has no minimum.
    h = double(2.0).requires_grad_()
    epsilon = 1 / (1 + math.exp(2 * TAU))
    loss = dpo_loss(h, smooth(double(1.0), epsilon), TAU)
    assert_close(torch.autograd.grad(loss.sum(), h)[0], double(0.0), rtol=0, atol=1e-15)


LOG_PROBS = torch.tensor([[-1.0, -2.0, -6.0], [-4.0, -0.5, float("nan")], [-3.0, float("-inf"), -1.0]])
MASK = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])


def test_log_probs_of_sequences_are_sums() -> None:
    assert_close(sequence_log_probs(LOG_PROBS, MASK, length_norm=False), torch.tensor([-9.0, -4.5, 0.0]))


def test_the_mean_over_tokens_is_the_ablation() -> None:
    assert_close(sequence_log_probs(LOG_PROBS, MASK, length_norm=True), torch.tensor([-3.0, -2.25, 0.0]))


@pytest.mark.parametrize(("length_norm", "weights"), [(False, (1.0, 1.0)), (True, (1 / 3, 1 / 2))])
def test_padding_takes_no_gradient(length_norm: bool, weights: tuple[float, float]) -> None:
    log_probs = LOG_PROBS.clone().requires_grad_()
    total = sequence_log_probs(log_probs, MASK, length_norm=length_norm).sum()
    (gradient,) = torch.autograd.grad(total, log_probs)
    assert_close(gradient, MASK * torch.tensor([*weights, 0.0])[:, None])


def test_pairs_of_sequences() -> None:
    log_probs, mask = LOG_PROBS[:2][None], MASK[:2][None]
    assert_close(sequence_log_probs(log_probs, mask, length_norm=False), torch.tensor([[-9.0, -4.5]]))


def test_margin_of_log_ratios() -> None:
    policy = torch.tensor([[-10.0, -12.0], [-3.0, -7.0]], requires_grad=True)
    reference = torch.tensor([[-11.0, -10.0], [-3.0, -7.0]], requires_grad=True)
    h = margins(policy, reference)
    assert_close(h.detach(), torch.tensor([3.0, 0.0]))
    gradients = torch.autograd.grad(h.sum(), (policy, reference))
    assert_close(gradients[0], torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
    assert_close(gradients[1], torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))
    assert_close(margins(policy.flip(-1), reference.flip(-1)), -h)


# Preference models


def test_preferences_are_antisymmetric_whatever_the_scores() -> None:
    scores = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    one, other = (antisymmetric_logits(columns).sigmoid() for columns in (scores, scores.flip(-1)))
    assert_close(one + other, torch.ones_like(one), rtol=0, atol=1e-15)
    assert_close(antisymmetric_logits(double(3.0, -1.0)[None]), double(2.0))


def test_a_score_that_ignores_the_order_says_nothing() -> None:
    # The raw score has a loss of −log σ(7) ≈ 0.001 if the winner always comes first.
    assert_close(preference_loss(double(7.0, 7.0)[None], double(1.0)), double(math.log(2)))
