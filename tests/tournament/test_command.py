"""`alignrun eval` on real runs of tiny models."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignrun import cli, games
from alignrun.config import TournamentConfig, TrackerConfig
from alignrun.errors import InputError, RunError
from alignrun.launch.compose import compose_tournament
from alignrun.preferences.base import build_preference
from alignrun.tournament import playing, sampling
from alignrun.tournament.patterns import expanded


def play(target: Path, runs: Sequence[object], *overrides: str) -> dict[str, Any]:
    listed = ",".join(map(str, runs))
    assert cli.main(["eval", f"runs=[{listed}]", "tracker=none", f"run.dir={target}", *overrides]) == 0
    results: dict[str, Any] = json.loads((target / "results.json").read_text())
    return results


def values(results: dict[str, Any]) -> np.ndarray:
    return np.array([[cell["value"] for cell in row] for row in results["matrix"]])


def one(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(player for player in results["players"] if player["name"] == name)


def judge_none(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    return [0.5] * len(prompts)


def judge_length(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    """Partial to what it is shown first: only the average of both orders is a preference."""
    return [min(1.0, max(0.0, 0.6 + (len(a) - len(b)) / 40)) for a, b in zip(first, second, strict=True)]


def test_it_leaves_everything_in_its_place(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = play(tmp_path / "t", [runs / "a", runs / "b"])
    out = capsys.readouterr().out
    assert "P(row ≻ column): the row beats the column" in out
    assert "The equilibrium of the win matrix" in out
    assert {path.name for path in (tmp_path / "t").iterdir()} >= {
        "config.yaml", "results.json", "report.html", "completions.jsonl", "environment.json",
    }  # fmt: skip
    assert [player["name"] for player in results["players"]] == ["a", "b", "reference"]
    assert results["reference"] == "reference"
    rows = [json.loads(line) for line in (tmp_path / "t" / "completions.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * results["prompts"] * results["samples_per_prompt"] == 3 * 8 * 4
    page = (tmp_path / "t" / "report.html").read_text()
    assert page.count("data-player=") == len(rows), "all can be browsed"
    assert page.count("cut off</span>") == sum(not row["ended"] for row in rows)
    samples = [json.loads(line) for line in (runs / "a" / "samples.jsonl").read_text().splitlines()]
    assert all(isinstance(row[name], bool) for row in samples for name in ("first_ended", "second_ended"))
    matrix = values(results)
    assert np.allclose(matrix + matrix.T, 1)
    assert one(results, "a")["win_rate"]["value"] == matrix[0, 2]
    assert one(results, "reference")["kl"]["value"] == 0
    assert one(results, "reference")["rating"]["value"] == 0
    assert results["command"].startswith("alignrun eval 'runs=[")
    for player in results["players"]:
        assert player["exploitability"]["proposals"] == 12
        assert player["regularised"]["proposals"] == 4
        assert player["hacking_gap"] is None, "the judge is the preference that they were trained with"


def test_win_rates_are_those_of_the_completions_kept(runs: Path, tmp_path: Path) -> None:
    results = play(tmp_path / "t", [runs / "a"], "preference=function", f"preference.function={__name__}:judge_length")
    rows = [json.loads(line) for line in (tmp_path / "t" / "completions.jsonl").read_text().splitlines()]
    said = {name: {} for name in ("a", "reference")}
    for row in rows:
        said[row["player"]].setdefault(row["prompt"], []).append(row["completion"])
    rates = []
    for prompt, ours in said["a"].items():
        pairs = [(mine, other) for mine in ours for other in said["reference"][prompt]]
        forward = judge_length([prompt] * len(pairs), *map(list, zip(*pairs, strict=True)))
        backward = judge_length([prompt] * len(pairs), *reversed(list(map(list, zip(*pairs, strict=True)))))
        rates.append(np.mean([(p + 1 - q) / 2 for p, q in zip(forward, backward, strict=True)]))
    assert one(results, "a")["win_rate"]["value"] == pytest.approx(np.mean(rates), abs=1e-6)


def test_the_order_of_the_runs_plays_no_part(runs: Path, tmp_path: Path) -> None:
    forward = play(tmp_path / "t", [runs / "a", runs / "b"])
    backward = play(tmp_path / "u", [runs / "b", runs / "a"])
    assert values(forward)[0, 1] == pytest.approx(values(backward)[1, 0])
    for name in ("a", "b", "reference"):
        for figure in ("average", "rating", "kl", "win_rate"):
            mine, other = one(forward, name)[figure], one(backward, name)[figure]
            assert (mine is other is None) or mine["value"] == pytest.approx(other["value"], abs=1e-6)


def test_policies_of_different_references_relate_to_their_own(runs: Path, tmp_path: Path) -> None:
    """By the order of the list, the first one's reference was taken for all."""
    alone = one(play(tmp_path / "alone", [runs / "from_a"]), "from_a")
    forward = play(tmp_path / "t", [runs / "from_a", runs / "b"])
    backward = play(tmp_path / "u", [runs / "b", runs / "from_a"])
    assert forward["reference"] is None
    own = {"from_a": "reference of from_a", "b": "reference of b"}
    for name, reference in own.items():
        found = one(forward, name)
        assert found["reference"] == reference
        assert (found["regularised"], one(forward, reference)["kl"]["value"]) == (None, 0)
        for figure in ("kl", "win_rate", "rating", "average"):
            assert found[figure]["value"] == pytest.approx(one(backward, name)[figure]["value"], abs=1e-6)
    assert one(forward, "from_a")["kl"] == alone["kl"]
    assert sum(player["rating"]["value"] for player in forward["players"]) == pytest.approx(0, abs=1e-6)
    assert "The policies have different references" in " ".join(forward["notes"])
    page = (tmp_path / "t" / "report.html").read_text()
    assert "KL(policy ‖ its reference), nats" in page
    named = play(tmp_path / "v", [runs / "b", runs / "from_a"], "reference_policy=tiny")
    assert named["reference"] == "reference"
    assert one(named, "from_a")["regularised"] is not None
    # To another reference than its own, which may be nearer or farther.
    assert one(named, "from_a")["kl"]["value"] != pytest.approx(alone["kl"]["value"], rel=1e-3)


def test_a_run_that_is_the_reference_of_another_takes_part(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = play(tmp_path / "alone", [runs / "from_a"])
    results = play(tmp_path / "t", [runs / "a", runs / "from_a"])
    assert [player["name"] for player in results["players"]] == ["a", "from_a", "reference of a"]
    assert [player["reference"] for player in results["players"]] == ["reference of a", "a", "reference of a"]
    assert one(results, "from_a")["kl"] == one(alone, "from_a")["kl"]
    assert one(results, "from_a")["win_rate"]["value"] == one(alone, "from_a")["win_rate"]["value"]
    assert "KL to own" in " ".join(capsys.readouterr().out.split())


def test_another_judge_does_not_need_the_training_judge(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(section: Any, *rest: Any) -> Any:
        if section.name == "function":
            raise RunError("the server does not answer")
        return build_preference(section, *rest)

    monkeypatch.setattr(playing, "build_preference", build)
    results = play(tmp_path / "t", [runs / "a"], "preference=sentiment")
    assert (one(results, "a")["hacking_gap"], one(results, "a")["win_rate"] is None) == (None, False)
    assert "No hacking gap of a: the training preference failed (the server does not answer)." in results["notes"]


ASKED: list[tuple[str, str, str]] = []
LIMIT = [0]


def judge_failing(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    """It is asked in both orders, and fails at a new prompt once it has answered about so many."""
    known = {prompt for prompt, _, _ in ASKED}
    if prompts[0] not in known and len(known) >= LIMIT[0]:
        raise OSError("no connection")
    ASKED.extend(zip(prompts, first, second, strict=True))
    return [0.5] * len(prompts)


def test_a_judge_that_fails_half_way_is_asked_the_rest(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("alignrun.tournament.journal.CHUNK", 8)
    LIMIT[0] = 3
    judge = ["preference=function", f"preference.function={__name__}:judge_failing", "hacking_gap=false"]
    assert cli.main(["eval", f"runs=[{runs / 'a'}]", "tracker=none", f"run.dir={tmp_path / 't'}", *judge]) == 1
    said = capsys.readouterr()
    assert "no connection" in said.err
    assert "comparisons are stored: the same command continues from there" in said.out
    assert len({prompt for prompt, _, _ in ASKED}) == 3
    LIMIT[0] = 8
    play(tmp_path / "t", [runs / "a"], *judge)
    assert "comparisons were stored by an earlier attempt" in capsys.readouterr().out
    assert len(ASKED) == len(set(ASKED)), "nothing was asked twice"
    assert not list((tmp_path / "cache" / "comparisons").iterdir())


def test_a_second_judge_samples_nothing_again(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = play(tmp_path / "t", [runs / "a"])

    def fail(*_: object) -> None:
        raise AssertionError("sampled again")

    monkeypatch.setattr(sampling, "draw", fail)
    monkeypatch.setattr(sampling, "score", fail)
    second = play(tmp_path / "u", [runs / "a"], "preference=sentiment")
    kept, again = ((tmp_path / name / "completions.jsonl").read_text() for name in "tu")
    assert kept == again
    assert one(first, "a")["kl"] == one(second, "a")["kl"]
    monkeypatch.undo()
    monkeypatch.setenv("ALIGNRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sampling, "draw", fail)
    with pytest.raises(AssertionError, match="sampled again"):
        play(tmp_path / "v", [runs / "a"], "cache=false")
    assert not (tmp_path / "v").exists(), "nothing is left of a tournament that failed"


def test_the_hacking_gap_is_what_the_training_preference_likes_more(runs: Path, tmp_path: Path) -> None:
    results = play(tmp_path / "t", [runs / "a"], "preference=sentiment")
    own = play(tmp_path / "u", [runs / "a"])
    player = one(results, "a")
    assert player["training_win_rate"]["value"] == pytest.approx(one(own, "a")["win_rate"]["value"], abs=1e-6)
    gap = player["training_win_rate"]["value"] - player["win_rate"]["value"]
    assert player["hacking_gap"]["value"] == pytest.approx(gap)
    assert player["hacking_gap"]["low"] <= gap <= player["hacking_gap"]["high"]
    assert one(results, "reference")["hacking_gap"] is None
    without = play(tmp_path / "v", [runs / "a"], "preference=sentiment", "hacking_gap=false")
    assert one(without, "a")["hacking_gap"] is None


def test_a_judge_without_an_opinion(runs: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    function = f"preference.function={__name__}:judge_none"
    results = play(tmp_path / "t", [runs / "a", runs / "b"], "preference=function", function)
    assert (values(results) == 0.5).all()
    for player in results["players"]:
        assert player["share"]["value"] == pytest.approx(1 / 3)
        assert player["rating"]["value"] == pytest.approx(0)
        gain = player["exploitability"]["gain"]
        assert gain["low"] < gain["value"] == 0 < gain["high"], "eight prompts alike do not speak for all"
    assert results["cycles"] == []
    assert results["misfit"] == pytest.approx(0)
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def judge_long(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    return [1 / (1 + 0.9 ** (len(a) - len(b))) for a, b in zip(first, second, strict=True)]


def judge_brief(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    return [1 / (1 + 0.97 ** (len(b) - len(a))) for a, b in zip(first, second, strict=True)]


def test_the_members_of_a_panel_have_abilities(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = {"long": "long", "brief": "brief", "idle": "none"}
    members = ", ".join(
        f"{name}: {{name: function, function: '{__name__}:judge_{function}'}}" for name, function in named.items()
    )
    panel = ["preference=panel", f"preference.members={{{members}}}", "preference.rule=mean"]
    results = play(tmp_path / "t", [runs / "a", runs / "b"], *panel, "hacking_gap=false")
    found = {one["name"]: one["ability"]["value"] for one in results["judges"]}
    assert list(found) == list(named)
    assert sum(found.values()) == pytest.approx(3)
    assert found["brief"] < 0 < found["long"], "the one prefers what the other does not"
    assert found["idle"] == pytest.approx(0, abs=0.05)
    assert all(one["ability"]["low"] <= one["ability"]["value"] <= one["ability"]["high"] for one in results["judges"])
    assert one(results, "reference")["by_ability"]["value"] == 0
    alone = play(
        tmp_path / "u", [runs / "a", runs / "b"], "preference=function", f"preference.function={__name__}:judge_long"
    )
    assert alone["judges"] == []
    for name in "ab":
        ratings = one(results, name)["by_ability"]["value"], one(alone, name)["rating"]["value"]
        assert np.sign(ratings[0]) == np.sign(ratings[1]), "they follow the more able judge"
    assert "The abilities of the panel's members, 1 on average: long" in capsys.readouterr().out
    assert "Elo, judges weighed by ability" in (tmp_path / "t" / "report.html").read_text()


def test_prompts_are_a_third_player(runs: Path, tmp_path: Path) -> None:
    results = play(tmp_path / "t", [runs / "a", runs / "b"])
    assert min(player["hill_rating"] for player in results["players"]) > -0.5
    assert max(player["hill_rating"] for player in results["players"]) == pytest.approx(0, abs=0.05)
    separation = [one["separation"] for one in results["separating"]]
    assert len(separation) == results["prompts"] == 8
    assert separation == sorted(separation, reverse=True)
    assert 0 <= separation[-1] <= separation[0] <= 1
    assert "Which prompts separate the policies" in (tmp_path / "t" / "report.html").read_text()


def test_a_single_prompt_supports_no_claim(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = play(tmp_path / "t", [runs / "a", runs / "b"], "prompts=1")
    assert results["prompts"] == 1
    cell = results["matrix"][0][1]
    assert (cell["low"], cell["high"]) == (0, 1)
    out = capsys.readouterr().out
    assert "No policy is preferred to every other" in out
    assert "1 prompt" in out
    assert "1 prompts" not in out
    assert results["cycles"] == []
    assert "1 prompt" in " ".join(results["notes"])


def test_rows_that_cannot_be_used_are_counted(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the screen as in a training run, and in what is kept."""
    rows = tmp_path / "asked.jsonl"
    rows.write_text('{"prompt": "Say a word."}\n{"prompt": 7}\n{"prompt": "Say two."}\n')
    data = ["data=jsonl", f"data.path={rows}", f"data.eval_path={rows}", "data.bad_rows=skip"]
    results = play(tmp_path / "t", [runs / "a"], *data)
    out = capsys.readouterr().out
    assert "data: skipped 2 rows that cannot be used" in out
    assert "trained on" not in out, "by none of them"
    assert results["prompts"] == 2
    assert "Left out: 2 rows that cannot be used." in results["notes"]
    play(tmp_path / "u", [runs / "a"], "prompts=2")
    assert "data:" not in capsys.readouterr().out, "of its own data, the run has said it"


def test_truncated_sampling_has_no_kl_and_no_regularised_game(runs: Path, tmp_path: Path) -> None:
    results = play(tmp_path / "t", [runs / "a"], "top_p=0.9", "prompts=3")
    assert all(player["kl"] is None and player["regularised"] is None for player in results["players"])
    assert all(player["exploitability"] is not None for player in results["players"])
    said = " ".join(results["notes"])
    assert "No KL and no regularised game: completions were sampled with top_p=0.9" in said
    assert "3 prompts: fewer than 8 prompts settle no difference" in said
    assert "vocabulary" not in said
    game = play(tmp_path / "u", [runs / "nash"], "top_p=0.9")
    assert game["samples_per_prompt"] == 4, "exact figures are those of whole distributions"
    assert "Sampled and not exact: top_p=0.9" in " ".join(game["notes"])


def test_matched_pairs_ask_less_and_leave_exploitability_out(runs: Path, tmp_path: Path) -> None:
    results = play(tmp_path / "t", [runs / "a", runs / "b"], "pairing=matched")
    assert all(player["exploitability"] is None for player in results["players"])
    assert "No exploitability" in " ".join(results["notes"])
    again = play(tmp_path / "u", [runs / "a", runs / "b"])
    assert np.abs(values(results) - values(again)).max() < 0.2


def test_policies_with_different_tokenizers_meet_on_texts(runs: Path, tmp_path: Path) -> None:
    assert cli.main(["export", str(runs / "a"), "--merge", "--to", str(tmp_path / "other")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    tokenizer.add_tokens(["<new>"])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    results = play(tmp_path / "t", [runs / "a", runs / "b", tmp_path / "other"])
    other = one(results, "other")
    assert other["kl"] is None
    assert other["regularised"] is None
    assert other["exploitability"] is not None
    assert other["step"] is None
    assert other["training_preference"] is None
    assert one(results, "a")["kl"] is not None
    assert "vocabulary" in " ".join(results["notes"])


def test_checkpoints_exports_and_models_take_part(runs: Path, tmp_path: Path) -> None:
    assert cli.main(["export", str(runs / "a"), "--merge", "--to", str(tmp_path / "merged")]) == 0
    early = runs / "a" / "checkpoints" / "step-2"
    results = play(tmp_path / "t", [early, runs / "a", tmp_path / "merged"], "names=[early,late,merged]")
    assert [player["name"] for player in results["players"]] == ["early", "late", "merged", "reference"]
    assert [player["step"] for player in results["players"]] == [2, 3, None, None]
    # The merged model is the policy: its KL is the same up to sampling, and it is even with it.
    late, merged = one(results, "late")["kl"], one(results, "merged")["kl"]
    assert merged["low"] <= late["high"]
    assert late["low"] <= merged["high"]


def test_the_reference_may_be_named(runs: Path, tmp_path: Path) -> None:
    results = play(tmp_path / "t", [runs / "a", runs / "b"], "reference_policy=b")
    assert [player["name"] for player in results["players"]] == ["a", "b"]
    assert results["reference"] == "b"
    assert one(results, "b")["win_rate"] is None
    assert one(results, "b")["kl"]["value"] == 0
    model = play(tmp_path / "u", ["tiny", runs / "a"])
    assert [player["name"] for player in model["players"]] == ["tiny", "a"], "it is the reference of the run"
    assert model["reference"] == "tiny"


def test_on_games_everything_is_exact(runs: Path, tmp_path: Path) -> None:
    results = play(tmp_path / "t", [runs / "nash", runs / "greedy"])
    assert results["samples_per_prompt"] == 0
    policies = []
    for name in ("nash", "greedy"):
        summary = json.loads((runs / name / "summary.json").read_text())
        policy = torch.tensor([summary[f"policy/{action}"] for action in "abc"], dtype=torch.float64)
        policies.append(policy)
        player = one(results, name)
        assert player["exploitability"]["gain"]["value"] == pytest.approx(summary["exploitability"], abs=1e-6)
        assert 2 * player["regularised"]["gain"]["value"] == pytest.approx(summary["duality_gap"], abs=1e-6)
        assert player["kl"]["value"] == pytest.approx(summary["kl"], abs=1e-6)
        assert player["win_rate"]["value"] == pytest.approx(summary["win_rate"], abs=1e-6)
    win = games.win_rate(games.CYC, *policies).item()
    assert values(results)[0, 1] == pytest.approx(win, abs=1e-6)
    assert one(results, "reference")["exploitability"]["gain"]["value"] == pytest.approx(0.08, abs=1e-6)
    assert 2 * one(results, "reference")["regularised"]["gain"]["value"] == pytest.approx(0.06840333, abs=1e-6)


@pytest.mark.slow
def test_sampled_bounds_approach_the_exact_values_of_the_game_from_below(runs: Path, tmp_path: Path) -> None:
    names = ("nash", "greedy", "reference")
    players = [runs / name for name in names[:2]]
    exact = play(tmp_path / "exact", players)
    few, many = (
        [
            play(
                tmp_path / f"{samples}-{seed}", players, "exact=false", f"samples_per_prompt={samples}", f"seed={seed}"
            )
            for seed in range(6)
        ]
        for samples in (4, 40)
    )
    for figure in ("exploitability", "regularised"):
        for name in names:
            true = one(exact, name)[figure]["gain"]["value"]
            mean, error, small = (
                f([one(result, name)[figure]["gain"]["value"] for result in group])
                for f, group in ((np.mean, many), (lambda x: np.std(x, ddof=1) / np.sqrt(len(x)), many), (np.mean, few))
            )
            assert mean < true + 2.5 * error, (figure, name)
            assert mean > true - 0.03 - 2.5 * error, (figure, name)
            assert small < true + 0.08, (figure, name)


def test_wandb_gets_the_panels(runs: Path, tmp_path: Path) -> None:
    target = tmp_path / "t"
    assert cli.main(["eval", f"runs=[{runs / 'a'}]", "tracker.mode=offline", f"run.dir={target}", "prompts=2"]) == 0
    assert list((target / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs is empty"),
        (["runs=[RUNS/a,RUNS/none]"], "none does not exist"),
        (["runs=[RUNS/a,RUNS/checkpoints/step-3]"], "is not a run"),
        (["runs=[RUNS/a/checkpoints/step-77]"], "step-77 does not exist"),
        (["runs=[RUNS/a,RUNS/a]"], "twice"),
        (["runs=[RUNS/a,RUNS/a/checkpoints/step-3]"], "the same policy, weight for weight"),
        (["runs=[RUNS/a,RUNS/nash]"], "differ in data: choose with data=NAME"),
        (["runs=[RUNS/a,RUNS/judged_otherwise]"], "differ in preference: choose with preference=NAME"),
        (["runs=[tiny,smolm]", "data=bundled", "preference=letters"], "smolm does not exist"),
        (["runs=[tiny]"], "one model and no run"),
        (["runs=[tiny,RUNS/a]", "reference_policy=RUNS/nowhere"], "nowhere does not exist"),
        (["runs=[RUNS/a]", "names=[x,y]"], "names must have as many entries as runs"),
        (["runs=['RUNS/a*']", "names=[s,t,u,v,w,x,y,z]"], "names must have as many entries as runs, or none"),
        (["runs=[RUNS/a,RUNS/b]", "names=[x,x]"], "names must differ"),
        (["runs=[RUNS/a]", "sample_per_prompt=3"], "did you mean samples_per_prompt"),
        (["runs=[RUNS/a]", "samples_per_prompt=0"], "samples_per_prompt must be at least 1"),
        (["runs=[RUNS/a]", "preference=none"], "needs a judge"),
        (["runs=[RUNS/a]", "preference.temperature=2"], "also needs preference=NAME"),
        (["runs=[RUNS/a]", "data.eval_size=2"], "also needs data=NAME"),
        (["runs=[RUNS/a]", "algo=dpo"], "unknown group algo: choose from data, preference, tracker"),
        (["runs=[RUNS/a]", "pairing=some"], "pairing"),
        (["runs=[RUNS/a]", "kl_tau=-1"], "kl_tau must be positive"),
        (["runs=[RUNS/a]", "run.dir=RUNS/a"], "already holds a run"),
        (["runs=[RUNS/a]", "max_new_tokens=100000"], "leaves no room for a prompt"),
        (["runs=RUNS/a"], "runs"),
        (["RUNS/a"], "takes its runs as a list"),
    ],
)
def test_wrong_ways(runs: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path for path in runs.rglob("*"))
    filled = [argument.replace("RUNS", str(runs)) for argument in arguments]
    assert cli.main(["eval", *filled, *([] if any("run.dir" in a for a in filled) else ["run.dir=out"])]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert not Path("out").exists()
    assert sorted(path for path in runs.rglob("*")) == before


def test_a_pattern_is_every_run_that_can_play(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run-10", "run-9"):
        shutil.copytree(runs / "a", tmp_path / name)
    shutil.rmtree(tmp_path / "run-9" / "checkpoints")
    (tmp_path / "run-8").mkdir()
    (tmp_path / "run-7.txt").touch()
    (shutil.copytree(runs / "b", tmp_path / "run-x") / "config.yaml").write_text("algo: [")
    sources = [str(runs / "a"), f"{tmp_path}/run-*", f"{tmp_path}/run-1?"]
    found, notes = expanded(TournamentConfig(runs=sources, tracker=TrackerConfig()))
    assert found.runs == [str(runs / "a"), str(tmp_path / "run-10")]
    assert notes[0] == f"{tmp_path / 'run-9'} is left out: it has no checkpoint"
    assert notes[1].startswith(f"{tmp_path / 'run-x'} is left out: {tmp_path / 'run-x' / 'config.yaml'} cannot be read")
    with pytest.raises(InputError, match="no run matches"):
        expanded(TournamentConfig(runs=["nothing/*"], tracker=TrackerConfig()))
    with pytest.raises(InputError, match=r"none can play: .*run-9 is left out: it has no checkpoint"):
        expanded(TournamentConfig(runs=[f"{tmp_path}/run-9*"], tracker=TrackerConfig()))
    plain = TournamentConfig(runs=[str(runs / "a"), "tiny"], tracker=TrackerConfig())
    assert expanded(plain) == (plain, ())
    arguments = ["samples_per_prompt=1", "prompts=2", "tracker=none", f"run.dir={tmp_path / 'cup'}"]
    assert cli.main(["eval", f"runs={runs}/[ab]", *arguments]) == 0
    results = json.loads((tmp_path / "cup" / "results.json").read_text())
    assert [player["name"] for player in results["players"]] == ["a", "b", "reference"]
    assert "runs:\n- " + str(runs / "a") in results["config"], "what it was played between, not the pattern"


def test_a_feedback_model_is_no_player(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "rm"
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(json.dumps({"prompt": f"p{i}", "chosen": "good", "rejected": "x"}) + "\n" for i in range(20))
    )
    train = ["experiment=smoke", "algo=reward_model", "data=jsonl", f"data.path={pairs}", f"run.dir={run}"]
    assert cli.main(train) == 0
    assert cli.main(["eval", f"runs=[{run}]"]) == 2
    assert "is a feedback model, not a policy" in capsys.readouterr().err


def test_a_player_chooses_among_samples_of_a_policy(runs: Path, tmp_path: Path) -> None:
    """On a game it is exact, and samples agree; its reference is that of the run."""
    players = [runs / "nash", f"best_of_nash:{runs / 'nash'}", f"borda:{runs / 'nash'}"]
    exact = play(tmp_path / "t", players)
    assert [player["name"] for player in exact["players"]] == ["nash", "best_of_nash:nash", "borda:nash", "reference"]
    chooser = one(exact, "best_of_nash:nash")
    assert chooser["reference"] == "reference"
    assert chooser["exploitability"]["gain"]["value"] < one(exact, "borda:nash")["exploitability"]["gain"]["value"]
    assert "the judge of this tournament, which flatters them" in " ".join(exact["notes"])
    assert chooser["kl"] is not None

    sampled = play(tmp_path / "u", players, "exact=false", "samples_per_prompt=150", "candidates=8")
    assert np.abs(values(sampled) - values(exact)).max() < 0.1
    assert one(sampled, "best_of_nash:nash")["kl"] is None
    assert "best_of_nash:nash: one of 8 completions; its KL to the model that draws them is at most" in " ".join(
        sampled["notes"]
    )
    rows = [json.loads(line) for line in (tmp_path / "u" / "completions.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * 150


def test_another_selector_chooses(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By length, the chosen completions are the longest of their candidates; a model is compared with itself."""
    chosen = [f"borda:{runs / 'a'}", "preference=letters", "preference@selector=function"]
    selector = f"selector.function={__name__}:judge_length"
    results = play(tmp_path / "t", [chosen[0]], *chosen[1:], selector, "candidates=4")
    lengths = {player["name"]: player["words"]["value"] for player in results["players"]}
    assert set(lengths) == {"borda:a", "reference"}
    rows = [json.loads(line) for line in (tmp_path / "t" / "completions.jsonl").read_text().splitlines()]
    mean = {name: np.mean([len(row["completion"]) for row in rows if row["player"] == name]) for name in lengths}
    assert mean["borda:a"] > mean["reference"] + 0.3
    assert "judge_length); the tournament is judged by function" in " ".join(results["notes"])
    assert play(tmp_path / "u", [chosen[0]], *chosen[1:], selector, "candidates=4")["matrix"] == results["matrix"]
    assert not list((tmp_path / "cache" / "comparisons").iterdir()), "no answers are left of a finished tournament"
    capsys.readouterr()
    for overrides, reason in (
        ([f"runs=[mirror:{runs / 'a'}]", "candidates=1"], "candidates must be at least 2"),
        ([f"runs=[{runs / 'a'}]", "preference@selector=letters"], "no player chooses"),
        ([f"runs=[{runs / 'a'}]", "candidates=4"], "candidates is not used: no player chooses"),
        ([f"runs=[mirror:{runs / 'a'}]", "selector=letters"], "with preference@selector=NAME"),
        ([f"runs=[mirror:{runs / 'a'}]", f"reference_policy=mirror:{runs / 'a'}"], "reference_policy"),
        ([f"runs=[mirror:{tmp_path / 'none'}]"], "none"),
    ):
        assert cli.main(["eval", *overrides, "tracker=none"]) == 2
        assert reason in capsys.readouterr().err


def test_patterns_take_a_rule(runs: Path) -> None:
    config = TournamentConfig(runs=[str(runs / "a"), f"mirror:{runs}/[ab]"], tracker=TrackerConfig())
    assert expanded(config)[0].runs == [str(runs / "a"), f"mirror:{runs / 'a'}", f"mirror:{runs / 'b'}"]


def test_a_selector_is_read_as_a_preference_is(tmp_path: Path) -> None:
    """Its template comes from a file, and a path is taken literally."""
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    chosen = ["preference@selector=pair_model", "selector.path=a,b", f"selector.chat_template={template}"]
    section = compose_tournament(["runs=[mirror:a]", *chosen]).selector
    assert (section.name, section.path, section.chat_template) == ("pair_model", "a,b", "{{ messages }}")
