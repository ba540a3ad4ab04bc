"""Every failure a user can cause is one line that names what, where and the fix; exit code 2, or 1 at run time."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from alignrun import cli
from alignrun.security.files import open_regular

SMOKE = ("experiment=smoke",)


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """Run the command; its one line of error."""
    capsys.readouterr()
    assert cli.main(list(arguments)) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("alignrun: error: ")]
    assert len(lines) == 1
    assert "Traceback" not in lines[0]
    return lines[0].removeprefix("alignrun: error: ")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["algo.kl_tauu=1"], "unknown key algo.kl_tauu: did you mean algo.kl_tau?"),
        (
            ["algo=gpo", "algo.kl_tau=1"],
            "algo.kl_tau is not valid here: it belongs to algo=best_response, algo=comal, algo=dno, algo=dpo, ",
        ),
        (
            ["experiment=ultrafeedback_8b", "algo=nash_md"],
            "experiment=ultrafeedback_8b: algo.step_eta is not valid here: it belongs to algo=dno, algo=inpo, ",
        ),
        (["experiment=ultrafeedback_8b", "algo=nash_md"], "`alignrun cp experiment/ultrafeedback_8b FILE.yaml` copies"),
        (
            ["preference.path=x"],
            "belongs to preference=armorm, preference=bradley_terry, ",
        ),
        (["train.step=3"], "unknown key train.step: did you mean train.steps?"),
        (["modle=tiny"], "unknown key modle: did you mean model?"),
        (["preference.temprature=1"], "did you mean preference.temperature?"),
        (["learning_rate=1"], "did you mean optim.learning_rate?"),
        (["algo=nash"], "algo=nash does not exist: did you mean nash_"),
        (["model=lama-8b"], "model=lama-8b does not exist: did you mean llama-8b?"),
        (["experiment=nothing"], "does not exist: see `alignrun ls experiment`"),
        (["seed=abc"], "seed: Value 'abc' of type 'str' could not be converted to Integer: give a whole number"),
        (["algo.kl_tau=abc"], "algo.kl_tau: Value 'abc' of type 'str' could not be converted to Float: give a number"),
        (["algo.kl_tau=inf"], "algo.kl_tau must be a finite number, not inf"),
        (["optim.learning_rate=nan"], "optim.learning_rate must be a finite number, not nan"),
        (["model.gradient_checkpointing=maybe"], "model.gradient_checkpointing must be auto, true or false, not maybe"),
        (["algo.mix_beta=null"], "algo.mix_beta"),
        (["algo.mix_beta=1.5"], "algo.mix_beta must lie in [0, 1], not 1.5"),
        (["algo.kl_tau=-1"], "algo.kl_tau must not be negative"),
        (["optim.learning_rate=0"], "optim.learning_rate must be positive"),
        (["optim.warmup_steps=99"], "optim.warmup_steps=99 is more than train.steps=3"),
        (["train.steps=0"], "train.steps must be at least 1"),
        (["train.micro_batch_size=0"], "train.micro_batch_size must be at least 1"),
        (["generation.max_new_tokens=0"], "generation.max_new_tokens must be at least 1"),
        (["generation.max_new_tokens=5000"], "generation.max_new_tokens=5000 leaves no room"),
        (["evaluation.top_p=2"], "evaluation.top_p must lie in (0, 1]"),
        (["adapter.rank=0"], "adapter.rank must be at least 1"),
        (["adapter.target_modules=[nothing]"], "use all-linear or some of"),
        (["model.dtype=float8"], "expected one of"),
        (["model.device=abacus"], "model.device=abacus is not a device"),
        (["tracker.mode=loud"], "expected one of [auto, online, offline, disabled]"),
        (["+new.key=1"], "config:"),
        (["seed"], "'seed' is neither a command nor key=value"),
        (["seed=[1"], "cannot read the override 'seed=[1'"),
        (["data=jsonl"], "data.path is missing"),
        (["data=jsonl", "data.path=absent.jsonl"], "absent.jsonl"),
        (["data=inline"], "data.prompts"),
        (["model=path", "model.path=./absent"], "model.path=./absent is not a folder"),
        (["model=game"], "model=game plays a matrix game: choose preference=matrix"),
        (["model=game", "preference=matrix"], "set generation.max_new_tokens=1"),
        (["model.path=./mine"], "model.path is not valid with model=tiny: choose model=path"),
        (["data.path=mine.jsonl"], "data.path is not valid with data=bundled: choose data=hub or data=jsonl"),
        (["data.prompts=[hello]"], "data.prompts is not valid with data=bundled: choose data=inline"),
        (
            ["data.source=sql"],
            "data.source=sql is unknown: choose from bundled, bundled_pairs, game, hub",
        ),
        (
            ["data=jsonl", "data.path=x.jsonl", "data.split=test"],
            "data.split is not valid with data=jsonl: choose data=hub",
        ),
        (["reference.path=run"], "reference.path is not valid with reference=base: choose reference=adapter"),
        (["model.architecture.hiden_size=32"], "hiden_size"),
        (["+model.architecture.hiden_size=32"], "did you mean hidden_size?"),
        (["model.architecture.hidden_size=63"], "the architecture of tiny cannot be loaded"),
        (["preference.name=matrix"], "preference.name cannot be changed by itself"),
        (["adapter=qlora"], "adapter=qlora is for real models"),
        (["model.device=mps"], "is not supported: use auto, cpu or cuda"),
        (["seed=-1"], "seed must lie in [0, 2**63)"),
        (["hydra.run.dir=x"], "hydra.run.dir=x is for sweeps (-m): a single run has run.dir"),
        (["adapter.target_modules=[embed_tokens]"], "not embeddings"),
        (["adapter.rank=4", "reference=adapter", "reference.path=x"], "adapter.* cannot be set with reference=adapter"),
        (["preference=matrix", "preference.game=chess"], "preference.game=chess: choose cyc, dice, rps"),
        (["preference.function=nowhere:f"], "preference.function=nowhere:f cannot be imported"),
        (["preference.function=math"], "is not an import path"),
        (["preference.function=math:nothing"], "module math has no nothing"),
        (["preference.function=math:pi"], "is not callable"),
        (["reference=adapter"], "reference.path"),
        (["reference=adapter", "reference.path=absent"], "reference.path: absent"),
        (
            ["reference=adapter", "reference.path=.", "adapter=none"],
            " needs adapter=lora or qlora: all weights are trained here",
        ),
        (["data.max_prompt_tokens=3"], "train.jsonl:1"),
    ],
)
def test_configuration(capsys: pytest.CaptureFixture[str], overrides: list[str], expected: str) -> None:
    arguments = overrides if "experiment" in overrides[0] else [*SMOKE, *overrides]
    assert expected in refuse(capsys, *arguments)
    assert not list(Path().glob("runs/*/*")), "nothing is left behind of a run that never began"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a message for machines without CUDA")
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.device=cuda"], "finds no CUDA device here"),
        (["adapter=qlora", "model=path", "model.path=some/model"], "adapter=qlora needs a CUDA GPU"),
    ],
)
def test_hardware_that_is_not_here(capsys: pytest.CaptureFixture[str], overrides: list[str], expected: str) -> None:
    assert expected in refuse(capsys, *SMOKE, *overrides)


def test_a_hub_model_that_cannot_be_reached(capsys: pytest.CaptureFixture[str]) -> None:
    """The large models assemble up to their weights: architecture, adapter and prompt are reported first."""
    error = refuse(capsys, "algo=nash_md", "model=llama-8b", "recipe=null", "tracker=none", "model.device=cpu")
    assert "meta-llama/Llama-3.1-8B-Instruct cannot be loaded" in error
    assert "model=path model.path=DIR" in error
    assert "no/such-model" in refuse(capsys, *SMOKE, "model=path", "model.path=no/such-model")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ('{"prompt": "a"}\n{"prompt": \n', "rows.jsonl:2"),
        ('{"prompt": "a"}\n\n{"question": "b"}\n', "rows.jsonl:3"),
        ('{"prompt": 7}\n', "rows.jsonl:1"),
        ('["prompt"]\n', "rows.jsonl:1"),
        ('{"prompt": "  "}\n', "rows.jsonl:1"),
        ('{"prompt": [{"role": "assistant", "content": "hi"}]}\n', "rows.jsonl:1"),
        ('{"prompt": "only one"}\n', "data.eval_path"),
    ],
)
def test_data(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    assert expected in refuse(capsys, *SMOKE, "data=jsonl", f"data.path={file}")


def test_a_prompt_longer_than_the_context_names_its_row_or_is_skipped(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [*({"prompt": f"short {n}"} for n in range(8)), {"prompt": "long " * 400}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = (*SMOKE, "data=jsonl", f"data.path={file}")
    error = refuse(capsys, *arguments)
    assert "rows.jsonl:9" in error
    assert "data.too_long=skip" in error
    assert cli.main([*arguments, "data.too_long=skip", "train.steps=1"]) == 0
    assert "skipped 1 example, too long" in " ".join(capsys.readouterr().out.split())


def test_run_directories(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli.main([*SMOKE, f"run.dir={run}", "train.steps=1"]) == 0
    assert "already holds a run" in refuse(capsys, *SMOKE, f"run.dir={run}")
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert "choose another run.dir" in refuse(capsys, *SMOKE, f"run.dir={blocked / 'run'}")
    assert "did you mean" in refuse(capsys, "resume", str(tmp_path / "rum"))
    assert "has no checkpoint of step 9: choose from [1]" in refuse(capsys, "resume", str(run), "--step", "9")
    assert "is not a run" in refuse(capsys, "export", str(tmp_path))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "state"])
def test_a_tampered_checkpoint_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    assert cli.main([*SMOKE, f"run.dir={run}"]) == 0
    (run / "summary.json").unlink()
    folder = run / "checkpoints" / "step-3"
    weights, state = folder / "weights.safetensors", folder / "state.json"
    if damage == "flip":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "remove":
        weights.unlink()
    else:
        state.write_text(state.read_text() + " ")
    before = (run / "metrics.jsonl").read_bytes()
    error = refuse(capsys, "resume", str(run), "--step", "3")
    assert (state if damage == "state" else weights).name in error
    assert "--step 2" in error
    assert "step-3" in refuse(capsys, "export", str(run), "--step", "3")
    assert (run / "metrics.jsonl").read_bytes() == before, "nothing is lost by a refused resume"
    assert cli.main(["resume", str(run), "--step", "2"]) == 0
    assert (run / "metrics.jsonl").read_text().splitlines()[0] == before.decode().splitlines()[0]


def test_a_changed_or_broken_config_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli.main([*SMOKE, f"run.dir={run}"]) == 0
    (run / "summary.json").unlink()
    file = run / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("rank: 16", "rank: 8"))
    assert "does not fit this model" in refuse(capsys, "resume", str(run))
    file.write_text("algo: [")
    assert "config.yaml" in refuse(capsys, "resume", str(run))
    file.write_text(text.replace("kl_tau", "kl_tao"))
    assert "kl_tao" in refuse(capsys, "resume", str(run))


def test_a_full_disk_is_reported_and_loses_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills while the second checkpoint is written: the first is whole, and resuming goes on from it."""
    import safetensors.torch

    run = tmp_path / "run"
    written = safetensors.torch.save_file

    def full(tensors, filename, *args, **kwargs):
        if "step-4" in str(filename):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(filename))
        return written(tensors, filename, *args, **kwargs)

    monkeypatch.setattr("alignrun.training.checkpoint.save_file", full)
    error = refuse(capsys, *SMOKE, f"run.dir={run}", "train.steps=5", code=1)
    assert "No space left on device" in error
    assert "alignrun resume" in error
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-2"]
    monkeypatch.undo()
    assert cli.main(["resume", str(run)]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs Linux's /dev/full")
def test_records_on_a_full_disk(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real ENOSPC: Linux's full device stands in for samples.jsonl when the last evaluation is recorded."""
    run = tmp_path / "run"

    def full(path: Path, flags: int = os.O_RDONLY) -> int:
        return os.open("/dev/full", flags) if path.name == "samples.jsonl" else open_regular(path, flags)

    monkeypatch.setattr("alignrun.run.directory.open_regular", full)
    assert "No space left on device" in refuse(capsys, *SMOKE, f"run.dir={run}", code=1)
    monkeypatch.undo()
    assert cli.main(["resume", str(run)]) == 0
    assert (run / "samples.jsonl").read_text()


def test_preferences_that_misbehave(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "def wide(prompts, first, second): return [2.0] * len(prompts)\n"
        "def short(prompts, first, second): return [0.5]\n"
        "def broken(prompts, first, second): raise KeyError('no such\\nthing')\n"
        "def unsure(prompts, first, second): return [float('nan')] * len(prompts)\n"
        "def biased(prompts, first, second): return [1.0] * len(prompts)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    given = (*SMOKE, "preference.kind=preference", "train.steps=1")
    for name, expected in (
        ("wide", "returned a value outside [0, 1]"),
        ("short", "returned 1 value for 64 prompts"),
        ("broken", "failed: KeyError: 'no such\\nthing' (mine.py:3)"),
        ("unsure", "is not finite"),
    ):
        assert expected in refuse(capsys, *given, f"preference.function=mine:{name}", code=1)
    # One that always prefers the first is no preference at all once both orders are averaged.
    assert cli.main([*given, "preference.function=mine:biased", "run.dir=biased"]) == 0
    assert json.loads(Path("biased/summary.json").read_text())["win_rate"] == 0.5


def test_games_from_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "game.json"
    game = {"preferences": [[0.5, 0.8], [0.2, 0.5]], "reference": [0.3, 0.7], "actions": ["left", "right"]}
    arguments = ("experiment=game", f"preference.game={file}", "train.steps=1")
    file.write_text(json.dumps(game))
    assert cli.main([*arguments, "run.dir=fine"]) == 0
    for change, expected in (
        ({"actions": ["go left", "right"]}, "actions must be different single words"),
        ({"actions": ["play", "right"]}, "actions must be different single words"),
        ({"preferences": [[0.5, 0.8], [0.8, 0.5]]}, "P + Pᵀ = 1"),
        ({"reference": None}, "cannot be read"),
    ):
        file.write_text(json.dumps(game | change))
        assert expected in refuse(capsys, *arguments)


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'trian' is neither a command nor key=value" in refuse(capsys, "trian")
    assert "required: RUN" in refuse(capsys, "resume")
    assert "invalid int value: 'x'" in refuse(capsys, "resume", "run", "--step", "x")
    assert "there is no group algos" in refuse(capsys, "ls", "algos")
    assert "unrecognized arguments: --fast" in refuse(capsys, "export", "run", "--fast")
