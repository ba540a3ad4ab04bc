"""One training pass with and without gradient checkpointing and TF32: its time, and its memory against the plan."""

from collections.abc import Callable

import torch

from alignrun.algorithms.common.workload import workload
from alignrun.models.policy import Policy
from alignrun.planning.plan import make_plan
from alignrun.types import Role
from gpu_checks.measure import peak_bytes, seconds, synchronize
from gpu_checks.report import Section
from gpu_checks.subject import Subject

GIB = 2**30
PLANNED = 0.15
"""How far the peak may be from the plan."""


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
            _pass(subject, section, overrides, new, checkpointing)
    finally:
        torch.set_float32_matmul_precision(usual)
        subject.release()


def _pass(subject: Subject, section: Section, overrides: tuple[str, ...], new: int, checkpointing: bool) -> None:
    subject.release()
    policy, config = subject.load(*overrides), subject.config(*overrides)
    subject.policy = policy  # so that the next release frees it
    work = _work(subject, policy, workload(config).learned, new)
    gradients: dict[bool, torch.Tensor] = {}
    for tf32 in (False, True):
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        name = f"checkpointing {'on' if checkpointing else 'off'}, TF32 {'on' if tf32 else 'off'}"
        if not tf32:
            measured, planned = peak_bytes(work, subject.device), make_plan(config).training
            section.near(f"{name}: peak in GiB", measured / GIB, planned / GIB, PLANNED)
        work()
        synchronize(subject.device)
        gradients[tf32] = torch.cat([weight.grad.flatten() for weight in policy.trainable().values()])
        section.note(f"{name}: seconds", seconds(work, subject.device, 2))
    off = float((gradients[True] - gradients[False]).norm() / gradients[False].norm())
    name = f"checkpointing {'on' if checkpointing else 'off'}"
    section.at_most(f"{name}: gradient with TF32, relative distance", off, 1e-2)


def _work(subject: Subject, policy: Policy, learned: int, new: int) -> Callable[[], None]:
    prompts, completions = subject.prompts(1, padded=True), subject.completions(learned, new)
    weights = list(policy.trainable().values())

    def once() -> None:
        for weight in weights:
            weight.grad = None
        policy.log_probs(Role.policy, prompts, completions).mean().backward()

    return once
