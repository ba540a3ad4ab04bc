"""Results as tournaments, sweeps and runs leave them, for tests and for looking at."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignrun.evaluation.results import (
    Answers,
    Bound,
    Comparison,
    Completion,
    Estimate,
    PlayerResult,
    Point,
    RunResult,
    SettingResult,
    SweepResult,
    TournamentResult,
)
from alignrun.run.directory import RunDirectory

HOSTILE = (
    "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
    "{{ 7 * 7 }}{% for x in y %}\"'><svg onload=document.title='pwned'></style>"
    "\x00\x1b[31m\x85\ud800\ufffe\u202eabc\u2066"
)


def near(value: float, width: float = 0.06) -> Estimate:
    return Estimate(value, value - width, value + width)


def exactly(value: float) -> Estimate:
    return Estimate(value, value, value)


def bound(gain: float, proposals: int = 16) -> Bound:
    counts = [2**power for power in range(1, 5)]
    return Bound(near(gain, 0.02), proposals, tuple((count, gain * count / (count + 3)) for count in counts))


def player(name: str, win_rate: float | None, **changes: Any) -> PlayerResult:
    """A player with everything measured; the reference is the one without a win rate."""
    trained = win_rate is not None
    gain = 0.0 if win_rate is None else win_rate - 0.5
    found = PlayerResult(
        name=name,
        source=f"runs/{name}" if trained else "HuggingFaceTB/SmolLM2-135M-Instruct",
        step=100 if trained else None,
        win_rate=None if win_rate is None else near(win_rate),
        training_preference="sentiment" if trained else None,
        training_win_rate=near(win_rate + 0.08) if win_rate is not None else None,
        hacking_gap=near(0.08, 0.03) if trained else None,
        average=near(0.45 + gain),
        share=near(0.0, 0.0),
        rating=Estimate(700 * gain, 700 * gain - 45, 700 * gain + 45) if trained else exactly(0),
        exploitability=bound(0.11 - 0.3 * gain),
        regularised=bound(0.08 - 0.3 * gain),
        kl=near(0.4 + 30 * gain, 0.3) if trained else exactly(0),
        length=near(51.3 + 60 * gain, 2.1),
        words=near(38.2 + 50 * gain, 1.7),
        eos_rate=near(0.82 - gain, 0.05),
        distinct=(0.31, 0.72, 0.914),
    )
    return replace(found, **changes)


COMPARISONS = (
    Comparison(
        "Describe an airport hall at three in the morning.",
        "nash_md",
        "dpo",
        "The hall is calm and bright. A cleaner hums, the coffee machine breathes, and everyone who is still here has "
        "found a warm corner.\n\nIt is a lovely hour to be between places.",
        "It is empty. The lights are on. There are chairs.",
        0.871,
    ),
    Comparison(
        "My shoes got soaked on the way to work; how do I dry them?",
        "ipo",
        "reference",
        "Stuff them with newspaper, change it every hour, and keep them away from the radiator.",
        "Shoes are worn on feet. You can dry them by drying them.",
        0.934,
    ),
)


def tournament(**changes: Any) -> TournamentResult:
    """Four policies, one of them surely preferred to all others."""
    players = (
        player("nash_md", 0.68, share=near(0.91, 0.08)),
        player("ipo", 0.61, share=Estimate(0.09, 0.0, 0.2)),
        player("dpo", 0.58, training_win_rate=None, hacking_gap=None),
        player("reference", None),
    )
    wins = {(0, 1): 0.57, (0, 2): 0.62, (0, 3): 0.68, (1, 2): 0.53, (1, 3): 0.61, (2, 3): 0.58}
    matrix = tuple(
        tuple(
            exactly(0.5) if row == column else near(wins[row, column] if row < column else 1 - wins[column, row])
            for column in range(4)
        )
        for row in range(4)
    )
    found = TournamentResult(
        players=players,
        matrix=matrix,
        value=0.5,
        misfit=0.023,
        cycles=(),
        reference="reference",
        preference="sentiment, VADER's lexicon",
        prompts=96,
        samples_per_prompt=4,
        confidence=0.95,
        temperature=0.7,
        kl_tau=0.02,
        comparisons=COMPARISONS,
        notes=("2 of 98 prompts are longer than the context of a policy and were left out.",),
        command="alignrun tournament runs/nash_md runs/ipo runs/dpo prompts.path='my prompts.jsonl'",
        config="seed: 0\nprompts:\n  path: my prompts.jsonl\n",
        versions={"python": "3.11.7", "torch": "2.13.0", "bitsandbytes": None},
    )
    return replace(found, **changes)


def answers(
    count: int = 3, text: Callable[[int, int, int], str] | None = None, players: int = 4
) -> tuple[Answers, ...]:
    """Two completions of each of the players of `tournament` for every prompt; the last of each is cut off."""
    write = text or (lambda x, i, k: f"Answer {k} of player {i} to prompt {x}." + " More." * ((3 * x + i) % 4))
    places = range(players)

    def completion(x: int, i: int, k: int) -> Completion:
        preferences = (None if i == j else judged(x, i, j, k) for j in places)
        return Completion(i, write(x, i, k), k == 0, tuple(preferences))

    return tuple(
        Answers(f"Prompt {x}?", tuple(completion(x, i, k) for i in places for k in range(2))) for x in range(count)
    )


def judged(x: int, i: int, j: int, k: int) -> float:
    """P(player i ≻ player j) of their completions k for prompt x."""
    return 0.5 + (j - i) * (0.1 + 0.01 * ((7 * x + 3 * k) % 5))


def rock_paper_scissors() -> TournamentResult:
    """An exact cyclic game: no intervals, no winner."""
    names = ("rock", "paper", "scissors")
    beats = {(0, 2), (1, 0), (2, 1)}
    players = tuple(
        replace(
            player(name, None),
            win_rate=None if name == "rock" else exactly(1.0 if name == "paper" else 0.0),
            average=exactly(0.5),
            share=exactly(1 / 3),
            rating=exactly(0),
            exploitability=Bound(exactly(0.5), 0),
            regularised=None,
            kl=None,
            length=None,
            words=None,
            eos_rate=None,
            distinct=(),
            step=None,
            training_preference=None,
            training_win_rate=None,
            hacking_gap=None,
        )
        for name in names
    )
    matrix = tuple(
        tuple(exactly(0.5 if row == column else 1.0 if (row, column) in beats else 0.0) for column in range(3))
        for row in range(3)
    )
    return tournament(
        players=players,
        matrix=matrix,
        misfit=0.5,
        cycles=(("rock", "scissors", "paper"),),
        reference="rock",
        preference="rps",
        samples_per_prompt=0,
        comparisons=(),
        notes=(),
        kl_tau=None,
    )


def crowd(count: int = 12) -> TournamentResult:
    """Many policies with long names and little between them."""
    names = [
        f"sweep_2026-11-25/algo.kl_tau=0.0{index},optim.learning_rate=1e-0{index}_$x_{index}$" for index in range(count)
    ]
    players = tuple(
        player(name, None if index == count - 1 else 0.5 + 0.012 * (count - index), share=near(1 / count, 0.05))
        for index, name in enumerate(names)
    )
    matrix = tuple(
        tuple(exactly(0.5) if row == column else near(0.5 + 0.012 * (column - row)) for column in range(count))
        for row in range(count)
    )
    return tournament(players=players, matrix=matrix, reference=names[-1], comparisons=())


def sweep() -> SweepResult:
    """Three settings of two seeds each, and a run that failed."""
    runs = []
    for number, (tau, seed) in enumerate([(0.01, 1), (0.01, 2), (0.05, 1), (0.05, 2), (0.2, 1), (0.2, 2)]):
        failed = number == 5
        steps = [0, 20, 40, 60, 80, 100]
        kls = [step * (0.021 + 0.002 * seed) / (1 + 12 * tau) for step in steps]
        trajectory = [Point(step, kl, 0.5 + 0.1 * kl**0.5 - 0.01 * seed) for step, kl in zip(steps, kls, strict=True)]
        summary = {"win_rate": trajectory[-1].win_rate, "kl": kls[-1], "length": 51.0 + number}
        runs.append(
            RunResult(
                name=str(number),
                setting=f"algo.kl_tau={tau}",
                seed=seed,
                exit_code=1 if failed else 0,
                summary={} if failed else summary,
                trajectory=() if failed else tuple(trajectory),
            )
        )
    settings = tuple(
        SettingResult(
            setting=f"algo.kl_tau={tau}",
            runs=runs_of,
            failed=failed,
            metrics={
                "length": exactly(53.5) if failed else near(53.5, 1.0),
                "win_rate": exactly(0.563) if failed else near(0.6 - tau, 0.02),
                "kl": exactly(0.7) if failed else near(2.2 - 5 * tau, 0.1),
            },
            matched=exactly(0.571) if failed else near(0.59 - tau / 5, 0.015),
        )
        for tau, runs_of, failed in [(0.01, ("0", "1"), 0), (0.05, ("2", "3"), 0), (0.2, ("4", "5"), 1)]
    )
    return SweepResult(
        directory="runs/sweeps/taus",
        settings=settings,
        runs=tuple(runs),
        matched_kl=0.68,
        ranked_by="win rate at the matched KL",
        command="alignrun -m algo.kl_tau=0.01,0.05,0.2 seed=1,2",
        confidence=0.95,
    )


def write_run(
    folder: Path,
    rows: Sequence[Mapping[str, Any]] = (),
    samples: Sequence[Mapping[str, Any]] = (),
    summary: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = ("algo=nash_md", "data.path=my prompts.jsonl", "run.dir=runs/one"),
) -> RunDirectory:
    """The folder of a run, with as much as is given."""
    folder.mkdir(parents=True, exist_ok=True)
    run = RunDirectory(folder)
    run.config_file.write_text(
        "algo: {name: nash_md, kl_tau: 0.02}\nmodel: {name: tiny}\ndata: {name: jsonl, path: my prompts.jsonl}\n"
        "preference: {name: sentiment}\ntrain: {steps: 20}\nevaluation: {confidence: 0.9}\nseed: 3\n"
    )
    run.overrides_file.write_text(json.dumps(list(overrides)))
    run.environment_file.write_text(
        json.dumps({"versions": {"torch": "2.13.0", "bitsandbytes": None}, "device": "cpu"})
    )
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if samples:
        run.samples_file.write_text("".join(json.dumps(row) + "\n" for row in samples))
    if summary is not None:
        run.summary_file.write_text(json.dumps(summary))
    return run


def training(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "loss": -0.1 - 0.01 * step,
        "win_rate": 0.5 + 0.005 * step,
        "kl": 0.02 * step,
        "grad_norm": 1.2,
    }


def evaluation(step: int, win_rate: float) -> dict[str, Any]:
    return {
        "step": step,
        "eval/win_rate": win_rate,
        "eval/win_rate_low": win_rate - 0.05,
        "eval/win_rate_high": win_rate + 0.06,
        "eval/kl": 0.021 * step,
    }


def sample(step: int, first: str, **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "prompt": "Describe a hall.",
        "first": first,
        "second": "It is a hall.",
        "preference": 0.73,
    } | changes


def whole_run(folder: Path) -> RunDirectory:
    """A finished run with evaluations and samples."""
    rows = [evaluation(0, 0.5)]
    for step in range(1, 21):
        rows.append(training(step))
        if step % 5 == 0:
            rows.append(evaluation(step, 0.5 + 0.01 * step))
    samples = [
        sample(0, "the first evaluation"),
        sample(20, "A calm, bright hall."),
        sample(20, "Warm light.", preference=None),
    ]
    summary = {"step": 20, "win_rate": 0.7, "win_rate_low": 0.65, "win_rate_high": 0.76, "kl": 0.42, "judge/asked": 12}
    return write_run(folder, rows, samples, summary)
