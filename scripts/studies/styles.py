"""Which methods find a policy that no style beats: `experiment=styles` with a student, several seeds each."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from alignrun.config import Config
from alignrun.games import CYC
from alignrun.launch.compose import compose, load
from alignrun.preferences.base import build_preference
from alignrun.preferences.styles import Styles
from alignrun.preferences.text_measures import TEXT_MEASURES
from alignrun.run.directory import write_text_atomic
from studies.sampling import Sampled, sample_reference, sample_run
from studies.student import train_student
from studies.style_game import centred
from studies.training import Job, finish, metrics_of

EXPERIMENT, TAU = "experiment=styles", 0.01
TAUGHT = 512
"""Completions of each prompt that a student learns from."""
STUDENT = ("generation.max_new_tokens=20", "train.batch_size=8", "train.steps=150", "optim.learning_rate=2e-3")
"""Settings for a student; 12 tokens of SmolLM2 are about 16 of its own."""
SAMPLES, REFERENCE_SAMPLES = 128, 512
"""Completions of each prompt that a policy is judged by, and those that μ's shares are counted from."""
PAIRS = 256
"""Labelled pairs of μ's completions of each prompt, for the methods that learn from a data set."""
HELD_OUT = ("relevance", "diversity")
"""Published measures that no style is made of."""


@dataclass(frozen=True, slots=True)
class Method:
    """What to train, and how the tables call it."""

    label: str
    overrides: tuple[str, ...]
    """`{pairs}` stands for labelled pairs of μ's completions, `{reward}` for a reward model of them, and `{runs}` and
    `{seed}` for the folder and the seed of the study's runs."""
    against: str | None = None
    """The method whose policy of the same seed it is a trained best response to."""


def _online(algorithm: str, *overrides: str, kl_tau: float | None = TAU) -> tuple[str, ...]:
    regularised = () if kl_tau is None else (f"algo.kl_tau={kl_tau}",)
    return f"algo={algorithm}", "algo.samples_per_prompt=8", *regularised, *overrides


def _offline(algorithm: str) -> tuple[str, ...]:
    data = (f"algo.kl_tau={TAU}", "data=jsonl", "data.prompts=[]", "data.path={pairs}", "data.eval_path={pairs}")
    return f"algo={algorithm}", *data, "data.columns.label=probability"


def _response(method: str) -> Method:
    overrides = _online("best_response", f"algo.opponent={{runs}}/{method}-{{seed}}")
    return Method(f"best response to {METHODS[method].label}", overrides, against=method)


REWARD_MODEL = ("train.steps=60", "train.batch_size=16", "train.checkpoint_every=0", "optim.learning_rate=2e-4")
"""Settings of the reward model of the methods that need one."""
_BRADLEY_TERRY = ("preference=bradley_terry", "preference.path={reward}")
METHODS = {
    "ppo": Method("PPO, win rate against μ", _online("ppo", "algo.epochs=1", "algo.normalize_reward=false")),
    "nash_md": Method("Nash-MD, β = 0.125", _online("nash_md")),
    "online_ipo": Method("online IPO", _online("online_ipo")),
    "self_play": Method("self-play", _online("self_play")),
    "ppo_bt": Method(
        "PPO, Bradley-Terry reward", _online("ppo", "algo.epochs=1", "algo.normalize_reward=false", *_BRADLEY_TERRY)
    ),
    "dpo": Method("DPO", _offline("dpo")),
    "ipo": Method("IPO", _offline("ipo")),
    "grpo": Method("GRPO, win rate against μ", _online("grpo")),
    "grpo_bt": Method("GRPO, Bradley-Terry reward", _online("grpo", *_BRADLEY_TERRY)),
    "best_response": Method("best response to μ", _online("best_response")),
    "nash_md_0": Method("Nash-MD, β from 0.125 to 0", _online("nash_md", "algo.mix_beta_end=0")),
    "nash_ema": Method("Nash-EMA, 0.9", _online("nash_ema", "algo.ema_decay=0.9")),
    "nash_mp": Method("Nash-MP", _online("nash_mp")),
    "ipo_md": Method("IPO-MD, β = 0.125", _online("ipo_md")),
    "online_dpo": Method("online DPO", _online("online_dpo")),
    "inpo": Method("INPO", _online("inpo")),
    "sppo": Method("SPPO", _online("sppo", kl_tau=None)),
    "spo": Method("SPO", _online("spo")),
    "mnpo": Method("MNPO", _online("mnpo")),
    "rspo": Method("RSPO", _online("rspo")),
    "rebel": Method("REBEL, win rate against μ", _online("rebel")),
    "comal": Method("COMAL, τ = 0", _online("comal", "algo.refresh_every=15", kl_tau=0)),
    "omwu": Method("OMWU, τ = 0", _online("omwu", kl_tau=0)),
    "nash_pg": Method("NashPG, τ = 0", _online("nash_pg", "algo.refresh_every=15", "algo.epochs=1", kl_tau=0)),
}
METHODS |= {f"against_{method}": _response(method) for method in ("ppo", "nash_md", "online_ipo", "self_play")}


def configuration(*overrides: str) -> Config:
    """The study's configuration."""
    return compose([EXPERIMENT, *overrides])


def judge_of(config: Config) -> Styles:
    """The preference that all methods learn from."""
    judge = build_preference(config.preference)
    assert isinstance(judge, Styles)
    return judge


def counted(judge: Styles, sampled: Sampled) -> list[list[list[int]]]:
    """[X, 2, 3] the styles of the first and second half of each prompt's completions."""
    counts = []
    for prompt, texts in zip(sampled.prompts, sampled.texts, strict=True):
        styles = judge.styles([prompt] * len(texts), texts)
        counts.append([half.bincount(minlength=len(judge.names)).tolist() for half in styles.chunk(2)])
    return counts


def measured(sampled: Sampled) -> dict[str, list[list[float]]]:
    """[X, K] the held-out measures of each completion."""
    return {
        name: [
            [round(TEXT_MEASURES[name].score(prompt, text), 4) for text in texts]
            for prompt, texts in zip(sampled.prompts, sampled.texts, strict=True)
        ]
        for name in HELD_OUT
    }


def held_out_win_rates(ours: Sampled, theirs: Mapping[str, list[list[float]]]) -> dict[str, list[float]]:
    """[X] how often a completion has more of a held-out measure than one of μ, with ties as a half."""
    rates = {}
    for name, scores in measured(ours).items():
        rows = []
        for mine, other in zip(scores, theirs[name], strict=True):
            difference = np.sign(np.subtract.outer(mine, other))
            rows.append(round(float((difference.mean() + 1) / 2), 4))
        rates[name] = rows
    return rates


def write_pairs(path: Path, judge: Styles, reference: Sampled) -> None:
    """Pairs of different completions of μ with P(chosen ≻ rejected), drawn with seed 0."""
    rng = np.random.default_rng(0)
    rows = []
    for prompt, texts in zip(reference.prompts, reference.texts, strict=True):
        written = [text for text in texts if text.strip()]
        while sum(row["prompt"] == prompt for row in rows) < PAIRS:
            first, second = (written[place] for place in rng.choice(len(written), 2, replace=False))
            if first.strip() != second.strip():
                probability = float(judge([prompt], [first], [second]))
                rows.append({"prompt": prompt, "chosen": first, "rejected": second, "probability": probability})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def teach(folder: Path) -> list[str]:
    """Train a student on completions of the configured model; the settings with which the study is run on it.

    The measures are standardised anew, so that the student's styles have the shares of CYC's μ.
    """
    student = train_student(folder, sample_reference(configuration(), TAUGHT))
    settings = ["model=path", f"model.path={student}", *STUDENT]
    config = configuration(*settings)
    sampled = sample_reference(config, REFERENCE_SAMPLES)
    scores = np.array(
        [
            [TEXT_MEASURES[name].score(prompt, text) for name in config.preference.styles]
            for prompt, texts in zip(sampled.prompts, sampled.texts, strict=True)
            for text in texts
        ]
    )
    centres = centred(scores, CYC.reference.tolist())
    for name, centre, scale in zip(config.preference.styles, centres, scores.std(0), strict=True):
        key = f"preference.styles.{name}"
        settings += [f"{key}.centre={centre:.4g}", f"{key}.scale={scale:.4g}"]
    return settings


def measure_reference(results: Path, overrides: Sequence[str]) -> Sampled:
    """Draw μ's completions, and write how often each style is among them.

    Raises SystemExit if `results` has other completions of μ: of another model, or drawn on another machine.
    """
    config = configuration(*overrides)
    sampled = sample_reference(config, REFERENCE_SAMPLES)
    record = {
        "overrides": list(overrides),
        "prompts": sampled.prompts,
        "counts": counted(judge_of(config), sampled),
        "held_out": measured(sampled),
    }
    file = results / "reference.json"
    if file.is_file() and read(file)["counts"] != record["counts"]:
        raise SystemExit(f"{results} has measurements of another model: choose another folder with --results")
    _write(file, record)
    return sampled


def measure_run(run: Path, results: Path, method: str, seed: int, seconds: float, judge: Styles) -> None:
    """Write what the policy of a finished run plays, and the path that its training took."""
    sampled = sample_run(run, SAMPLES)
    reference = read(results / "reference.json")
    names = [f"style/{name}" for name in judge.names]
    record = {
        "method": method,
        "seed": seed,
        "overrides": list(METHODS[method].overrides),
        "steps": load(run / "config.yaml").train.steps,
        "seconds": round(seconds),
        "counts": counted(judge, sampled),
        "kl": [round(float(value), 4) for value in sampled.kl],
        "held_out": held_out_win_rates(sampled, reference["held_out"]),
        "path": [
            [step["step"], *(round(step[name], 4) for name in ("kl", *names))]
            for step in metrics_of(run)
            if names[0] in step  # not of a method that learns from data or another judge
        ],
    }
    _write(results / f"{method}-{seed}.json", record)


def read(path: Path) -> dict[str, Any]:
    """A file of measurements."""
    record: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return record


def _write(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")


def run(
    folder: Path, results: Path, methods: Sequence[str], seeds: Sequence[int], at_once: int, overrides: Sequence[str]
) -> None:
    """Train and measure what has no measurements yet, in the order of the seeds.

    Args:
        folder: of the runs; what was interrupted there is resumed.
        results: the measurements, one file for each run.
        methods: keys of METHODS.
        seeds: of the runs.
        at_once: runs at a time, which share the threads of the machine.
        overrides: settings for all methods.

    Raises SystemExit if `results` has measurements under other settings, or of another model.
    """
    file = results / "reference.json"
    if file.is_file() and read(file)["overrides"] != list(overrides):
        raise SystemExit(f"{results} has measurements under other settings: choose another folder with --results")
    judge = judge_of(configuration(*overrides))
    pairs, reward = folder / "pairs.jsonl", folder / "reward"
    if not file.is_file() or not pairs.is_file():
        write_pairs(pairs, judge, measure_reference(results, overrides))
    if any("{reward}" in part for method in methods for part in METHODS[method].overrides):
        model = [override for override in overrides if override.startswith("model")]
        data = ("data=jsonl", f"data.path={pairs}", f"data.eval_path={pairs}", "data.columns.label=probability")
        finish(Job(reward, ("algo=reward_model", "tracker=none", *model, *data, *REWARD_MODEL)), 1)
    measuring = Lock()

    def one(method: str, seed: int) -> None:
        learned = METHODS[method].overrides
        others = [
            part for part in overrides if not (part.startswith("preference.") and set(_BRADLEY_TERRY) & set(learned))
        ]
        parts = (EXPERIMENT, "tracker=none", *learned, *others, f"seed={seed}")
        job = Job(
            folder / f"{method}-{seed}",
            tuple(part.format(pairs=pairs, reward=reward, runs=folder, seed=seed) for part in parts),
        )
        seconds = finish(job, at_once)
        with measuring:
            measure_run(job.folder, results, method, seed, seconds, judge)

    waiting = [
        (method, seed) for seed in seeds for method in methods if not (results / f"{method}-{seed}.json").is_file()
    ]
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda named: one(*named), waiting))
