"""Train every method on a preference, several seeds each, and measure what its policies play.

The prompts are those of `experiment=styles`, the model is a student, and the preference is `styles` or a panel of text
measures.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from alignrun.config import Config
from alignrun.errors import InputError
from alignrun.games import CYC
from alignrun.launch.compose import compose, load
from alignrun.preferences.base import Preference, build_preference
from alignrun.preferences.measure import MeasureConfig
from alignrun.preferences.panel import PanelConfig, PanelRule
from alignrun.preferences.styles import Styles, StylesConfig
from alignrun.preferences.text_measures import TEXT_MEASURES
from studies.methods import METHODS
from studies.records import json_lines, read, write
from studies.sampling import Sampled, sample_reference, sample_run
from studies.student import train_student
from studies.style_game import centred
from studies.training import Job, finish, labelled_pairs, metrics_of

EXPERIMENT = "experiment=styles"
TAUGHT = 512
"""Completions of each prompt that a student learns from."""
STUDENT = ("generation.max_new_tokens=20", "train.batch_size=8", "train.steps=150", "optim.learning_rate=2e-3")
"""Settings for a student; 12 tokens of SmolLM2 are about 16 of its own."""
SAMPLES, REFERENCE_SAMPLES = 128, 512
"""Completions of each prompt that a policy is judged by, and those that stand for μ."""
PAIRS = 256
"""Labelled pairs of μ's completions of each prompt, for the methods that learn from a data set."""
HELD_OUT = ("relevance", "diversity")
"""Published measures that no method sees."""
REWARD_MODEL = ("train.steps=60", "train.batch_size=16", "train.checkpoint_every=0", "optim.learning_rate=2e-4")
"""Settings of the reward model of the methods that need one."""


def configuration(*overrides: str) -> Config:
    """The study's configuration."""
    return compose([EXPERIMENT, *overrides])


def panel_of(config: Config) -> dict[str, float]:
    """The measures of a panel, each with the difference for which it votes with σ(1).

    Raises InputError for another preference, and for a panel with a held-out measure.
    """
    panel = config.preference
    majority = isinstance(panel, PanelConfig) and panel.rule is PanelRule.majority
    members = list(panel.members.values()) if majority else []
    measures = {
        str(one.measure): one.temperature * TEXT_MEASURES[str(one.measure)].spread
        for one in members
        if isinstance(one, MeasureConfig)
    }
    if not members or len(measures) < len(members):
        raise InputError("a study needs preference=styles, or a majority of different text measures")
    if seen := set(measures) & set(HELD_OUT):
        raise InputError(f"{', '.join(sorted(seen))}: measures that no method sees must not be members of the panel")
    return measures


def checked(overrides: Sequence[str]) -> Config:
    """The configuration of a study with these settings.

    Raises InputError for settings under which its pages would say something else than what was measured.
    """
    for override in overrides:
        if override.startswith("algo"):
            raise InputError(f"{override}: a study trains its methods as studies/methods.py says")
        if override.startswith("model.path=/"):
            raise InputError(
                f"{override}: name the model from the current folder, since the measurements keep its name"
            )
    config = configuration(*overrides)
    if not isinstance(config.preference, StylesConfig):
        panel_of(config)
    elif config.preference.game != StylesConfig().game:
        raise InputError(f"preference.game={config.preference.game}: the study solves {StylesConfig().game}")
    return config


def counted(judge: Styles, sampled: Sampled) -> list[list[list[int]]]:
    """[X, 2, 3] the styles of the first and second half of each prompt's completions."""
    counts = []
    for prompt, texts in zip(sampled.prompts, sampled.texts, strict=True):
        styles = judge.styles([prompt] * len(texts), texts)
        counts.append([half.bincount(minlength=len(judge.names)).tolist() for half in styles.chunk(2)])
    return counts


def measured(sampled: Sampled, measures: Iterable[str]) -> dict[str, list[list[float]]]:
    """measure → [X, K] of each completion."""
    return {
        name: [
            [round(TEXT_MEASURES[name].score(prompt, text), 4) for text in texts]
            for prompt, texts in zip(sampled.prompts, sampled.texts, strict=True)
        ]
        for name in measures
    }


def played(config: Config, sampled: Sampled) -> dict[str, Any]:
    """Of every completion what its preference depends on: how often each style is played, or a panel's measures."""
    judge = build_preference(config.preference)
    if isinstance(judge, Styles):
        return {"counts": counted(judge, sampled)}
    return {"scores": measured(sampled, panel_of(config))}


def held_out_win_rates(ours: Sampled, theirs: Mapping[str, list[list[float]]]) -> dict[str, list[float]]:
    """[X] how often a completion has more of a held-out measure than one of μ, with ties as a half."""
    rates = {}
    for name, scores in measured(ours, HELD_OUT).items():
        rows = []
        for mine, other in zip(scores, theirs[name], strict=True):
            difference = np.sign(np.subtract.outer(mine, other))
            rows.append(round(float((difference.mean() + 1) / 2), 4))
        rates[name] = rows
    return rates


def write_pairs(path: Path, judge: Preference, reference: Sampled) -> None:
    """Pairs of different completions of μ with P(chosen ≻ rejected), drawn with seed 0.

    Raises InputError if all completions of a prompt are equal.
    """
    rng = np.random.default_rng(0)
    rows = []
    for prompt, texts in zip(reference.prompts, reference.texts, strict=True):
        written = [text for text in texts if text.strip()]
        if len({text.strip() for text in written}) < 2:
            raise InputError(f"all completions of {prompt!r} are equal: choose other prompts")
        drawn = 0
        while drawn < PAIRS:
            first, second = (written[place] for place in rng.choice(len(written), 2, replace=False))
            if first.strip() != second.strip():
                probability = float(judge([prompt], [first], [second]))
                rows.append({"prompt": prompt, "chosen": first, "rejected": second, "probability": probability})
                drawn += 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_lines(rows), encoding="utf-8")


def teach(folder: Path) -> list[str]:
    """Train a student on completions of the configured model; the settings with which the study is run on it.

    The measures are standardised anew, so that the student's styles have the shares of CYC's μ.
    """
    student = train_student(folder, sample_reference(configuration(), TAUGHT))
    settings = ["model=path", f"model.path={student}", *STUDENT]
    config = configuration(*settings)
    sampled = sample_reference(config, REFERENCE_SAMPLES)
    scores = np.stack([np.ravel(rows) for rows in measured(sampled, config.preference.styles).values()], 1)
    centres = centred(scores, CYC.reference.tolist())
    for name, centre, scale in zip(config.preference.styles, centres, scores.std(0), strict=True):
        key = f"preference.styles.{name}"
        settings += [f"{key}.centre={centre:.4g}", f"{key}.scale={scale:.4g}"]
    return settings


def measure_reference(results: Path, overrides: Sequence[str]) -> Sampled:
    """Draw μ's completions, and write what they play.

    Raises InputError if `results` has other completions of μ: of another model, or drawn on another machine.
    """
    config = configuration(*overrides)
    sampled = sample_reference(config, REFERENCE_SAMPLES)
    record = {
        "overrides": list(overrides),
        "prompts": sampled.prompts,
        **played(config, sampled),
        "held_out": measured(sampled, HELD_OUT),
    }
    file = results / "reference.json"
    if file.is_file() and read(file) != record:
        raise InputError(f"{results} has measurements of another model: choose another folder with --results")
    write(file, record)
    return sampled


def measure_run(run: Path, results: Path, method: str, seed: int, seconds: float, config: Config) -> None:
    """Write what the policy of a finished run plays, and the path that its training took."""
    sampled = sample_run(run, SAMPLES)
    reference = read(results / "reference.json")
    names = [f"style/{name}" for name in getattr(config.preference, "styles", ())]
    record = {
        "method": method,
        "seed": seed,
        "overrides": list(METHODS[method].overrides),
        "steps": load(run / "config.yaml").train.steps,
        "seconds": round(seconds),
        **played(config, sampled),
        "kl": [round(float(value), 4) for value in sampled.kl],
        "held_out": held_out_win_rates(sampled, reference["held_out"]),
        "path": [
            [step["step"], *(round(step[name], 4) for name in ("kl", *names))]
            for step in metrics_of(run)
            if names and names[0] in step  # not of a method that learns from data or another judge
        ],
    }
    write(results / f"{method}-{seed}.json", record)


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

    Raises InputError for settings that a study cannot have, if `folder` or `results` is that of a study with other
    settings or of another model, and for a best response to a method that has no run in `folder`; RunError if a run
    fails.
    """
    file, settings = results / "reference.json", folder / "settings.json"
    for found, option in ((file, "--results"), (settings, "--folder")):
        if found.is_file() and read(found)["overrides"] != list(overrides):
            raise InputError(f"{found.parent} is of a study with other settings: choose another folder with {option}")
    config = checked(overrides)
    write(settings, {"overrides": list(overrides)})
    pairs, reward = folder / "pairs.jsonl", folder / "reward"
    if not file.is_file() or not pairs.is_file():
        write_pairs(pairs, build_preference(config.preference), measure_reference(results, overrides))
    if any("{reward}" in part for method in methods for part in METHODS[method].overrides):
        model = [override for override in overrides if override.startswith("model")]
        data = labelled_pairs(pairs, pairs)
        finish(Job(reward, ("algo=reward_model", "tracker=none", *model, *data, *REWARD_MODEL)), 1)
    measuring = Lock()

    def one(method: str, seed: int) -> None:
        learned = [
            part.format(pairs=pairs, reward=reward, runs=folder, seed=seed) for part in METHODS[method].overrides
        ]
        own = any(part.startswith("preference") for part in learned)
        others = [part for part in overrides if not (own and part.startswith("preference"))]
        job = Job(folder / f"{method}-{seed}", (EXPERIMENT, "tracker=none", *learned, *others, f"seed={seed}"))
        seconds = finish(job, at_once)
        with measuring:
            measure_run(job.folder, results, method, seed, seconds, config)

    waiting = [
        (method, seed) for seed in seeds for method in methods if not (results / f"{method}-{seed}.json").is_file()
    ]
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda named: one(*named), [job for job in waiting if METHODS[job[0]].against is None]))
        responses = [job for job in waiting if METHODS[job[0]].against is not None]
        for method, seed in responses:
            target = folder / f"{METHODS[method].against}-{seed}"
            if not (target / "summary.json").is_file():
                raise InputError(f"{method} needs the finished run {target}: train {METHODS[method].against} too")
        list(pool.map(lambda named: one(*named), responses))
