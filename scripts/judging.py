"""What judging costs: VADER against its library, scores shared out over processes, and pairs drawn against all pairs.

    python scripts/judging.py vader                     # the library against ours, in CPU time
    python scripts/judging.py workers [key=value …]     # scores and whole steps, with and without other processes
    python scripts/judging.py pairs [key=value …]       # a step judged pair by pair: all pairs, and the drawn ones

The overrides are those of `alignrun`. Each figure is the median ratio of two measurements made one after the other,
with the smallest and the largest.
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from alignrun.preferences.vader import Analyzer

PLAIN = "the of and to in is that for it as was with be by on he at this have from they which one had".split()  # noqa: SIM905


def prose(words: int, draw: random.Random, lexicon: Sequence[str]) -> str:
    """One word in eight has a sentiment."""
    return " ".join(draw.choice(lexicon if draw.random() < 1 / 8 else PLAIN) for _ in range(words))


def seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started


def ratios(
    one: Callable[[], object], other: Callable[[], object], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> str:
    """The time of one divided by that of the other, in turns."""
    pairs = [(seconds(one, clock), seconds(other, clock)) for _ in range(rounds)]
    found = [first / second for first, second in pairs]
    times = " and ".join(f"{statistics.median(side) * 1e3:.1f} ms" for side in zip(*pairs, strict=True))
    return f"{statistics.median(found):.2f} times ({min(found):.2f} to {max(found):.2f}; {times})"


def vader(rounds: int) -> None:
    library, ours, draw = SentimentIntensityAnalyzer(), Analyzer(), random.Random(0)
    for words in (50, 100, 200, 400, 800, 1600):
        texts = [prose(words, draw, list(library.lexicon)) for _ in range(8)]
        assert list(map(library.polarity_scores, texts)) == list(map(ours.polarity_scores, texts))

        def score(analyzer: SentimentIntensityAnalyzer, texts: Sequence[str] = texts) -> None:
            for text in texts:
                analyzer.polarity_scores(text)

        shown = ratios(lambda: score(library), lambda: score(ours), rounds, time.process_time)
        print(f"{words} words, 8 texts: {shown}")


def workers(rounds: int, overrides: Sequence[str]) -> None:
    from alignrun.preferences import texts
    from alignrun.preferences.texts import TextScores
    from alignrun.preferences.vader import compound

    draw, lexicon = random.Random(0), list(SentimentIntensityAnalyzer().lexicon)
    shared = texts.workers()
    print(f"{len(os.sched_getaffinity(0))} cores, {len(shared)} other processes")

    def score(count: int, words: int, paying: float) -> Callable[[], None]:
        batch = [prose(words, draw, lexicon) for _ in range(count)]

        def run() -> None:
            texts.PAYS, scores = paying, TextScores.by_row(compound)
            scores(["x"] * 4, batch[:4])
            scores(["x"] * len(batch), batch)

        return run

    score(8, 8, 0)()  # starts them
    for count, words in ((64, 50), (64, 200), (256, 200), (512, 400)):
        print(
            f"{count} texts of {words} words, alone and shared out: "
            f"{ratios(score(count, words, float('inf')), score(count, words, 0), rounds)}"
        )
    collect, _ = step(["preference=sentiment", "generation.batch_size=2", "train.batch_size=8", *overrides])

    def chunks(paying: float) -> Callable[[], None]:
        def run() -> None:
            texts.PAYS = paying
            collect()

        return run

    chunks(0)()
    print(f"sampling in chunks and judging, alone and shared out: {ratios(chunks(float('inf')), chunks(0), rounds)}")


def step(overrides: Sequence[str], **algo: object) -> tuple[Callable[[], None], Callable[[], int]]:
    """Sampling and judging of a new step at each call, and how many questions have been asked."""
    from alignrun.algorithms.base import Tools, discover
    from alignrun.launch.build import assemble
    from alignrun.launch.compose import compose
    from alignrun.models.device import batch_to

    config = compose(overrides)
    assembly = assemble(config)
    tools = assembly.algorithm.tools
    config = replace(config, algo=replace(config.algo, **algo))
    algorithm = discover()[config.algo.name](config.algo, Tools(tools.policy, tools.preference, config))
    steps = iter(range(1000))

    def collect() -> None:
        number = next(steps)
        prompts = batch_to(assembly.data.batch_at(number, config.train.batch_size), assembly.trained.device)
        next(iter(algorithm.collect(prompts, number)))

    return collect, lambda: algorithm.asked


def pairs(rounds: int, overrides: Sequence[str]) -> None:
    every, asked_of_all = step(overrides, opponents_per_sample=None)
    some, asked = step(overrides)
    every()
    some()
    print(f"questions a step: {asked_of_all()} and {asked()}, {asked_of_all() / asked():.2f} times")
    print(f"sampling and judging, all pairs and drawn ones: {ratios(every, some, rounds)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("vader", "workers", "pairs"))
    parser.add_argument("--rounds", type=int, default=5)
    given, overrides = parser.parse_known_args()
    if given.what == "vader":
        vader(given.rounds)
    else:
        {"workers": workers, "pairs": pairs}[given.what](given.rounds, overrides)


if __name__ == "__main__":
    main()
