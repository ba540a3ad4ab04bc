"""How long a large file delays the first step of a run, and how much memory it takes.

    python scripts/first_step.py [--rows 1000000] [--words 40] [--kinds prompts pairs] [--against SRC] [key=value …]

Writes a JSONL file of each kind, takes the first step on it with model=tiny in a separate process, and prints the
elapsed seconds, the CPU seconds, the seconds spent loading the data, and the peak resident memory above that with a
thousand rows. `--against` also measures the source tree of another version.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
SETTINGS = {
    "prompts": [
        "algo=nash_md",
        "preference=function",
        "preference.function=alignrun.preferences.examples:same_first_letter",
    ],
    "pairs": ["algo=dpo", "preference=none"],
}
STEP = """
import resource, sys, time
started = time.perf_counter()
from alignrun.launch import build
from alignrun.launch.compose import compose
from alignrun.models.device import batch_to
seconds = 0.0
load = build.load_examples
def timed(*arguments):
    global seconds
    begun = time.perf_counter()
    loaded = load(*arguments)
    seconds = time.perf_counter() - begun
    return loaded
build.load_examples = timed
config = compose(sys.argv[1:])
assembly = build.assemble(config, lambda line: print(line, file=sys.stderr))
given = batch_to(assembly.data.batch_at(0, config.train.batch_size), assembly.trained.device)
assembly.algorithm.loss(next(iter(assembly.algorithm.collect(given, 0)))).total.backward()
used = resource.getrusage(resource.RUSAGE_SELF)
print(time.perf_counter() - started, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6)
"""


def write(path: Path, kind: str, rows: int, words: int) -> None:
    """A file of rows with `words` words in each text."""
    drawn = random.Random(0)
    vocabulary = ["".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=drawn.randint(2, 8))) for _ in range(5000)]

    def text() -> str:
        return " ".join(drawn.choices(vocabulary, k=words))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            row = {"prompt": text()}
            if kind == "pairs":
                row |= {"chosen": text(), "rejected": text()}
            file.write(json.dumps(row) + "\n")


def first_step(source: Path, kind: str, path: Path, overrides: list[str]) -> list[float]:
    """Seconds to the first step, those that loaded the data, those of the processor, and gigabytes at the peak."""
    arguments = ["model=tiny", *SETTINGS[kind], "data=jsonl", f"data.path={path}", "train.batch_size=4", *overrides]
    done = subprocess.run(
        [sys.executable, "-c", STEP, *arguments],
        env={**os.environ, "PYTHONPATH": str(source)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return list(map(float, done.stdout.splitlines()[-1].split()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, default=40)
    parser.add_argument("--kinds", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--against", type=Path)
    given, overrides = parser.parse_known_args()
    sources = {"now": SOURCE} | ({"before": given.against} if given.against else {})
    with tempfile.TemporaryDirectory() as folder:
        for kind in given.kinds:
            few, many = Path(folder) / "few.jsonl", Path(folder) / "many.jsonl"
            write(few, kind, 1000, given.words)
            write(many, kind, given.rows, given.words)
            size = many.stat().st_size / 1e6
            print(f"{given.rows} {kind}, {size:.0f} MB", flush=True)
            for name, source in sources.items():
                *_, model = first_step(source, kind, few, overrides)
                seconds, loading, busy, peak = first_step(source, kind, many, overrides)
                print(
                    f"  {name:7s}{seconds:6.1f} s to the first step ({busy:.1f} s of a processor), {loading:.1f} s to "
                    f"load; {peak - model:.2f} GB above the model",
                    flush=True,
                )


if __name__ == "__main__":
    main()
