"""`alignrun export`: write a run's policy or feedback model for other programs."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from alignrun.config import AdapterKind, Config
from alignrun.errors import InputError
from alignrun.launch import compose
from alignrun.launch.build import load_trained, memory_errors
from alignrun.launch.pins import check_base
from alignrun.launch.sharing import add_record, check_push, push
from alignrun.models.policy import Policy
from alignrun.models.scorer import Scorer
from alignrun.models.sources import load_tokenizer
from alignrun.preferences.base import preference_using
from alignrun.run.directory import RunDirectory, writing_folder
from alignrun.run.trust import check_own, read_signature
from alignrun.training.checkpoint import read_checkpoint, restore_weights

ELSEWHERE = "choose another folder with --to"


def export(
    path: str,
    step: int | None,
    merge: bool,
    target: str | None,
    console: Console,
    repository: str | None = None,
    public: bool = False,
) -> int:
    """Export a policy as a PEFT adapter or merged into its base (for transformers and vLLM), or a feedback model as an
    adapter and a head, and upload it to the hub's `repository`, if one is named.

    The folder appears only when all of it is written, and is uploaded only then.

    Raises:
        AlignrunError: the run has no checkpoint, the target exists, the weights are not finite, or the upload failed.
    """
    if repository is not None:
        check_push(repository)
    run = RunDirectory.open(path)
    config = compose.load(run.config_file)
    check_own(compose.plain(config), read_signature(run.signature_file), str(run.path), ("model",))
    folder = Path(target).expanduser() if target else run.path / ("merged" if merge else "export")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} exists: {ELSEWHERE}")
    checkpoint = read_checkpoint(run.checkpoints, step, lambda text: console.print(text, highlight=False, markup=False))
    if checkpoint is None:
        raise InputError(f"{run.path} has no checkpoint yet: let the run reach one first")
    with writing_folder(folder, "export again", ELSEWHERE) as partial, memory_errors(config):
        trained = _load(config)
        check_base(run, config, trained.backbone)
        base = trained.backbone.base
        if repository is not None and not merge and base and Path(base).is_absolute():
            raise InputError(
                f"--push: others cannot load the adapter's base, {base}: push the whole model with --merge"
            )
        if merge and not isinstance(trained, Policy):
            raise InputError(f"{run.path} is a feedback model, whose head cannot be merged: export it without --merge")
        restore_weights(trained.trainable(), checkpoint)
        if isinstance(trained, Policy):
            trained.training = replace(trained.training, step=checkpoint.step)
        if merge and isinstance(trained, Policy):
            trained.save_merged(partial)
        else:
            trained.save_adapter(partial)
        add_record(partial, run, checkpoint.step)
    for line in _instructions(trained, folder, checkpoint.step, whole=merge or config.adapter.name is AdapterKind.none):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if repository is not None:
        address = push(folder, repository, f"{config.algo.name}, step {checkpoint.step}", public=public)
        console.print(f"uploaded to {address}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _load(config: Config) -> Policy | Scorer:
    adapter = config.adapter
    if adapter.name is AdapterKind.qlora:
        # The adapter fits the full-precision base too. Merging uses that, and needs no GPU.
        adapter = replace(adapter, name=AdapterKind.lora)
    return load_trained(replace(config, adapter=adapter), load_tokenizer(config.model))


def _instructions(trained: Policy | Scorer, folder: Path, step: int, *, whole: bool) -> list[str]:
    """Lines that say what was written and how to use it."""
    if isinstance(trained, Scorer):
        use = preference_using(trained.card.kind)
        return [
            f"feedback model of step {step} written to {folder}",
            f"use it with preference={use} preference.path={folder}",
        ]
    loaded = (
        f"AutoModelForCausalLM.from_pretrained({str(folder)!r})"
        if whole
        else f"PeftModel.from_pretrained(base, {str(folder)!r})"
    )
    return [
        f"{'model' if whole else 'adapter'} of step {step} written to {folder}",
        f"load it with {loaded}",
        f"sample it at temperature {trained.training.temperature:g}, as generation_config.json says: at another one it "
        "is another policy",
    ]
