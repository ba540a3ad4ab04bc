"""The page of a run, of any kind and in any state."""

import math
import re
from pathlib import Path

import pytest
from reports.checks import check
from reports.examples import evaluation, sample, training, whole_run, write_run

from alignrun.reports.curves import POINTS, Line, all_curves, thin
from alignrun.reports.record import MetricsRow, read
from alignrun.reports.run import run_page
from alignrun.run.directory import RunDirectory


def test_a_finished_run_is_reported_with_its_numbers(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    page = check(run_page(run))
    assert "What nash_md has trained is preferred to its reference 70.0% of the time on held-out prompts" in page.text
    assert "(90% interval 65.0% to 76.0%)." in page.text
    assert "Finished after 20 steps." in page.text
    assert "win rate against the reference 0.700 [0.650, 0.760]" in page.text
    assert "KL(policy ‖ reference), nats 0.420" in page.text
    assert "nash_md, kl_tau 0.02" in page.text
    labels = page.attributes("aria-label")
    assert "loss by step: −0.110 at step 1, −0.300 at step 20" in labels
    assert "win rate by step: 0.500 at step 0, 0.700 at step 20" in labels
    assert any(label.startswith("Win rate against the reference by KL. step 0: 0.500 at 0 nats") for label in labels)


def test_no_lead_claims_more_than_its_interval(tmp_path: Path) -> None:
    summary = {"step": 2, "win_rate": 0.52, "win_rate_low": 0.4, "win_rate_high": 0.6}
    page = check(run_page(write_run(tmp_path / "run", summary=summary)))
    lead = "What nash_md has trained is indistinguishable from its reference on held-out prompts (52.0%, 90% interval"
    assert f"{lead} 40.0% to 60.0%)." in page.text
    assert "is preferred" not in page.text
    few = check(run_page(write_run(tmp_path / "few", summary=summary | {"prompts": 7})))
    assert "in this sample (90% interval 40.0% to 60.0%; fewer than 8 prompts settle no difference)." in few.text
    alone = {"step": 2, "win_rate": 1.0, "prompts": 1}
    one = check(run_page(write_run(tmp_path / "one", summary=alone)))
    assert (
        "100.0% of the time on held-out prompts (no interval; fewer than 8 prompts settle no difference)." in one.text
    )
    chance = {"step": 2, "accuracy": 0.52, "accuracy_low": 0.4, "accuracy_high": 0.6}
    pairs = check(run_page(write_run(tmp_path / "pairs", summary=chance)))
    assert "has trained is indistinguishable from chance on held-out pairs (52.0%, 90%" in pairs.text


def test_samples_are_those_of_the_last_evaluation_policy_first(tmp_path: Path) -> None:
    page = check(run_page(whole_run(tmp_path / "run")))
    assert "the first evaluation" not in page.text
    assert page.text.index("A calm, bright hall.") < page.text.index("It is a hall.")
    assert re.search(
        r"policy A calm, bright hall\. reference It is a hall\. P\(policy ≻ reference\) = 0\.730", page.text
    )
    assert 'style="width:73.0%"' in page.html
    assert "Nothing judged this pair." in page.text


def test_the_command_lines_can_be_pasted(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "my runs")
    page = check(run_page(run))
    code = [text for tag, text in page.texts if tag == "code"]
    assert code[:2] == [
        "alignrun algo=nash_md 'data.path=my prompts.jsonl'",
        f"alignrun resume '{run.path}' train.steps=40",
    ]
    assert code[2] == run.config_file.read_text()
    run.summary_file.unlink()
    assert f"alignrun resume '{run.path}' Configuration" in check(run_page(run)).text


def test_a_game_shows_its_policy_and_no_interval(tmp_path: Path) -> None:
    rows = [
        {"step": step, "eval/win_rate": 0.5, "eval/kl": 0.1, "eval/exploitability": 0.08 - step / 1000,
         "eval/policy/a": 0.5, "eval/policy/<b>": 0.5}
        for step in (0, 10)
    ]  # fmt: skip
    run = write_run(
        tmp_path / "run", rows, summary={"step": 10, "win_rate": 0.5, "exploitability": 0.07, "policy/a": 0.5}
    )
    run.config_file.write_text("algo: {name: nash_md}\npreference: {name: matrix}\n")
    page = check(run_page(run))
    assert "What nash_md has trained can be exploited by 0.070, which is 0 at an equilibrium; at the start" in page.text
    assert "it was 0.080. It is preferred to its reference 50.0% of the time." in page.text
    assert "interval" not in page.text
    assert "probability of a 0.500" in page.text
    assert "probability of each action" in page.text
    assert "exploitability by step: 0.080 at step 0, 0.070 at step 10" in page.attributes("aria-label")
    assert "Samples" not in page.text


def test_a_game_leads_with_its_distance_to_the_equilibrium(tmp_path: Path) -> None:
    rows = [
        {"step": step, "eval/win_rate": 0.5, "eval/kl_equilibrium": 0.5 * 0.8**step, "eval/duality_gap": 0.3,
         "eval/exploitability": 0.1}
        for step in range(0, 21, 5)
    ]  # fmt: skip
    final = {name.removeprefix("eval/"): value for name, value in rows[-1].items()}
    page = check(run_page(write_run(tmp_path / "run", rows, summary=final)))
    lead = "What nash_md has trained is 0.00576 nats from the equilibrium of its game, KL(equilibrium ‖ policy)"
    assert f"{lead}; at the start it was 0.500." in page.text
    assert page.text.index("Distance to the equilibrium") < page.text.index("Final figures")
    drawn = "KL(equilibrium ‖ policy), nats by step: 0.500 at step 0, 0.00576 at step 20"
    assert page.attributes("aria-label").count(drawn) == 1, "drawn once"
    assert [row[0] for row in page.rows("final")][:3] == [
        "KL(equilibrium ‖ policy), nats", "duality gap", "exploitability",
    ]  # fmt: skip
    against = check(run_page(write_run(tmp_path / "against", rows, summary=final | {"opponent/gain": 0.1})))
    assert "from the equilibrium" not in against.text, "a best response has another goal"
    rows[-1]["eval/kl_equilibrium"] = None
    young = check(run_page(write_run(tmp_path / "young", rows)))
    assert "leaves a duality gap of 0.300" in young.text, "what is not finite leads nothing"


def test_a_feedback_model_shows_its_diagram_as_an_image(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 0.7 - step / 10, "accuracy": 0.5, "ece": None} for step in (1, 2)]
    summary = {"step": 2, "accuracy": 0.768, "accuracy_low": 0.635, "accuracy_high": 0.856, "ece": 0.078}
    run = write_run(tmp_path / "run", rows, summary=summary)
    (run.path / "reliability.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    (run.path / "huge.svg").write_text("x" * 2_100_000)
    page = check(run_page(run))
    assert "sides with people on 76.8% of held-out pairs (90% interval 63.5% to 85.6%)" in page.text
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert image["alt"] == "reliability.svg"
    assert image["src"].startswith("data:image/svg+xml;base64,")
    assert "huge.svg: too large to be shown here" in page.text
    assert "expected calibration error 0.078" in page.text


@pytest.mark.parametrize(
    "rows", [[], [training(1)], [evaluation(0, 0.5)], [evaluation(0, 0.5), training(1), training(2)]]
)
def test_a_young_run_has_a_page(rows: list[dict[str, object]], tmp_path: Path) -> None:
    page = check(run_page(write_run(tmp_path / "run", rows)))
    last = max((int(str(row["step"])) for row in rows), default=0)
    assert f"Unfinished: {last} of 20 steps recorded." in page.text
    assert ("No metric has two values yet." in page.text) == (len(rows) < 2)
    assert ("At the last evaluation, step 0" in page.text) == any("eval/kl" in row for row in rows)


def test_an_empty_folder_has_a_page(tmp_path: Path) -> None:
    page = check(run_page(RunDirectory(tmp_path)))
    assert "Unfinished: 0 steps recorded." in page.text
    assert "cannot be read" not in page.text


def test_torn_and_broken_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    with run.metrics_file.open("a") as file:
        file.write('[1]\n{"loss": 1}\n{"step": 21, "lo')
    run.summary_file.write_text("{")
    run.environment_file.write_text("[]")
    run.overrides_file.write_bytes(b"\xff: [")
    run.config_file.write_text("a: [")
    (run.path / "failed_batch.json").write_text("{}")
    page = check(run_page(run))
    for problem in (
        "a line of metrics.jsonl is torn and left out", "summary.json cannot be read",
        "environment.json cannot be read", "overrides.yaml cannot be read", "config.yaml cannot be read",
    ):  # fmt: skip
        assert problem in page.text
    assert "Unfinished: 20 steps recorded. The loss or the gradient was not finite" in page.text
    assert "At the last evaluation, step 20" in page.text
    assert "a: [" in page.text


def test_values_that_were_not_finite_leave_a_gap(tmp_path: Path) -> None:
    rows = [
        {"step": step, "loss": None if step == 2 else 1.0 * step, "kl": None, "odd": "text"} for step in range(1, 5)
    ]
    run = write_run(tmp_path / "run", rows)
    assert math.isnan(read(run).rows[1].values["loss"])
    page = check(run_page(run))
    assert "loss by step: 1 at step 1, 4 at step 4" in page.attributes("aria-label")
    assert "KL(policy" not in page.text


def test_a_long_line_becomes_means_of_neighbours(tmp_path: Path) -> None:
    rows = [MetricsRow(step, {"loss": float(step % 2)}) for step in range(1, 1201)]
    (panel,) = all_curves(rows)
    assert panel.training is not None
    assert panel.training.mean_of == 3
    assert len(panel.training.points) == POINTS
    assert panel.training.points[0] == (2.0, 2 / 3)
    assert thin(Line("x", ((0.0, math.nan), (1.0, 3.0), (2.0, math.nan))), 2).points[0] == (0.5, 3.0)
    run = write_run(tmp_path / "run", [{"step": row.step} | row.values for row in rows])
    text = check(run_page(run)).text
    assert "Each point of training is the mean of 3. Bold: the running mean of 61 values of training." in text


def test_the_line_of_no_difference_is_explained(tmp_path: Path) -> None:
    text = check(run_page(whole_run(tmp_path / "run"))).text
    assert text.count("Horizontal line: ½, no difference.") == 1
    assert "running mean" not in text, "so few steps are all shown"


def test_samples_without_words_are_no_trouble(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [training(1), training(2)], [sample(1, ""), {"step": 1}])
    assert check(run_page(run)).text.count("P(policy ≻ reference)") == 1


def test_a_sample_that_was_cut_off_is_marked(tmp_path: Path) -> None:
    rows = [
        sample(1, "one", first_ended=False, second_ended=True),
        sample(1, "two", first_ended=True, second_ended=False),
        sample(1, "three", first_ended="no"),
        sample(1, "older"),
    ]
    page = check(run_page(write_run(tmp_path / "run", samples=rows)))
    assert page.text.count("cut off") == 2
    assert "policy cut off one reference It is a hall." in page.text
    assert "policy two reference cut off It is a hall." in page.text
