"""Where the time of a training step goes: sampling and judging, forward passes, backward pass.

    python scripts/time_step.py [--steps 3] [key=value …]

Prints the median, smallest and largest seconds of each phase over all steps but the first. The overrides are those of
`alignrun`.
"""

import argparse
import itertools
import statistics
import time

from alignrun.launch.build import assemble
from alignrun.launch.compose import compose
from alignrun.models.device import batch_to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    given, overrides = parser.parse_known_args()
    config = compose(overrides)
    assembly = assemble(config)
    algorithm = assembly.algorithm
    seconds: dict[str, list[float]] = {"sampling and judging": [], "forward": [], "backward": [], "whole step": []}
    for step in range(given.steps + 1):
        prompts = batch_to(assembly.data.batch_at(step, config.train.batch_size), assembly.trained.device)
        marks = [time.perf_counter()]
        (batch,) = algorithm.collect(prompts, step)
        marks.append(time.perf_counter())
        loss = algorithm.loss(batch)
        marks.append(time.perf_counter())
        loss.total.backward()
        marks.append(time.perf_counter())
        if step:
            spans = [after - before for before, after in itertools.pairwise(marks)]
            for name, value in zip(seconds, [*spans, marks[-1] - marks[0]], strict=True):
                seconds[name].append(value)
    for name, values in seconds.items():
        print(f"{name:22s} {statistics.median(values):8.2f} s   ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
