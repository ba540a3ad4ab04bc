"""The page of one run: settings, metrics, samples, and the command that repeats it."""

import base64
import math
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from alignrun.evaluation.results import Estimate
from alignrun.evaluation.settled import caution, undecided, verdict
from alignrun.evaluation.truncation import truncation_note
from alignrun.reports import curves, figures
from alignrun.reports.headline import share_in_words
from alignrun.reports.page import render
from alignrun.reports.quantities import DISTANCES, POLICY, QUANTITIES, in_order, quantity, with_intervals
from alignrun.reports.record import RunRecord, read
from alignrun.reports.text import EXACT, Shown, percent, shown
from alignrun.run.directory import RunDirectory
from alignrun.security.text import counted


class Plot(NamedTuple):
    """A figure with its title."""

    title: str
    svg: Markup
    note: str = ""


def run_page(run: RunDirectory) -> str:
    """The HTML of a run's report, from the current contents of its folder."""
    record = read(run)
    evaluated = curves.evaluations(record.rows)
    summary = with_intervals(record.summary) if record.summary else None
    final = summary or (evaluated[-1][1] if evaluated else {})
    drawn = [(measured, _plot(measured, index)) for index, measured in enumerate(curves.all_curves(record.rows))]
    lead = _distance(final)
    far = next(
        (figures.distance(each, "distance") for each, _ in drawn if each.name == lead and each.evaluations), None
    )
    drawn = [(each, plot) for each, plot in drawn if far is None or each.name != lead]
    names = [name for name in DISTANCES if name in final] + [name for name in in_order(final) if name not in DISTANCES]
    return render(
        "run.html",
        distance=far,
        distance_title=quantity(lead).title if lead else "",
        title=record.path.name,
        headline=_headline(record, final, evaluated),
        status=_status(record),
        unreadable=record.unreadable,
        notes=_notes(record),
        facts=_facts(record),
        final=[_figure(name, final[name]) for name in names if _is_main(name)],
        more_final=[_figure(name, final[name]) for name in names if not _is_main(name)],
        final_step=None if summary else evaluated[-1][0] if evaluated else None,
        confidence=_confidence(record),
        intervals=any(found.high - found.low > EXACT for found in final.values()),
        curves=[plot for measured, plot in drawn if _is_main(measured.name)],
        more_curves=[plot for measured, plot in drawn if not _is_main(measured.name)],
        path=_path(evaluated),
        samples=record.samples,
        samples_step=record.samples_step,
        figures=[(name, _data_uri(content)) for name, content in record.figures.items()],
        rerun=_rerun(record),
        resume=_resume(record),
        finished=record.summary is not None,
        config=record.config_text,
        environment=_environment(record.environment),
    )


def _is_main(name: str) -> bool:
    """Whether a metric is shown at once rather than on demand."""
    return name in QUANTITIES or name.startswith(POLICY) or name == curves.ACTIONS


def _figure(name: str, measured: Estimate) -> tuple[str, Shown]:
    return quantity(name).label, shown(measured, quantity(name).form)


def _plot(measured: curves.Curve, index: int) -> Plot:
    notes = [measured.quantity.note] if measured.training and measured.evaluations else []
    if measured.training and measured.training.mean_of > 1:
        notes.append(f"Each point of training is the mean of {measured.training.mean_of}.")
    if measured.running:
        notes.append(f"Bold: the running mean of {measured.running.mean_of} values of training.")
    if measured.quantity.even is not None:
        notes.append(f"Horizontal line: {measured.quantity.even:.1g}, no difference.".replace("0.5", "½"))
    return Plot(measured.quantity.title, figures.curve(measured, f"curve{index}"), " ".join(notes))


def _confidence(record: RunRecord) -> str:
    """The confidence of the run's intervals."""
    confidence = record.setting("evaluation.confidence")
    return f"{confidence:.0%}" if isinstance(confidence, float) else "confidence"


def _distance(final: Mapping[str, Estimate]) -> str | None:
    """The metric of a game policy's distance from the equilibrium; None without a game.

    None also for a policy trained against a frozen opponent, which does not approach it.
    """
    if any(name.startswith("opponent/") for name in final):
        return None
    return next((name for name in DISTANCES if name in final and math.isfinite(final[name].value)), None)


def _headline(
    record: RunRecord, final: Mapping[str, Estimate], evaluated: list[tuple[int, dict[str, Estimate]]]
) -> str:
    """The main result of the run, as a sentence."""
    algorithm = record.setting("algo.name") or "the run"
    what = f"What {algorithm} {'has trained' if record.summary else 'has trained so far'}"
    if (measure := _distance(final)) is not None:
        form = quantity(measure).form
        first = next((values[measure] for _, values in evaluated if measure in values), final[measure])
        far = (
            f"{what} {DISTANCES[measure].format(form(final[measure].value))}; at the start it was {form(first.value)}."
        )
        wins = f" It is preferred to its reference {share_in_words(final['win_rate'])} of the time."
        return far + (wins if "win_rate" in final else "")
    if "win_rate" in final:
        found, other = final["win_rate"], "its reference"
        where = "" if record.setting("preference.name") == "matrix" else " on held-out prompts"
        said = f"is preferred to its reference {percent(found.value)} of the time{where}"
    elif "accuracy" in final:
        found, other, where = final["accuracy"], "chance", " on held-out pairs"
        said = f"sides with people on {percent(found.value)} of held-out pairs"
    else:
        return ""
    if not found.high - found.low > EXACT:
        asked = final.get("prompts")
        unsettled = caution(int(asked.value)) if asked and math.isfinite(asked.value) else ""
        return f"{what} {said}{f' (no interval; {unsettled})' if unsettled else ''}."
    interval = f"{_confidence(record)} interval {percent(found.low)} to {percent(found.high)}"
    if verdict(found):
        return f"{what} {said} ({interval})."
    if unsettled := caution(found.prompts):
        return f"{what} {said} in this sample ({interval}; {unsettled})."
    return f"{what} {undecided(found, other)}{where} ({percent(found.value)}, {interval})."


def _notes(record: RunRecord) -> list[str]:
    """Notes on the figures."""
    top_k, top_p = record.setting("evaluation.top_k"), record.setting("evaluation.top_p")
    known = isinstance(top_k, int) and isinstance(top_p, int | float)
    sampled = any("eval/reference_length" in row.values for row in record.rows)
    truncated = truncation_note(top_k, top_p) if known and sampled else ""
    return [truncated] if truncated else []


def _status(record: RunRecord) -> str:
    done = max((row.step for row in record.rows), default=0)
    total = record.total_steps
    if record.summary is not None:
        return f"Finished after {counted(done, 'step')}." if done else "Finished."
    known = f"{done:,} of {counted(total, 'step')}" if total else counted(done, "step")
    stopped = (record.path / "failed_batch.json").is_file()
    reason = " The loss or the gradient was not finite: failed_batch.json holds the batch." if stopped else ""
    return f"Unfinished: {known} recorded.{reason}"


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    """The run's configuration, one line per part; unknown parts are left out."""
    own = record.setting("algo")
    knobs = [f"algo.{name}" for name in own if name != "name"] if isinstance(own, Mapping) else []
    facts = [
        ("algorithm", _values(record, "algo.name", *knobs)),
        ("model", _values(record, "model.name", "model.path", "adapter.name", "adapter.rank")),
        ("reference", _values(record, "reference.name", "reference.path")),
        ("data", _values(record, "data.name", "data.path")),
        (
            "preference",
            _values(record, "preference.name", "preference.path", "preference.model", "preference.function"),
        ),
        ("training", _values(record, "train.steps", "train.batch_size", "optim.learning_rate", "seed")),
        ("sampling", _values(record, "generation.max_new_tokens", "generation.temperature")),
        ("changed on resuming", ", ".join(record.changed)),
    ]
    return [(part, text) for part, text in facts if text]


def _values(record: RunRecord, *keys: str) -> str:
    """Settings by name, without the choices of groups; those that are off or not set are left out."""
    found = [(key.rpartition(".")[2], record.setting(key)) for key in keys]
    known = [(name, value) for name, value in found if value is not None and value is not False and value != ""]
    return ", ".join(str(value) if name == "name" else f"{name} {value}" for name, value in known)


def _path(evaluated: list[tuple[int, dict[str, Estimate]]]) -> Markup | None:
    """The figure of KL and win rate along the run; None if fewer than two evaluations have both."""
    marks = [
        figures.Mark(f"step {step}", values["kl"], values["win_rate"])
        for step, values in evaluated
        if {"kl", "win_rate"} <= values.keys() and math.isfinite(values["kl"].value + values["win_rate"].value)
    ]
    return figures.path(marks, "path") if len(marks) > 1 else None


def _data_uri(content: bytes | None) -> str | None:
    """A figure as an image element, in which a browser neither runs nor loads anything."""
    return None if content is None else f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"


def _rerun(record: RunRecord) -> str:
    """The command line of the run without its folder, which exists already."""
    return shlex.join(["alignrun", *(one for one in record.overrides if not one.lstrip("+").startswith("run.dir="))])


def _resume(record: RunRecord) -> str:
    """The command line that continues the run; a finished run needs more steps."""
    more = [f"train.steps={2 * record.total_steps}"] if record.summary and record.total_steps else []
    return shlex.join(["alignrun", "resume", str(record.path), *more])


def _environment(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows = [(name, found.get(name)) for name in ("device", "platform", "cpu_count", "git_commit", "started", "command")]
    versions = found.get("versions")
    return rows + (list(versions.items()) if isinstance(versions, Mapping) else [])
