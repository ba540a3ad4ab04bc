"""`import alignrun`: what the functions return and raise, and that the name alone costs nothing."""

import inspect
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import alignrun
from alignrun import InputError, RunError, TrainingResult

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    folder = tmp_path_factory.mktemp("api") / "run"
    return alignrun.train("experiment=smoke", "optim.learning_rate=0.05", f"run.dir={folder}", quiet=True)


def test_the_name_imports_nothing_heavy() -> None:
    code = "import sys, alignrun; dir(alignrun); alignrun.InputError; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "hydra", "rich", "numpy", "omegaconf"} & set(eval(done.stdout))


def test_every_public_name_is_there_and_typed() -> None:
    for name in alignrun.__all__:
        found = getattr(alignrun, name)
        if inspect.isfunction(found):
            hints = inspect.signature(found)
            assert hints.return_annotation is not inspect.Signature.empty
            assert all(each.annotation is not inspect.Parameter.empty for each in hints.parameters.values())
    assert (Path(alignrun.__file__).parent / "py.typed").is_file()
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = alignrun.nothing  # type: ignore[attr-defined]


def test_training_returns_what_the_run_has_written(trained: TrainingResult, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((trained.path / "summary.json").read_text())
    assert trained.step == summary.pop("step") == 3
    assert trained.metrics == summary
    assert trained.win_rate is not None
    assert (trained.win_rate.value, trained.win_rate.low) == (summary["win_rate"], summary["win_rate_low"])
    assert trained.win_rate.prompts == 8
    assert trained.kl == summary["kl"]
    assert "win_rate_low" not in trained.estimates
    assert (trained.adapter / "adapter_config.json").is_file()
    assert trained.report.is_file()
    assert capsys.readouterr().out == "", "quiet"
    more = alignrun.resume(trained, "train.steps=4", "run.dir=elsewhere")
    assert (more.path, more.step) == (trained.path, 4)
    said = " ".join(capsys.readouterr().out.split())
    assert "nash_md on tiny: 4 steps" in said
    assert (
        "settings seed 0, batches of 4, learning rate 0.05, float32, up to 8 tokens at temperature 0.7, judged" in said
    )


def test_a_policy_generates_what_its_weights_say(trained: TrainingResult) -> None:
    policy = alignrun.load_policy(trained.path / "checkpoints" / "step-3")
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    found = policy.generate(["hello", chat], samples=2, max_new_tokens=5, seed=1)
    assert [each.prompt for each in found] == ["hello", "hello", chat, chat]
    assert [str(each) for each in found] == [each.text for each in found]
    assert found == policy.generate(["hello", chat], samples=2, max_new_tokens=5, seed=1)
    assert found != policy.generate(["hello", chat], samples=2, max_new_tokens=5, seed=2)
    assert policy.generate([]) == []
    better = policy.improve(found[:1], "Shorter.", samples=2, max_new_tokens=5, seed=1)
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": found[0].text}]
    asked = [*said, {"role": "user", "content": "Shorter."}]
    assert better == policy.generate([asked], samples=2, max_new_tokens=5, seed=1)
    assert policy.improve(better)[0].prompt[-1]["content"].startswith("Improve the previous answer.")
    greedy = policy.generate(["hello"], top_k=1, samples=2, max_new_tokens=5)
    assert greedy[0] == greedy[1]
    assert (policy.name, policy.step) == ("run@3", 3)
    reference = alignrun.load_policy(trained, reference=True)
    assert reference.step is None
    assert reference.generate(["hello"], top_k=1, max_new_tokens=5)[0].text != greedy[0].text


def test_a_tournament_returns_every_number(trained: TrainingResult) -> None:
    cup = alignrun.evaluate([trained], "samples_per_prompt=2", "tracker=none", "names=[ours]", quiet=True)
    results = json.loads((cup.path / "results.json").read_text())
    assert list(cup.players) == ["ours", "reference"]
    found = cup.preference("ours", "reference")
    assert (
        found.value == results["matrix"][0][1]["value"] == pytest.approx(1 - cup.preference("reference", "ours").value)
    )
    assert cup.players["ours"].kl is not None
    assert cup.report.is_file()
    with pytest.raises(InputError, match="no policy of the tournament is called theirs: choose from ours, reference"):
        cup.preference("theirs", "ours")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: alignrun.train("algo=nash"), "did you mean nash_"),
        (lambda _: alignrun.train("-m", "seed=1,2"), "-m is for sweeps"),
        (lambda _: alignrun.train("experiment=smoke", "hydra.run.dir=x"), "a single run has run.dir"),
        (lambda run: alignrun.train("experiment=smoke", f"run.dir={run.path}"), "already holds a run"),
        (lambda run: alignrun.resume(run, step=77), "no checkpoint of step 77"),
        (lambda _: alignrun.evaluate("runs/a"), "takes a list of runs"),
        (lambda _: alignrun.evaluate([]), "runs is empty"),
        (lambda _: alignrun.load_policy("nowhere"), "nowhere does not exist"),
        (lambda run: alignrun.load_policy(run, dtype="int8"), "dtype=int8 is unknown"),
        (lambda _: alignrun.load_policy("tiny").generate("x"), "takes a list of prompts"),
        (lambda _: alignrun.load_policy("tiny").generate([3]), "prompts[0], column 'prompt' is a number"),
        (lambda _: alignrun.load_policy("tiny").generate(["x"], temperature=0.0), "temperature must be positive"),
        (lambda _: alignrun.load_policy("tiny").generate(["x"], samples=0), "must be at least 1"),
        (
            lambda _: alignrun.load_policy("tiny").generate(["x" * 5000]),
            "the prompt has 5019 tokens, and the limit is 512; shorten it, or pass a smaller max_new_tokens",
        ),
        (
            lambda _: alignrun.load_policy("tiny").generate(["x"], max_new_tokens=9999),
            "max_new_tokens=9999 leaves no room for a prompt in the 1024 tokens of the model: lower it",
        ),
        (lambda run: alignrun.generate(run, run.path / "config.yaml"), "exists: choose another out"),
    ],
)  # fmt: skip
def test_mistakes_are_input_errors(
    trained: TrainingResult, call: Callable[[TrainingResult], Any], message: str
) -> None:
    with pytest.raises(InputError) as raised:
        call(trained)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_run_that_fails_is_a_run_error(tmp_path: Path) -> None:
    settings = ["experiment=smoke", "optim.learning_rate=0.05", f"run.dir={tmp_path / 'run'}"]
    with pytest.raises(RunError, match=r"above train\.max_kl"):
        alignrun.train(*settings, "train.max_kl=1e-9", quiet=True)
    with pytest.raises(RunError, match=r"OSError: .*name too long"):
        alignrun.load_policy("a" * 5000)


def test_a_thread_can_train(tmp_path: Path) -> None:
    found: list[TrainingResult] = []
    settings = ["experiment=smoke", "train.steps=1", "data.eval_size=1", f"run.dir={tmp_path / 'run'}"]
    thread = threading.Thread(target=lambda: found.append(alignrun.train(*settings, quiet=True)))
    thread.start()
    thread.join()
    assert found[0].step == 1


def test_runs_of_others_ask_for_trust(trained: TrainingResult, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(trained.path, theirs)
    config = theirs / "config.yaml"
    config.write_text(config.read_text().replace("trust_remote_code: false", "trust_remote_code: true"))
    with pytest.raises(InputError, match="was not written by you"):
        alignrun.load_policy(theirs)
    assert alignrun.load_policy(theirs, trust=True).step == 4


def test_the_log_probability_is_that_of_the_whole_completion(trained: TrainingResult) -> None:
    """Against a sum of the conditional probabilities, token by token."""
    policy = alignrun.load_policy(trained)
    tokenizer, model = policy.policy.tokenizer, policy.policy.model
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, tokenize=False
    )
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    drawn = policy.generate(["hello"], samples=64, max_new_tokens=4, seed=3, temperature=0.7)
    found = next(each for each in drawn if each.text.isascii() and len(each.text) == 4 and not each.ended)
    ids = tokenizer(found.text, add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / 0.7
    expected = logits.log_softmax(-1)[range(4), ids].sum()
    assert found.log_prob == pytest.approx(float(expected), abs=1e-3)


def test_the_notebook_runs() -> None:
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    assert names["result"].step == 3
    assert names["after"].step == 2
