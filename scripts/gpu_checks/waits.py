"""How often a step waits for the device."""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from alignrun.launch.build import assemble
from alignrun.models.device import batch_to
from alignrun.training.accumulate import Accumulator
from gpu_checks.report import Section
from gpu_checks.subject import Subject, random_weights

STEP = 24
"""Waits of a step besides those of decoding: texts for the judge, the lengths of what was drawn, the metrics."""
CHECKED = 16
"""On a GPU, decoding looks every so many tokens which rows have ended."""


def run(subject: Subject, section: Section, left: float) -> None:
    """None in the training pass, and none for each token of sampling."""
    new = subject.scale.new_tokens
    settings = [
        *subject.scale.headline,
        *("train.batch_size=2", "train.micro_batch_size=1", "algo.samples_per_prompt=2"),
        f"generation.max_new_tokens={new}",
    ]
    subject.release()
    config = subject.config(*settings)
    with random_weights():
        assembly = assemble(config)
    algorithm = assembly.algorithm
    algorithm.half_step = nullcontext
    weights = [*assembly.trained.trainable().values(), *algorithm.trainable().values()]
    accumulate = Accumulator(algorithm, weights, subject.device, 1, 1.0, note=print)
    for step in range(2):  # the first compares recorded steps with plain ones, and loads kernels
        prompts = batch_to(assembly.data.batch_at(step, config.train.batch_size), subject.device)
        with _waits(subject.device) as sampling:
            batch = next(iter(algorithm.collect(prompts, step)))
        with _waits(subject.device) as training:
            accumulate(batch)
    section.at_most("waits of sampling and judging", sum(sampling.values()), STEP + 2 * (new // CHECKED))
    section.note("where", dict(sampling.most_common(5)))
    section.at_most("waits of the training passes", sum(training.values()), 0)
    section.note("where", dict(training.most_common(5)))


@contextmanager
def _waits(device: torch.device) -> Iterator[Counter[str]]:
    """Count what torch warns of, by place."""
    found: Counter[str] = Counter()
    if device.type != "cuda":
        yield found
        return
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchroniz" in str(warning.message):
            found[f"{Path(warning.filename).name}:{warning.lineno}"] += 1
