"""What `auto` becomes: the most prompts that fit, counted one by one; and what happens where they do not fit."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import load_policy, random_batch
from transformers import AutoConfig

from alignrun import cli, distributed
from alignrun.algorithms.common import rollout
from alignrun.algorithms.common.rollout import Pace, sample_streams, step_generator
from alignrun.errors import InputError
from alignrun.generation.decode import Sampling
from alignrun.generation.streams import Mixture
from alignrun.launch.compose import compose
from alignrun.launch.train import with_recorded
from alignrun.objectives.likelihood import CHUNK_SIZE
from alignrun.planning import automatic
from alignrun.planning.automatic import GIB, USABLE, choices, choose, evenly, learning_bytes
from alignrun.planning.gpus import GPU_SIZES, planned_gpus
from alignrun.planning.plan import drawing_bytes, make_plan, resident_plan, training_bytes
from alignrun.training.checkpoint import Checkpoint
from alignrun.types import Role

SMALL = ("experiment=smoke", "model.device=cuda", "model.dtype=float32", "generation.max_new_tokens=24")
OPEN = (*SMALL, "data.max_prompt_tokens=16", "train.micro_batch_size=auto", "train.batch_size=6", "data.eval_size=1")


def counted_up(needed: Any, room: float, most: int) -> int:
    """The most rows that fit, by trying all of them."""
    return max((rows for rows in range(1, most + 1) if needed(rows) <= room), default=0)


@pytest.mark.parametrize(("mib", "rows"), [(3.4, (1, 2)), (7, (2, 3)), (20, (6, 6))])
def test_the_most_prompts_that_fit_are_chosen_and_checkpointing_only_where_it_must_be(
    mib: float, rows: tuple[int, int]
) -> None:
    config = compose(OPEN)
    chosen = choose(config, mib * 2**20).config
    room = USABLE * mib * 2**20 - resident_plan(config).resident
    plain, recomputing = (
        replace(config, model=replace(config.model, gradient_checkpointing=one)) for one in (False, True)
    )
    must = training_bytes(plain, 1) > room
    assert chosen.model.gradient_checkpointing is must
    tried = recomputing if must else plain
    learned = counted_up(lambda rows: training_bytes(tried, rows), room, 6)
    drawn = counted_up(lambda rows: drawing_bytes(config, rows), room, 6)
    assert must is (mib < 7)
    assert chosen.train.micro_batch_size == evenly(6, learned) == rows[0]
    assert chosen.generation.batch_size == evenly(6, drawn) == rows[1]
    assert make_plan(chosen).peak <= USABLE * mib * 2**20


def test_pieces_are_even_and_no_more_than_needed() -> None:
    for rows in range(1, 40):
        for most in range(1, rows + 1):
            size = evenly(rows, most)
            assert size <= most
            assert -(-rows // size) == -(-rows // most), "as few passes"
            assert size == 1 or -(-rows // (size - 1)) > -(-rows // most), "no smaller size has as few"


def test_several_processes_share_the_batch() -> None:
    config, memory = compose(OPEN), 4 * 2**20
    one, three = (choose(config, memory, processes).config for processes in (1, 3))
    assert three.train.micro_batch_size <= 2
    assert three.generation.batch_size >= one.generation.batch_size


def test_the_sizes_of_a_job_are_named_as_they_are_typed() -> None:
    """generation.batch_size counts the prompts of all processes, also where a larger one is compared."""
    config = compose([*OPEN, "train.batch_size=24"])
    said = next(line for line in choose(config, 7 * 2**20, processes=2).why if line.startswith("generation.batch_size"))
    found = re.fullmatch(r"generation.batch_size=(\d+): .*; (\d+) would take .*", said)
    assert found is not None, said
    assert int(found[2]) > int(found[1])


def test_a_sharded_base_leaves_more_room() -> None:
    """Llama's layer has 2·h² of q and o, 2·h·k of k and v, 3·h·f of the feed-forward and two norms."""
    config = compose(["model=llama-8b", "model.gradient_checkpointing=true"])
    layer = 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    whole, split = resident_plan(config), resident_plan(config, shards=8)
    assert whole.weights - split.weights == 2 * (32 * layer - 32 * layer // 8 - 2 * layer)
    assert (whole.adapters, whole.moments) == (split.adapters, split.moments)
    assert resident_plan(compose(OPEN), shards=2).weights == resident_plan(compose(OPEN)).weights, "two layers are held"


def test_all_weights_split_leave_an_eighth_of_them_their_copies_and_their_moments() -> None:
    """Llama's embedding and head, of 128256 tokens each, and its last norm are whole while a model is used."""
    given = ["model=llama-8b", "adapter=none", "algo=sft", "model.gradient_checkpointing=true"]
    config = compose([*given, "data.max_prompt_tokens=64", "generation.max_new_tokens=64", "train.batch_size=8"])
    layer = 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    others = 2 * 128256 * 4096 + 4096
    total, part = 32 * layer + others, (32 * layer + others) // 8
    split = resident_plan(config, shards=8)
    assert split.weights == 2 * (part + others + 2 * layer)
    assert split.adapters == 2 * (part + others), "the reference"
    assert split.moments == 2 * 2 * part
    one, eighth = training_bytes(config, 1, accumulating=True), training_bytes(config, 1, shards=8)
    assert one - eighth == 2 * (total - part - 2 * layer), "gradients, but those of two layers"
    assert make_plan(config, shards=8).training == eighth
    assert resident_plan(config).weights == 2 * total


def test_a_cpu_keeps_the_whole_batch_and_what_is_typed_stays() -> None:
    config = compose(["experiment=smoke", "train.micro_batch_size=auto"])
    chosen = choose(config, None).config
    assert (chosen.train.micro_batch_size, chosen.generation.batch_size) == (None, None)
    assert chosen.model.gradient_checkpointing is False
    assert chosen.model.cuda_graphs == "auto"
    assert choices(config, chosen) == {}, "a GPU that resumes the run chooses for itself"
    typed = ["train.micro_batch_size=3", "generation.batch_size=null", "model.gradient_checkpointing=true"]
    config = compose(["experiment=smoke", *typed])
    assert choose(config, 1).config == choose(config, None).config == config


def test_steps_that_cannot_be_recorded_are_reported() -> None:
    eager = compose([*OPEN, "model.attention=eager"])
    choice = choose(eager, GIB)
    assert choice.config.model.cuda_graphs is False
    assert "model.cuda_graphs=false: attention=eager" in choice.why[0]
    assert choose(compose(OPEN), GIB).config.model.cuda_graphs == "auto"


def test_a_window_shorter_than_the_texts_is_named(tmp_path: Path) -> None:
    """Never recorded where completions alone exceed it, and noted where a prompt may."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    AutoConfig.for_model("mistral", vocab_size=300, num_hidden_layers=1, sliding_window=32, **sizes).save_pretrained(
        tmp_path
    )
    said = {}
    for new, prompt in ((32, 8), (16, 17), (16, 16)):
        lengths = [f"generation.max_new_tokens={new}", f"data.max_prompt_tokens={prompt}"]
        typed = ["train.micro_batch_size=1", "generation.batch_size=1", "model.gradient_checkpointing=false"]
        config = compose([*OPEN, "model=path", f"model.path={tmp_path}", *lengths, *typed])
        choice = choose(config, GIB)
        said[new, prompt] = [line for line in choice.why if "cuda_graphs" in line]
    window = "the sliding window of 32 tokens is shorter than a prompt and its completion"
    assert said[32, 8] == [f"model.cuda_graphs=false: {window}"]
    assert said[16, 17] == [f"model.cuda_graphs=auto: not for batches of which {window}"]
    assert said[16, 16] == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("train.micro_batch_size=some", "train.micro_batch_size must be a whole number, null or auto, not some"),
        ("generation.batch_size=true", "generation.batch_size must be a whole number, null or auto, not True"),
        ("generation.batch_size=1.5", "generation.batch_size must be a whole number, null or auto, not 1.5"),
        ("generation.batch_size=0", "generation.batch_size must be at least 1"),
        ("model.gradient_checkpointing=1", "model.gradient_checkpointing must be auto, true or false, not 1"),
    ],
)
def test_other_values_are_refused(given: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        compose(["experiment=smoke", given])


def test_gpus_by_name_and_size() -> None:
    given = ["plan.gpu=24GB", "plan.gpu=H100", "plan.gpu=rtx-4090", "plan.gpu=79.5", "plan.shards=8"]
    assert planned_gpus(given) == ([24, 80, 24, 79.5], 8)
    assert planned_gpus([]) == (GPU_SIZES, 1)
    with pytest.raises(InputError, match="not a memory size or a known GPU"):
        planned_gpus(["plan.gpu=h1000"])
    with pytest.raises(InputError, match="given twice"):
        planned_gpus(["plan.shards=2", "plan.shards=4"])
    for number in ("0", "-2", "two", "1.5", ""):
        with pytest.raises(InputError, match="is not a number of processes"):
            planned_gpus([f"plan.shards={number}"])


def stored(run: Path) -> Any:
    return yaml.safe_load((run / "config.yaml").read_text())


def chosen(run: Path, step: int) -> Any:
    return json.loads((run / "checkpoints" / f"step-{step}" / "state.json").read_text())["chosen"]


GIVEN = ("experiment=smoke", "model.device=cpu", "model.dtype=float32", "train.micro_batch_size=auto")
SHORT = (*GIVEN, "generation.max_new_tokens=24", "evaluation.batch_size=1", "optim.schedule=constant")


@pytest.fixture
def device_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the free MiB of the device."""
    return lambda mib: monkeypatch.setattr("alignrun.launch.build.free_memory", lambda _: int(mib * 2**20))


def test_a_resumed_run_keeps_what_it_chose(
    tmp_path: Path, device_of: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """On a device of 5 MiB, then on one with ten times that: the rest of the run is that of a whole one."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    device_of(5)
    assert cli.main([*SHORT, "train.steps=2", f"run.dir={run}"]) == 0
    assert cli.main([*SHORT, "train.steps=4", f"run.dir={whole}"]) == 0
    said, small = capsys.readouterr().out, chosen(run, 2)
    assert 1 <= small["train.micro_batch_size"] < 4
    assert 1 <= small["generation.batch_size"] <= 4
    assert isinstance(small["model.gradient_checkpointing"], bool)
    assert f"memory: train.micro_batch_size={small['train.micro_batch_size']}: " in said
    device_of(50)
    assert cli.main(["resume", str(run), "train.steps=4"]) == 0
    assert "memory:" not in capsys.readouterr().out
    assert chosen(run, 4) == small
    first, second = ((path / "checkpoints/step-4/weights.safetensors").read_bytes() for path in (run, whole))
    assert first == second
    assert cli.main(["resume", str(run), "train.steps=5", "train.micro_batch_size=auto"]) == 0
    said = capsys.readouterr().out
    assert "memory: train.micro_batch_size=4: " in said, "what is typed is chosen anew"
    assert "memory: generation.batch_size" not in said
    assert chosen(run, 5) == small | {"train.micro_batch_size": 4}
    assert cli.main(["resume", str(run), "train.steps=6", "train.micro_batch_size=2"]) == 0
    assert stored(run)["train"]["micro_batch_size"] == 2
    assert chosen(run, 6).keys() == small.keys() - {"train.micro_batch_size"}


def test_a_run_that_starts_from_another_chooses_for_itself(
    tmp_path: Path, device_of: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A best response, and a run of the same configuration: what was typed is taken over, what was chosen is not."""
    run = tmp_path / "run"
    device_of(5)
    assert cli.main([*SHORT, "generation.batch_size=3", "train.steps=1", f"run.dir={run}"]) == 0
    for section, key in (("train", "micro_batch_size"), ("model", "gradient_checkpointing")):
        assert stored(run)[section][key] == "auto"
    assert chosen(run, 1)["train.micro_batch_size"] < 4
    device_of(50)
    for words in (["exploit", str(run)], ["--config", str(run)]):
        other = tmp_path / words[0]
        capsys.readouterr()
        assert cli.main([*words, f"run.dir={other}"]) == 0
        assert "memory: train.micro_batch_size=4: " in capsys.readouterr().out
        assert chosen(other, 1) == {"train.micro_batch_size": 4, "model.gradient_checkpointing": False}
        assert stored(other)["generation"]["batch_size"] == 3


def test_a_checkpoint_of_an_earlier_version_or_of_another_hand(tmp_path: Path) -> None:
    config = compose(OPEN)
    for state in ({}, {"chosen": {}}):  # the numbers that were chosen are in such a run's config.yaml
        assert with_recorded(config, Checkpoint(tmp_path, 1, {}, state), ()) == config
    for found in (3, None, ["x"], {"train.micro_batch_size": "some"}, {"model.gradient_checkpointing": 1}):
        with pytest.raises(InputError, match=r"its state does not say what `auto` stood for .* --step"):
            with_recorded(config, Checkpoint(tmp_path, 1, {}, {"chosen": found}), ())


def test_many_rows_are_extrapolated_from_the_datas_own_lengths() -> None:
    """Where completions are not sampled, a long `max_new_tokens` says nothing about a pass."""
    limits = ["data.max_prompt_tokens=8", "data.max_completion_tokens=64", "generation.max_new_tokens=4096"]
    config = compose(["model=smollm2-135m", "algo=dpo", "data=bundled_pairs", *limits, "train.batch_size=64"])
    assert CHUNK_SIZE // (2 * 64) < 32, "not all of them are traced"
    assert learning_bytes(config, 32) == pytest.approx(training_bytes(config, 32), rel=0.01)


SOURCES = (Role.policy, Mixture(Role.policy, Role.reference, 0.5), Role.reference)


@pytest.mark.parametrize("chunk", [None, 1, 2, 3])
def test_no_draw_depends_on_how_many_prompts_are_decoded_together(chunk: int | None) -> None:
    policy, _ = load_policy()
    prompts, _ = random_batch(policy, prompts=5)
    sampling = Sampling(6, policy.stop_ids, policy.tokenizer.pad_token_id)
    whole, parts = (
        sample_streams(policy, prompts, SOURCES, sampling, step_generator(policy.device, 3, 1), None, None, pace)
        for pace in (None, Pace(chunk))
    )
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.mask, other.mask)


def test_sampling_that_runs_out_of_memory_goes_on_with_half_and_draws_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, _ = load_policy()
    prompts, _ = random_batch(policy, prompts=5)
    sampling = Sampling(6, policy.stop_ids, policy.tokenizer.pad_token_id)

    def draw(pace: Pace) -> list[Any]:
        generator = step_generator(policy.device, 3, 1)
        return sample_streams(policy, prompts, SOURCES, sampling, generator, None, None, pace)

    expected, sample, sizes = draw(Pace()), rollout.sample_completions, []

    def hungry(decoder: Any, prompts: int, *rest: Any) -> Any:
        sizes.append(prompts)
        if prompts > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sample(decoder, prompts, *rest)

    monkeypatch.setattr(rollout, "sample_completions", hungry)
    notes: list[str] = []
    pace = Pace()
    pace.memory.note = notes.append
    for _ in range(2):  # the second time at once with what has been found to fit
        for one, other in zip(expected, draw(pace), strict=True):
            assert torch.equal(one.tokens, other.tokens)
    assert sizes == [5, 3, 2, 2, 1, 2, 2, 1]
    assert notes == [
        "out of memory when sampling for 5 prompts: continuing with 3, which changes no random number "
        "(generation.batch_size=3 saves the attempt)",
        "out of memory when sampling for 3 prompts: continuing with 2, which changes no random number "
        "(generation.batch_size=2 saves the attempt)",
    ]


def test_the_note_names_the_prompts_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`generation.batch_size` is that of the job, and memory that of one process."""
    monkeypatch.setattr(distributed, "size", lambda: 4)
    pieces, notes = rollout.fitting(), list[str]()
    pieces.note = notes.append

    def work(size: int) -> int:
        if size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return size

    assert pieces.that_fit(5, work) == 3
    assert "(generation.batch_size=12 saves the attempt)" in notes[0]


def test_one_prompt_that_does_not_fit_ends_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = load_policy()
    prompts, _ = random_batch(policy, prompts=2)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rollout, "sample_completions", full)
    with pytest.raises(torch.OutOfMemoryError):
        sample_streams(policy, prompts, SOURCES, Sampling(2, [], 0), step_generator(policy.device, 0, 0))


def test_the_plan_prints_what_it_chooses_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *OPEN, "model.device=cpu", "plan.gpu=0.01", "plan.gpu=T4"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "0.01 GB: model.gradient_checkpointing=" in said
    assert "15 GB: train.micro_batch_size=6:" in said
    assert "the whole batch" in said
    assert cli.main(["config", *OPEN]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["train"]["micro_batch_size"] == shown["generation"]["batch_size"] == "auto"
    assert automatic.AUTO == shown["model"]["gradient_checkpointing"] == shown["model"]["cuda_graphs"]
