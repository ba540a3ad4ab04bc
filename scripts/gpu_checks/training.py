"""One training pass with and without gradient checkpointing, and with low-rank products in each precision.

Its time, its gradient, and its memory against the plan.
"""

from collections.abc import Callable

import torch

from alignrun.algorithms.common.workload import workload
from alignrun.models.adapters import compute_in, computed_in
from alignrun.models.policy import Policy
from alignrun.planning.plan import make_plan
from alignrun.types import Role
from gpu_checks.measure import peak_bytes, seconds, synchronize
from gpu_checks.report import Section
from gpu_checks.subject import Subject

GIB = 2**30
PLANNED = 0.15
"""How far the peak may be from the plan."""
PRODUCTS = {
    "float32": (torch.float32, "highest", 0.0),
    "TF32": (torch.float32, "high", 1e-2),
    "bfloat16": (torch.bfloat16, "highest", 0.2),
}
"""Low-rank products: their dtype, torch's precision of float32 products, and how far the gradient may be from that of
the first, where rounding changes what later layers see."""


def run(subject: Subject, section: Section, left: float) -> None:
    """A micro-batch of one prompt with the completions that are learned from, forward and backward."""
    usual = torch.get_float32_matmul_precision()
    new = subject.config(*subject.scale.headline).generation.max_new_tokens
    try:
        for checkpointing in (True, False):
            overrides = (
                *subject.scale.headline,
                f"model.gradient_checkpointing={str(checkpointing).lower()}",
                "train.batch_size=1",
                "train.micro_batch_size=1",
            )
            _pass(subject, section, overrides, new, f"checkpointing {'on' if checkpointing else 'off'}")
    finally:
        torch.set_float32_matmul_precision(usual)
        subject.release()


def _pass(subject: Subject, section: Section, overrides: tuple[str, ...], new: int, title: str) -> None:
    subject.release()
    policy, config = subject.load(*overrides), subject.config(*overrides)
    subject.policy = policy  # so that the next release frees it
    work = _work(subject, policy, workload(config).learned, new)
    section.near(
        f"{title}: peak in GiB", peak_bytes(work, subject.device) / GIB, make_plan(config).training / GIB, PLANNED
    )
    layers = policy.backbone.layers
    own, exact = computed_in(layers), torch.empty(0)
    try:
        for name, (dtype, precision, bound) in PRODUCTS.items():
            compute_in(layers, dtype)
            torch.set_float32_matmul_precision(precision)
            work()
            synchronize(subject.device)
            gradient = torch.cat([weight.grad.flatten() for weight in policy.trainable().values()])
            exact = gradient if bound == 0 else exact
            section.note(f"{title}, {name} products: seconds", seconds(work, subject.device, 2))
            off = float((gradient - exact).norm() / exact.norm())
            section.at_most(f"{title}, {name} products: distance of the gradient", off, bound)
    finally:
        compute_in(layers, own)


def _work(subject: Subject, policy: Policy, learned: int, new: int) -> Callable[[], None]:
    prompts, completions = subject.prompts(1, padded=True), subject.completions(learned, new)
    weights = list(policy.trainable().values())

    def once() -> None:
        for weight in weights:
            weight.grad = None
        policy.log_probs(Role.policy, prompts, completions).mean().backward()

    return once
