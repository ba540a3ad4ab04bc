"""The commands as a user meets them: presets, listing, planning, exporting, sweeping."""

import ast
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked import Popen
from helpers import random_batch
from rich.console import Console

from alignrun import cli
from alignrun.config.shipped import config_folder
from alignrun.errors import InputError
from alignrun.evaluation.results import RunResult
from alignrun.launch import compose
from alignrun.launch.checks import check
from alignrun.launch.choices import choices
from alignrun.planning.plan import count_parameters, make_plan
from alignrun.sweeps.job import state
from alignrun.sweeps.table import read_run, summarise

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_composes_and_names_its_launch_line(name: str) -> None:
    text = (config_folder() / "experiment" / f"{name}.yaml").read_text()
    first, launch = text.splitlines()[:2]
    assert first == "# @package _global_"
    assert launch.startswith(f"# alignrun experiment={name}")
    config = compose.compose(launch.split()[2:])
    check(config)


@pytest.mark.parametrize(
    "override", [f"{group}={name}" for group in ("algo", "model", "preference") for name in choices(group)]
)
def test_every_choice_composes(override: str) -> None:
    needed = {
        "model=path": ["model.path=some/model"],
        "model=game": ["preference=matrix"],
        "preference=function": ["preference.function=a:b"],
        "preference=learned": ["preference.path=some/run"],
        "preference=bradley_terry": ["preference.path=some/run"],
        "preference=reward_model": ["preference.path=some/model"],
        "preference=pair_model": ["preference.path=some/model"],
        "preference=general_preference": ["preference.path=some/model"],
        "preference=measure": ["preference.measure=brevity"],
        "preference=panel": ["preference.members={a: {name: letters}, b: {name: sentiment}}"],
        "preference=judge": ["preference.url=http://localhost/v1", "preference.model=m"],
        "preference=reward_server": ["preference.url=http://localhost", "preference.model=m"],
    }
    compose.compose([override, *needed.get(override, [])])


def test_the_demo_names_what_a_run_is_by_default() -> None:
    """Up to sizes and rates; and `make run` names the demo."""
    demo, default = compose.compose(["experiment=demo"]), compose.compose([])
    sized = {name: getattr(default, name) for name in ("algo", "generation", "optim", "train")}
    assert replace(demo, **sized) == default
    assert demo.algo.name == default.algo.name
    assert "$(BIN)/alignrun experiment=demo $(ARGS)\n" in (ROOT / "Makefile").read_text()


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    for overrides in ([], ["experiment=game"], ["experiment=smoke", "optim.schedule=cosine", "adapter=none"]):
        config = compose.compose(overrides)
        (tmp_path / "config.yaml").write_text(compose.dump(config))
        assert compose.load(tmp_path / "config.yaml") == config
    with pytest.raises(AttributeError):
        config.seed = 1  # type: ignore[misc]


def test_the_smoke_run_leaves_everything_in_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert cli.main(["experiment=smoke", f"run.dir={run}"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "win rate against the reference" in out
    assert "95% interval" in out
    assert str(run) in out
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.yaml", "overrides.yaml", "metrics.jsonl", "samples.jsonl", "environment.json", "summary.json",
        "checkpoints", "adapter",
    }  # fmt: skip
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-2", "step-3"}
    assert (run / "overrides.yaml").read_text() == f"- experiment=smoke\n- run.dir={run}\n"
    assert not [path for path in run.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")], "no pickle anywhere"
    sample = json.loads((run / "samples.jsonl").read_text().splitlines()[0])
    assert sample.keys() >= {"step", "prompt", "first", "second", "preference"}
    assert "torch" in json.loads((run / "environment.json").read_text())["versions"]


def test_ls_names_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ls"]) == 0
    out = capsys.readouterr().out
    for choice in ("algo=nash_md", "model=llama-8b", "model=path", "adapter=qlora", "data=hub", "experiment=smoke"):
        assert choice in out
    assert cli.main(["ls", "adapter"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["adapter=lora", "adapter=none", "adapter=qlora"]
    assert all(len(line.split()) > 3 for line in lines)


def test_config_prints_what_can_be_read_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["config", "experiment=game", "seed=5"]) == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert compose.load(tmp_path / "config.yaml") == compose.compose(["experiment=game", "seed=5"])


@pytest.mark.parametrize(
    ("model", "parameters", "layers"),
    [
        ("llama-8b", 8_030_261_248, 32 * 7),
        ("qwen-7b", 7_615_616_512, 28 * 7),
        ("qwen-1.5b", 1_543_714_304, 28 * 7),
        ("qwen-0.5b", 494_032_768, 24 * 7),
        ("smollm2-135m", 134_515_008, 30 * 7),
    ],
)
def test_plans_count_the_published_parameters(model: str, parameters: int, layers: int) -> None:
    """The counts on the models' own cards."""
    plan = count_parameters(compose.compose([f"model={model}"]))
    assert plan.parameters == parameters
    assert plan.adapted_layers == layers
    text = compose.compose([f"model={model}"]).model.architecture
    head = text["hidden_size"] // text["num_attention_heads"]
    pairs = [
        (text["hidden_size"], text["num_attention_heads"] * head),
        (text["hidden_size"], text["num_key_value_heads"] * head),
        (text["hidden_size"], text["num_key_value_heads"] * head),
        (text["num_attention_heads"] * head, text["hidden_size"]),
        (text["hidden_size"], text["intermediate_size"]),
        (text["hidden_size"], text["intermediate_size"]),
        (text["intermediate_size"], text["hidden_size"]),
    ]
    assert plan.trainable == 16 * sum(a + b for a, b in pairs) * text["num_hidden_layers"]


def test_pythia_has_its_published_parameters() -> None:
    """From its card; query, key and value are one layer, and the feed-forward has no gate."""
    plan = count_parameters(compose.compose(["model=pythia-1b"]))
    assert (plan.parameters, plan.adapted_layers) == (1_011_781_632, 16 * 4)


def test_plan_reads_no_weights_and_orders_the_adapters(capsys: pytest.CaptureFixture[str]) -> None:
    judge = ["preference=judge", "preference.url=http://localhost/v1", "preference.model=m"]
    assert cli.main(["plan", "algo=nash_md", "model=llama-8b", *judge]) == 0
    out = capsys.readouterr().out
    assert "8,030.3M parameters, lora rank 16 on 224 layers: 41.9M trained" in out
    assert "<|start_header_id|>user<|end_header_id|>" in out
    prompts = compose.compose_run(["model=llama-8b"]).train.batch_size
    assert f"judging: {32 * prompts:,} questions a step, 32 for each prompt" in out

    def peak(*overrides: str) -> int:
        return make_plan(compose.compose(["model=llama-8b", "generation.max_new_tokens=16", *overrides])).peak

    peaks = {name: peak(f"adapter={name}") for name in ("lora", "qlora", "none")}
    assert peaks["qlora"] < peaks["lora"] < peaks["none"]
    assert peak("train.micro_batch_size=1") <= peaks["lora"]


def test_the_exported_adapter_gives_the_same_logits_in_peft(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from alignrun.models.policy import Policy
    from alignrun.models.sources import load_model, load_tokenizer
    from alignrun.training.checkpoint import restore_weights
    from alignrun.types import Role

    run = tmp_path / "run"
    assert cli.main(["experiment=smoke", f"run.dir={run}", "optim.learning_rate=0.05"]) == 0
    assert cli.main(["export", str(run)]) == 0
    assert cli.main(["export", str(run), "--merge", "--to", str(tmp_path / "merged")]) == 0
    assert cli.main(["export", str(run), "--step", "2", "--to", str(tmp_path / "earlier")]) == 0

    config = compose.load(run / "config.yaml")
    tokenizer = load_tokenizer(config.model)
    policy = Policy.load(config.model, config.adapter, config.reference, tokenizer, config.seed)
    from alignrun.training.checkpoint import load_checkpoint

    restore_weights(policy.trainable(), load_checkpoint(run / "checkpoints/step-3"))
    prompts, completions = random_batch(policy)

    def base():
        torch.manual_seed(config.seed)
        return load_model(config.model, tokenizer, torch.float32)

    ids = torch.randint(0, 200, (2, 9))
    with torch.no_grad():
        expected = policy.model(input_ids=ids).logits
        for folder in (run / "export", run / "adapter"):
            loaded = PeftModel.from_pretrained(base(), str(folder))
            assert torch.equal(loaded(input_ids=ids).logits, expected)
        earlier = PeftModel.from_pretrained(base(), str(tmp_path / "earlier"))
        assert not torch.equal(earlier(input_ids=ids).logits, expected)
        assert not torch.allclose(base()(input_ids=ids).logits, expected, atol=1e-3)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
        assert (policy.log_probs(Role.policy, prompts, completions)).shape == completions.tokens.shape


@pytest.fixture
def forked_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of a sweep are forked from a process that has imported everything."""
    monkeypatch.setattr("alignrun.sweeps.sweep.subprocess.Popen", Popen)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_a_sweep_gives_each_run_its_directory_and_ends_in_a_ranking(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    arguments = ["-m", "experiment=smoke", "algo.kl_tau=0.01,10", "seed=1,2", "train.steps=2"]
    arguments += ["optim.learning_rate=0.01", "evaluation.confidence=0.9", f"hydra.sweep.dir={sweep}"]
    assert cli.main(arguments) == 0
    rows = json.loads((sweep / "sweep.json").read_text())
    assert len(rows) == 4
    assert {tuple(row["overrides"].split()[1:3]) for row in rows} == {
        (f"algo.kl_tau={tau}", f"seed={seed}") for tau in ("0.01", "10") for seed in (1, 2)
    }
    for row in rows:
        assert (sweep / row["run"] / "summary.json").is_file()
        config = compose.load(sweep / row["run"] / "config.yaml")
        assert f"seed={config.seed}" in row["overrides"]
    ranking = json.loads((sweep / "ranking.json").read_text())
    assert (ranking["command"], ranking["confidence"]) == (shlex.join(["alignrun", *arguments]), 0.9)
    settings = {setting["runs"][0]: setting for setting in ranking["settings"]}
    for setting, pair in zip((settings["0"], settings["2"]), (rows[:2], rows[2:]), strict=True):
        assert setting["runs"] == [row["run"] for row in pair]
        assert setting["setting"] == pair[0]["overrides"].replace(" seed=1", "")
        assert setting["metrics"]["win_rate"]["value"] == pytest.approx(sum(row["win_rate"] for row in pair) / 2)
    reached = {run["name"]: [point["kl"] for point in run["trajectory"]] for run in ranking["runs"]}
    assert reached == {row["run"]: [row["kl"]] for row in rows}
    assert ranking["matched_kl"] == min(row["kl"] for row in rows)
    assert ranking["settings"][0]["matched"]["value"] > ranking["settings"][1]["matched"]["value"]
    assert "algo.kl_tau=0.01" in (sweep / "report.html").read_text()
    out = " ".join(capfd.readouterr().out.split())
    assert f"4 runs in {sweep}, ranked by win rate at KL {ranking['matched_kl']:.3g} nats, interpolated" in out
    assert "all with experiment=smoke train.steps=2 optim.learning_rate=0.01 evaluation.confidence=0.9 ┏" in out
    first, second = (out.index(f"│ {setting['setting'].split()[1]} │") for setting in ranking["settings"])
    assert first < second
    assert f"│ {ranking['settings'][0]['metrics']['win_rate']['value']:.4g} [" in out[first:second]


def test_a_page_that_cannot_be_drawn_loses_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_result: object) -> str:
        raise ValueError("no [bold]ink[/bold]\nleft")

    monkeypatch.setattr("alignrun.reports.sweep.sweep_page", fail)
    for name, exit_code in (("0", 0), ("1", 130)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text(json.dumps({"exit_code": exit_code}))
        (tmp_path / name / "overrides.yaml").write_text(f"- data.path='a [b] c'\n- +seed={name}\n- run.dir=x\n")
        if exit_code == 0:
            (tmp_path / name / "summary.json").write_text('{"step": 3, "accuracy": 0.75, "loss": NaN}')
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 2, "eval/kl": null, "eval/win_rate": 0.5}\n{"st')
    console = Console(width=160)
    assert summarise(tmp_path, "alignrun -m", 0.95, console) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "report.html could not be drawn: no [bold]ink[/bold] left" in out
    assert "│ data.path='a [b] c' │ 0, 1 │ 0.75 │" in out
    assert "1 failed (exit code 130)" in out
    finished, failed = (read_run(tmp_path / name, name, state(tmp_path / name)) for name in ("0", "1"))
    own = ("data.path='a [b] c'",)
    assert finished == RunResult("0", *own, 0, 0, {"accuracy": 0.75}, (), overrides=own)
    assert failed == RunResult("1", *own, 1, 130, {}, (), overrides=own)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "sweep.json", "ranking.json"}


def test_a_sweep_without_runs_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert summarise(tmp_path, "alignrun -m", 0.95, Console(width=160)) == 1
    assert "0 runs in" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_a_failed_run_is_reported_and_does_not_end_the_sweep(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep"
    arguments = ["-m", "experiment=smoke", "train.steps=1", f"hydra.sweep.dir={sweep}"]
    code = cli.main([*arguments, "preference.function=absent:f,alignrun.preferences.examples:letters"])
    assert code == 1
    rows = json.loads((sweep / "sweep.json").read_text())
    assert [row["exit_code"] for row in rows] == [2, 0]
    assert rows[0]["overrides"] == "experiment=smoke train.steps=1 preference.function=absent\\:f"
    assert "failed (exit code 2)" in " ".join(capfd.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_a_repeated_sweep_makes_only_what_is_missing(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    arguments = ["-m", "experiment=smoke", "seed=1,2,3", "train.checkpoint_every=1", f"hydra.sweep.dir={sweep}"]
    assert cli.main(arguments) == 0
    before = (sweep / "ranking.json").read_text()
    # The second run was cut short after its first step, and the third has never begun.
    (sweep / "1" / "summary.json").unlink()
    for step in (2, 3):
        shutil.rmtree(sweep / "1" / "checkpoints" / f"step-{step}", ignore_errors=True)
    shutil.rmtree(sweep / "2")
    untouched = (sweep / "0" / "report.html").stat().st_mtime_ns
    assert cli.main(arguments) == 0
    assert (sweep / "0" / "report.html").stat().st_mtime_ns == untouched
    assert (sweep / "ranking.json").read_text() == before
    assert cli.main([*arguments, "train.steps=1"]) == 2, "another sweep than that which stands there"
    assert (sweep / "ranking.json").read_text() == before


@pytest.mark.usefixtures("forked_runs")
def test_a_sweep_takes_any_path_and_skips_no_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / "it's (a) copy, x=1"
    odd.mkdir()
    quoted = str(odd).replace("'", r"\'")
    assert cli.main(["-m", "experiment=smoke", "seed=1,2", "train.steps=1", f"hydra.sweep.dir='{quoted}'"]) == 0
    rows = json.loads((odd / "sweep.json").read_text())
    assert [row["exit_code"] for row in rows] == [0, 0]
    capfd.readouterr()
    assert cli.main(["-m", "foo", "seed=1,2"]) == 2
    assert cli.main(["-m", "data.prompts=[a", "seed=1,2"]) == 2
    assert capfd.readouterr().err.count("alignrun: error: ") == 2


def test_a_sweep_is_refused_whole_if_any_part_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep"
    arguments = ["-m", "experiment=smoke", f"hydra.sweep.dir={sweep}"]
    for wrong, expected in (
        ("algo.kl_tau=0.1,-3", "algo.kl_tau must not be negative"),
        ("algo.kl_tua=0.1,0.2", "unknown key algo.kl_tua"),
        ("run.dir=x", "hydra.sweep.dir"),
    ):
        assert cli.main([*arguments, wrong]) == 2
        assert expected in capsys.readouterr().err
    assert not sweep.exists()


def test_the_version_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from alignrun import cli; cli.main(['--version']); cli.main(['no-command']); print(*sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "alignrun.cli" in said
    assert "torch" not in said


@pytest.mark.parametrize("failure", [InputError("x cannot be read"), UnboundLocalError("no local variable 'old'")])
def test_an_interrupt_stays_one_whatever_a_library_makes_of_it(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """OmegaConf, interrupted, fails in its own clean-up, and what it raises then says nothing of Ctrl-C."""

    def interrupted(*_: object) -> int:
        try:
            try:
                raise KeyboardInterrupt
            finally:
                raise AttributeError("'NoneType' object has no attribute '_invalidate_flags_cache'")
        except AttributeError as error:
            raise failure from error

    monkeypatch.setattr(cli, "dispatch", interrupted)
    assert cli.main([]) == 130
    assert capsys.readouterr().err == "alignrun: error: interrupted\n"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "alignrun resume RUN" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("alignrun ")


def test_the_module_runs_as_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "alignrun", "ls", "algo"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "nash_md" in done.stdout


def test_the_files_of_contributing_work_as_written(tmp_path: Path) -> None:
    """An algorithm, a preference and a data source are put into a copy of the package, and found without wiring."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for folder in ("src/alignrun", "conf", "scripts", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for file in ("algorithms/against_reference.py", "preferences/brevity.py", "data/sources/sums.py"):
        assert f"`src/alignrun/{file}`" in text
        example = text.split(f"`src/alignrun/{file}`")[1].split("```python\n")[1].split("```")[0]
        (tmp_path / "src" / "alignrun" / file).write_text(example)
    arguments = [
        "algo=against_reference", "preference=brevity", "data=sums", "data.rows=20", "data.eval_fraction=0.3",
        "experiment=smoke", "train.steps=1", "run.dir=run",
    ]  # fmt: skip
    script = f"""
import runpy, sys
sys.path.append({str(ROOT / "tests")!r})
import quick
from alignrun import cli
from alignrun.config.shipped import config_folder
quick.install()
runpy.run_path("scripts/configs.py", run_name="__main__")
run = {arguments}
commands = ["ls"], ["plan", *run], run, ["resume", "run", "train.steps=2"], [*run, "data.rows=1"]
print([cli.main(command) for command in commands])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src"), "COLUMNS": "160"},
    )
    assert done.returncode == 0, done.stderr
    assert "algo=against_reference" in done.stdout
    assert "Policy gradient of the win rate against the reference" in done.stdout
    assert "Sums of two digits" in done.stdout
    assert "against_reference on tiny: 0.1M parameters" in done.stdout
    assert "against_reference on tiny: 1 step" in done.stdout
    assert done.stdout.endswith("[0, 0, 0, 0, 2]\n"), done.stderr
    assert "data.rows must lie in [2, 100], not 1" in done.stderr
    assert "name: brevity" in (tmp_path / "run" / "config.yaml").read_text()
    assert "# τ, the weight of KL(π‖μ)" in (tmp_path / "conf" / "algo" / "against_reference.yaml").read_text()
    assert "| `data.rows` | `int` | `64` | Prompts, of which" in (tmp_path / "docs" / "config.md").read_text()


LAYERS = [
    {"__main__"},
    {"cli", "api"},
    {"chat", "completions"},
    {"tournament", "sweeps", "assessment"},
    {"launch", "top", "browse"},
    {"planning"},
    {"reports"},
    {"evaluation"},
    {"training"},
    {"algorithms"},
    {"preferences"},
    {"data", "generation", "models"},
    {"run"},
    {"config"},
    {"games", "objectives"},
    {"http", "distributed"},
    {"security"},
    {"types", "errors", "discovery"},
]


def test_imports_point_downwards_only() -> None:
    height = {name: -level for level, names in enumerate(LAYERS) for name in names}
    source = ROOT / "src" / "alignrun"
    problems = []
    for file in source.rglob("*.py"):
        here = file.relative_to(source).with_suffix("").parts
        if here == ("__init__",):
            continue
        assert here[0] in height, f"{file} stands in no layer"
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = (
                    [node.module] if node.module != "alignrun" else [f"alignrun.{alias.name}" for alias in node.names]
                )
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                parts = name.split(".")
                if parts[0] != "alignrun" or len(parts) == 1 or parts[1] == here[0] or parts[1] == "__version__":
                    continue
                if height[parts[1]] >= height[here[0]]:
                    problems.append(f"{'.'.join(here)} imports {name}")
    assert not problems


def test_objectives_and_games_know_tensors_only() -> None:
    source = ROOT / "src" / "alignrun"
    for file in [source / "games" / "__init__.py", *(source / "objectives").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("alignrun"):
                allowed = ("alignrun.types", "alignrun.errors", "alignrun.objectives.")
                assert node.module.startswith(allowed), (file, node.module)


@pytest.mark.parametrize(("given", "expected"), [(None, "100"), ("3000", "3000")])
def test_waiting_threads_leave_the_cores_to_others(given: str | None, expected: str) -> None:
    """OpenMP reads how long its threads may spin while torch is imported, so it is set before; a user's value stays."""
    code = "import os, sys; from alignrun import cli; assert 'torch' not in sys.modules; cli.main(['--version'])"
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {} if given is None else {"GOMP_SPINCOUNT": given}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(os.environ['GOMP_SPINCOUNT'])"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == expected
