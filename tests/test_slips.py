"""Command lines as people mistype them: one line that says what to type, exit code 2, nothing begun."""

from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from alignrun import cli
from alignrun.config import Config
from alignrun.launch import compose
from alignrun.launch.overrides import quoted, readable

SMOKE = "experiment=smoke"
NOT_A_RUN = "is not a run: it has no config.yaml"


@pytest.fixture(autouse=True)
def folders() -> None:
    for name in ("runs/kl=0.1", "runs/with space", "kl=0.1"):
        Path(name).mkdir(parents=True)
    Path("afile").write_text("text")


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("alignrun: error: ")
    assert error.count("\n") == 1
    assert not list(Path().rglob("metrics.jsonl"))
    return error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # Words that are no command and no key=value.
        (["evl", "runs=[A,B]"], "did you mean eval?"),
        (["exprot", "runs"], "did you mean export?"),
        (["train", "algo=dpo"], "a run needs none: write alignrun key=value"),
        (["dpo"], "write alignrun algo=dpo key=value"),
        ([SMOKE, "plan"], "must come first: alignrun plan experiment=smoke"),
        (["-m", "eval", "runs=[A,B]"], "-m is only for runs"),
        (["eval", "-m", "runs=[A,B]"], "alignrun eval: -m is for sweeps of runs"),
        (["model", "llama-8b"], "did you mean model=llama-8b?"),
        (["lr", "1e-4"], "did you mean optim.learning_rate=1e-4?"),
        (["seed:1"], "did you mean seed=1?"),
        (["seed", "=", "1"], "no spaces around the equals sign: write seed=1"),
        (["seed=", "1"], "no spaces around the equals sign: write seed=1"),
        (["seed", "=1"], "no spaces around the equals sign: write seed=1"),
        (["runs/with space"], "is a folder: name a command for it, as in alignrun resume 'runs/with space'"),
        (["afile"], "'afile' is neither a command nor key=value"),
        ([""], "'' is neither a command nor key=value"),
        (["="], "cannot read the override '='"),
        (["=3"], "cannot read the override '=3'"),
        ([f"{SMOKE} seed=1"], "leave out the quotes around them"),
        (["plan", "llama-8b"], "alignrun plan: 'llama-8b' is not key=value"),
        # Options.
        (["--model", "llama-8b"], "--model is not an option: write model=llama-8b"),
        (["--model=llama-8b"], "--model is not an option: write model=llama-8b"),
        (["--lr", "1e-4"], "write optim.learning_rate=1e-4"),
        (["--output_dir", "out"], "write run.dir=out"),
        (["--num_train_epochs=3"], "write train.epochs=3"),
        (["--config-name=x"], "is an option of Hydra"),
        (["-m", SMOKE, "seed=1,2", "--lr", "3"], "write optim.learning_rate=3"),
        (["plan", "--gpu", "24GB"], "write plan.gpu=24GB"),
        (["eval", "--runs", "A", "B"], "write runs='[A,B]'"),
        # Runs of a tournament.
        (["eval", "A", "B"], "write runs='[A,B]'"),
        (["eval", "runs/kl=0.1", "B"], "runs"),
        (["eval", "runs=A"], "runs is a list: write runs='[A]'"),
        (["eval", "runs=A,B"], "runs is a list: write runs='[A,B]'"),
        (["eval", "runs="], "write runs='[A,B]'"),
        (["eval", "runs=nothing/*"], "runs: no run matches nothing/*"),
        (["eval", "run=[A,B]"], "did you mean runs='[A,B]'?"),
        (["eval", "runs=[A"], "runs is a list: write runs='[A,B]'"),
        (["eval", "runs=[runs/kl=0.1,B]"], NOT_A_RUN),
        (["eval", "runs=[runs/with space,B]"], NOT_A_RUN),
        (["eval", "runs=[,B]"], "names nothing between two commas"),
        (["eval", "runs=[A]", "model=tiny"], "unknown group model"),
        (["eval", "runs=[A]", "tracker.artifact=end"], "a tournament trains nothing"),
        # Runs, whose folders may be called anything.
        *[([verb, "runs/kl=0.1"], NOT_A_RUN) for verb in ("resume", "exploit", "top", "export")],
        *[([verb, "kl=0.1"], NOT_A_RUN) for verb in ("resume", "exploit", "top", "export")],
        *[([verb, "runs/with space"], NOT_A_RUN) for verb in ("resume", "exploit", "top", "export")],
        *[([verb, "afile"], "it is a file") for verb in ("resume", "exploit", "top", "export")],
        *[([verb, ""], "is empty: name a folder") for verb in ("resume", "exploit", "top", "export")],
        *[([verb], "required: RUN") for verb in ("resume", "exploit", "top", "export")],
        (["generate", "kl=0.1", "out=x"], NOT_A_RUN),
        (["chat", "kl=0.1"], NOT_A_RUN),
        (["diff", "kl=0.1", "afile"], NOT_A_RUN),
        (["runs", "nowhere"], "nowhere does not exist"),
        (["runs", ""], "is empty: name a folder"),
        (["runs", "--srt", "x"], "--srt is not an option: did you mean --sort?"),
        (["diff", "a"], "required: B"),
        (["chat"], "required: POLICIES"),
        (["chat", "a", "b", "c"], "name one or two"),
        (["chat", "a", "temprature=1"], "did you mean temperature?"),
        (["chat", "a", "evaluation.top_p=0.9"], "is a section of runs; chat has its own keys"),
        (["generate", "a"], "out must be given"),
        (["generate", "a", "b"], "alignrun generate: 'b' is not key=value"),
        (["generate", "a", "out=x", "format=csv"], "format"),
        (["generate", "a", "out=x", "samples=2", "format=alpaca_eval"], "samples must be 1"),
        (["generate", "a", "out=x", "samples=1", "format=pairs"], "samples must be at least 2"),
        (["generate", "a", "out=x", "preference=letters"], "labels pairs, and format=jsonl has none"),
        (["generate", "a", "out=x", "data.path=y"], "also needs data=NAME"),
        (["generate", "tiny", "out=x"], "data must be given"),
        (["generate", "tiny", "out=nowhere/x", "data=bundled"], "nowhere is not a folder"),
        (["generate", "tiny", "out=afile", "data=bundled"], "afile exists: choose another out"),
        (["chat", "tiny", "--reference"], "has no reference"),
        (["genrate", "a"], "did you mean generate?"),
        (["run", "a"], "a run needs none"),
        (["resume", "runs/no=run"], "no=run does not exist"),
        (["resume", "runs", "--step", "x"], "invalid int value: 'x'"),
        (["resume", "runs", "--step"], "expected one argument"),
        (["resume", "runs", "--lr", "1e-5"], "write optim.learning_rate=1e-5"),
        (["resume", "runs", "y"], "alignrun resume: 'y' is not key=value"),
        (["export", "runs", "--to", ""], "is empty: name a folder"),
        (["export", "runs", "--mer"], "alignrun export: --mer is not an option: did you mean --merge?"),
        (["export", "runs", "--nothing"], "unrecognized arguments: --nothing"),
        (["ls", "algos"], "ls: there is no group algos: did you mean algo?"),
        (["ls", "x"], "ls: there is no group x: choose from adapter, algo, "),
        (["evl", "--help"], "did you mean eval?"),
        (["help", "algo", "dpo"], "alignrun help: unrecognized arguments: dpo"),
        (["config", "--explian", SMOKE], "alignrun config: --explian is not an option: did you mean --explain?"),
        (["-m"], "name its values, as in alignrun -m experiment=demo seed=1,2"),
        (["top", "runs", "--interval", "0"], "--interval must be a positive number"),
        # Names that other trainers use.
        ([SMOKE, "lr=1e-4"], "unknown key lr: did you mean optim.learning_rate?"),
        ([SMOKE, "train.lr=1e-4"], "did you mean optim.learning_rate?"),
        ([SMOKE, "per_device_train_batch_size=4"], "did you mean train.batch_size?"),
        ([SMOKE, "num_train_epochs=3"], "did you mean train.epochs?"),
        ([SMOKE, "max_steps=3"], "did you mean train.steps?"),
        ([SMOKE, "beta=0.1"], "did you mean algo.kl_tau?"),
        ([SMOKE, "algo.beta=0.1"], "did you mean algo.kl_tau?"),
        ([SMOKE, "generation.top_p=0.9"], "unknown key generation.top_p: did you mean evaluation.top_p?"),
        (["eval", "runs=[A]", "evaluation.top_p=0.9"], "is a section of runs; a tournament has its own keys"),
        ([SMOKE, "generation.nucleus=0.9"], "unknown key generation.nucleus: generation has batch_size, engine, "),
        ([SMOKE, "optim.batch_size=4"], "did you mean evaluation.batch_size or generation.batch_size or preference."),
        ([SMOKE, "output_dir=x"], "did you mean run.dir?"),
        ([SMOKE, "model_name_or_path=x"], "did you mean model=path model.path=…?"),
        (["-m", SMOKE, "lr=1,2"], "did you mean optim.learning_rate?"),
        # Several values, lists, sections.
        ([SMOKE, "algo.kl_tau=0.1,0.2"], "`alignrun -m algo.kl_tau=0.1,0.2 …`"),
        ([SMOKE, "algo=dpo,ipo"], "`alignrun -m algo=dpo,ipo …`"),
        ([SMOKE, "seed=range(3)"], "`alignrun -m 'seed=range(3)' …`"),
        ([SMOKE, "tracker.tags=a,b"], "tracker.tags is a list: write tracker.tags='[a,b]'"),
        ([SMOKE, "tracker.tags=a"], "tracker.tags is a list: write tracker.tags='[a]'"),
        ([SMOKE, "adapter.target_modules=q_proj,v_proj"], "write adapter.target_modules='[q_proj,v_proj]'"),
        ([SMOKE, "train=5"], "train is a section of keys: write train.KEY=VALUE"),
        ([SMOKE, "model=3"], "model=3 is not a choice"),
        ([SMOKE, "algo=[dpo,ipo]"], "is not a choice"),
        (["experiment=null"], "is not a choice"),
        ([SMOKE, "algo="], "is not a choice"),
        ([SMOKE, "run.dir="], "run.dir is empty"),
        ([SMOKE, "tracker.tags=['']"], "tracker.tags must have 1 to 64 characters each"),
        ([SMOKE, "train.steps=99999999999999999999999"], "must be less than a billion"),
        ([SMOKE, "train.steps=1e3"], "give a whole number"),
        ([SMOKE, "seed=[1"], "write seed=VALUE"),
        ([SMOKE, "seed="], "give a whole number"),
        # Texts are taken as they are.
        *[
            ([SMOKE, "data=jsonl", f"data.path={name}"], f"there is no file {name};")
            for name in ("a,b.jsonl", "a=b.jsonl", "it's (1).jsonl")
        ],
        ([SMOKE, "data=jsonl", "data.path=${x}.jsonl"], r"\${ is literal: KEY='\${…}'"),
        ([SMOKE, "data=jsonl", "data.path=a${"], r"\${ is literal"),
        ([SMOKE, "data=jsonl", "data.path=${oc.env:NOPE}"], "Environment variable 'NOPE' not found"),
        ([SMOKE, "run.dir=afile"], "cannot create"),
        ([SMOKE, "run.dir=afile/x"], "cannot create"),
        # Bytes that are no text.
        (["resume", "a\udcff"], "'a\\udcff' is not UTF-8"),
        ([SMOKE, "run.dir=\udcff"], "is not UTF-8"),
    ],
)  # fmt: skip
def test_one_line_says_what_to_type(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    assert expected in refused(capsys, arguments)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "0"}, "RANK is set and WORLD_SIZE is not: "),
        ({"RANK": "1", "LOCAL_RANK": "1"}, "a single one with env -u RANK alignrun"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set and RANK is not"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x and WORLD_SIZE=2 are not a valid rank and size"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "RANK=0 and WORLD_SIZE= are"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0 and WORLD_SIZE=0 are"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2 are"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK, MASTER_ADDR, MASTER_PORT not"),
    ],
)
@pytest.mark.parametrize("verb", [[], ["plan"]])
def test_half_of_a_launcher(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    verb: list[str],
    environment: dict[str, str],
    expected: str,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if verb and environment.get("RANK") == "0" and environment.get("WORLD_SIZE") == "2":
        expected = "alignrun plan is one process"
    if verb and "RANK" not in environment:
        pytest.skip("a plan needs no other process")
    assert expected in refused(capsys, [*verb, SMOKE])


def test_texts_come_through_unchanged() -> None:
    texts = ["it's", "a\\", "a\\'b", "1e-4", "007", "1_0", "true", "[a]", "{a: 1}", "a, b", 'say "x"', "a\nb", "x  y"]
    texts += ["a=b", "a[1]", "a#b", "é", "$x", "a%b", "choice(a,b)", "range(3)", "int(x)", "~/x", "a@b:c"]

    def read(given: str) -> Any:
        (override,) = readable([f"run.dir={given}"], Config)
        return OverridesParser.create().parse_override(override).value()

    for text in texts:
        assert (read(text), read(quoted(text))) == (text, text)
    assert (read("null"), read("'null'"), read("")) == (None, "null", "")
    config = compose.compose(
        [SMOKE, "tracker.name=a, ${seed}", "model.system_prompt=Don't say [x]: 1e-4", "run.dir=1_0"]
    )
    assert (config.tracker.name, config.model.system_prompt) == ("a, 0", "Don't say [x]: 1e-4")
    assert config.run.dir == "1_0"
    assert compose.compose(["data=inline", r"data.prompts=['a \${b}']"]).data.prompts == ["a ${b}"]


def test_a_run_keeps_an_equals_sign_in_its_path() -> None:
    for arguments, expected in (
        (["kl=0.1", "seed=1"], (["seed=1"], ["kl=0.1"])),
        (["runs/a=b", "seed=1", "--step", "3"], (["seed=1"], ["runs/a=b", "--step", "3"])),
        (["./x=1", "algo.kl_tau=1"], (["algo.kl_tau=1"], ["./x=1"])),
        (["runs/with space", "kl=0.1"], (["kl=0.1"], ["runs/with space"])),
        (["absent", "seed=1"], (["seed=1"], ["absent"])),
    ):
        assert cli._split(arguments) == expected


def test_lists_of_paths() -> None:
    (override,) = readable(["runs=[runs/kl=0.1, it is#1]"], compose.TournamentConfig)
    config = compose.compose_tournament([override])
    assert config.runs == ["runs/kl=0.1", "it is#1"]
