"""Suggestions for arguments that are neither commands nor key=value, and for setting names of other trainers.

Nothing here imports torch, so a mistyped command is answered immediately.
"""

import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path

from alignrun.errors import did_you_mean
from alignrun.launch.commands import COMMANDS, VERBS

ALIASES = {
    "batch_size": "train.batch_size",
    "per_device_train_batch_size": "train.batch_size",
    "train_batch_size": "train.batch_size",
    "micro_batch_size": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "max_steps": "train.steps",
    "num_steps": "train.steps",
    "steps": "train.steps",
    "total_steps": "train.steps",
    "total_episodes": "train.steps",
    "epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "save_steps": "train.checkpoint_every",
    "save_total_limit": "train.keep_checkpoints",
    "logging_steps": "train.log_every",
    "eval_steps": "evaluation.every",
    "lr": "optim.learning_rate",
    "learning_rate": "optim.learning_rate",
    "lr_scheduler_type": "optim.schedule",
    "scheduler": "optim.schedule",
    "max_grad_norm": "optim.max_grad_norm",
    "grad_clip": "optim.max_grad_norm",
    "adam_beta1": "optim.beta1",
    "adam_beta2": "optim.beta2",
    "adam_epsilon": "optim.epsilon",
    "output_dir": "run.dir",
    "out_dir": "run.dir",
    "save_dir": "run.dir",
    "run_dir": "run.dir",
    "beta": "algo.kl_tau",
    "tau": "algo.kl_tau",
    "kl_coef": "algo.kl_tau",
    "init_kl_coef": "algo.kl_tau",
    "kl_coeff": "algo.kl_tau",
    "mixture_coef": "algo.mix_beta",
    "num_generations": "algo.samples_per_prompt",
    "cliprange": "algo.clip",
    "epsilon": "algo.clip",
    "cliprange_value": "algo.value_clip",
    "vf_coef": "algo.value_weight",
    "gamma": "algo.discount",
    "lam": "algo.trace",
    "num_ppo_epochs": "algo.epochs",
    "num_iterations": "algo.epochs",
    "num_mini_batches": "algo.minibatches",
    "whiten_rewards": "algo.normalize_reward",
    "scale_rewards": "algo.scale_by_std",
    "missing_eos_penalty": "algo.missing_eos_penalty",
    "label_smoothing": "algo.label_smoothing",
    "precompute_ref_log_probs": "algo.precompute_reference",
    "packing": "algo.pack_tokens",
    "loss_type": "algo",
    "trainer": "algo",
    "algorithm": "algo",
    "model_name": "model=path model.path",
    "model_name_or_path": "model=path model.path",
    "model_path": "model=path model.path",
    "base_model": "model=path model.path",
    "ref_model": "reference=adapter reference.path",
    "sft_model_path": "reference=adapter reference.path",
    "dtype": "model.dtype",
    "torch_dtype": "model.dtype",
    "device": "model.device",
    "attn_implementation": "model.attention",
    "gradient_checkpointing": "model.gradient_checkpointing",
    "system_prompt": "model.system_prompt",
    "dataset": "data",
    "dataset_name": "data=hub data.path",
    "dataset_path": "data=jsonl data.path",
    "data_path": "data=jsonl data.path",
    "train_file": "data=jsonl data.path",
    "eval_file": "data.eval_path",
    "max_prompt_length": "data.max_prompt_tokens",
    "max_length": "data.max_prompt_tokens",
    "judge": "preference=judge preference.model",
    "reward_model": "preference=bradley_terry preference.path",
    "reward_model_path": "preference=reward_model preference.path",
    "lora_r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lora_target_modules": "adapter.target_modules",
    "max_new_tokens": "generation.max_new_tokens",
    "max_completion_length": "generation.max_new_tokens",
    "response_length": "generation.max_new_tokens",
    "max_tokens": "generation.max_new_tokens",
    "temperature": "generation.temperature",
    "vllm_server": "generation.server_url",
    "vllm_server_base_url": "generation.server_url",
    "vllm_importance_sampling_cap": "generation.server_weight_cap",
    "report_to": "tracker",
    "run_name": "tracker.name",
    "wandb_project": "tracker.project",
    "wandb_entity": "tracker.entity",
    "project": "tracker.project",
    "tags": "tracker.tags",
}
"""Another trainer's name → ours, up to the equals sign."""

HYDRA = frozenset(
    [
        "c",
        "cfg",
        "p",
        "package",
        "r",
        "i",
        "info",
        "cn",
        "config-name",
        "cp",
        "config-path",
        "cd",
        "config-dir",
        "resolve",
        "hydra-help",
        "experimental-rerun",
        "shell-completion",
    ]
)
"""Options of Hydra's own command line."""


def alias(key: str) -> str | None:
    """Our name for another trainer's setting; None if it is unknown, or is our name."""
    found = ALIASES.get(_bare(key))
    return None if found == key else found


def _bare(key: str) -> str:
    name = key.lower().replace("-", "_")
    return next((name.removeprefix(part) for part in ("train.", "algo.", "args.") if name.startswith(part)), name)


def stray(arguments: Sequence[str], verb: str = "") -> str | None:
    """The error line for the first argument that is not key=value; None if all are.

    Args:
        arguments: the arguments after the verb, if there is one.
        verb: the command that takes them; empty for a run.
    """
    place, word = next(
        ((place, word) for place, word in enumerate(arguments) if "=" not in word or word.startswith("-")), (0, None)
    )
    if word is None:
        return None
    command = f"alignrun {verb}".rstrip()
    following = []
    for other in arguments[place + 1 :]:
        if "=" in other or other.startswith("-"):
            break
        following.append(other)
    before, after = arguments[place - 1] if place else "", arguments[place + 1] if place + 1 < len(arguments) else ""
    if before.endswith("=") or after.startswith("="):
        pair = f"{before}{word}" if before.endswith("=") else "".join(arguments[place : place + 3 - (len(after) > 1)])
        return f"{command}: no spaces around the equals sign: write {pair}"
    if word in ("-m", "--multirun"):
        return f"{command}: {word} is for sweeps of runs and not valid with a command: leave it out"
    if word.startswith("-") and word.lstrip("-").partition("=")[0] in HYDRA:
        return f"{command}: {word} is an option of Hydra, which alignrun does not take: see `alignrun --help`"
    if word.startswith("--") and (near := close_option(word, verb)):
        return f"{command}: {word} is not an option{near}"
    if word.startswith("-"):
        return f"{command}: {word.partition('=')[0]} is not an option: {_as_override(word, following, verb)}"
    if verb == "eval":
        return f"alignrun eval takes its runs as a list: write runs={shlex.quote(_listed([word, *following]))}"
    if verb:
        return f"{command}: {word!r} is not key=value{_pair(word, following)}"
    if not place and word in VERBS:
        return f"{word!r} is a command, and -m is only for runs: leave one of them out"
    if word in VERBS:
        others = [argument for argument in arguments if argument != word]
        return f"{word!r} is a command and must come first: alignrun {word} {shlex.join(others)}"
    if word in ("alignrun", "train", "run", "fit", "sft", "dpo", "grpo", "ppo"):
        chosen = "" if word in ("alignrun", "train", "run", "fit") else f" algo={word}"
        return f"{word!r} is not a command, and a run needs none: write alignrun{chosen} key=value …"
    if not place and (near := did_you_mean(word, VERBS)):
        return f"{word!r} is neither a command nor key=value{near}"
    if word and Path(word).is_dir():
        return f"{word!r} is a folder: name a command for it, as in alignrun resume {shlex.quote(word)}"
    return f"{word!r} is neither a command nor key=value{_pair(word, following)}"


def close_option(word: str, verb: str) -> str:
    """As `did_you_mean`, for the options of a command."""
    command = COMMANDS[verb]
    bare = {option.lstrip("-"): option for option in (*command.options, *command.files)}
    near = difflib.get_close_matches(word.lstrip("-"), bare, n=1, cutoff=0.7)
    return f": did you mean {bare[near[0]]}?" if near else ""


def _as_override(option: str, following: Sequence[str], verb: str) -> str:
    key, given, value = option.lstrip("-").partition("=")
    if not given:
        value = following[0] if following else "…"
    if verb == "eval" and key in ("runs", "run") and following:
        return f"write runs={shlex.quote(_listed(following))}"
    if verb == "plan" and key == "gpu":
        return f"write plan.gpu={value}"
    if known := alias(key):
        return f"write {known}={value}"
    return f"write {key.replace('-', '_')}={value}" if key else "write key=value"


def _pair(word: str, following: Sequence[str]) -> str:
    key, colon, value = word.partition(":")
    if colon and key.replace(".", "").isidentifier() and value:
        return f": did you mean {alias(key) or key}={value}?"
    if not following:
        return ": see `alignrun --help`"
    return f": did you mean {alias(word) or word}={following[0]}?"


def _listed(words: Sequence[str]) -> str:
    return f"[{','.join(words)}]"
