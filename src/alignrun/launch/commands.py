"""The commands: usage, meaning, options and examples of each, for the parser, the help and the shells' completion."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Option:
    """An option of one command, or of several."""

    meaning: str
    value: str = ""
    """What it takes, as help shows it; empty for a switch."""
    settings: Mapping[str, Any] = field(default_factory=lambda: {"action": "store_true"})
    """How argparse reads it."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command."""

    usage: str
    """After `alignrun`."""
    summary: str
    examples: tuple[tuple[str, str], tuple[str, str]]
    """Two command lines, each with what it does."""
    options: tuple[str, ...] = ()
    positional: tuple[str, ...] = ()
    """What it takes besides options and overrides: RUN, GROUP, …"""
    many: str = ""
    """How many of them, as in argparse: `*` or `+`; empty for one."""
    keys: str = ""
    """Which keys it takes: those of a `run`, its `own`, or none."""
    own_keys: Mapping[str, str] = field(default_factory=dict)
    """Keys of this command alone → meaning."""
    files: tuple[str, ...] = ()
    """Which of --config and --config-dir it takes."""


OPTIONS = {
    "--config": Option("your own YAML file on top of the defaults, or a run to start from; may be repeated", "FILE"),
    "--config-dir": Option("your own folder of choices, such as DIR/algo/mine.yaml for algo=mine", "DIR"),
    "--trust": Option("open someone else's run that executes code or contacts a server"),
    "--step": Option("the checkpoint of this step instead of the newest", "N", {"type": int}),
    "--merge": Option("a whole model with the adapter merged into it, instead of the adapter"),
    "--to": Option("the folder to write; by default in the run", "DIR", {}),
    "--push": Option("upload the export to this repository of the Hugging Face Hub, OWNER/NAME", "ID", {}),
    "--public": Option("make the repository of --push public"),
    "--examples": Option("how many examples to show; 3 by default", "N", {"type": int, "default": 3}),
    "--sort": Option("name, algorithm, model, steps, win_rate, accuracy, kl, state, or any key or metric", "KEY", {}),
    "--reverse": Option("reverse the order; runs without a value stay last"),
    "--all": Option("also show what is the same"),
    "--reference": Option("also the run's reference; for generate, instead of the policy"),
    "--once": Option("print the view once and exit"),
    "--interval": Option("seconds between updates; 2 by default", "SECONDS", {"type": float, "default": 2.0}),
    "--explain": Option("the meaning of every key as a comment above it"),
    "--multirun": Option("(-m) a sweep: one run for each combination of the comma-separated values"),
}
"""All options."""

BOTH = ("--config", "--config-dir")
"""The options that name the user's own configuration files."""

COMMANDS = {
    "": Command(
        "[key=value …]",
        "train: algo=nash_md model=smollm2-135m unless overridden",
        (
            ("algo=ppo model=path model.path=./my-model", "another algorithm, on your own model"),
            ("-m experiment=smoke algo.kl_tau=0.01,0.1", "a sweep: two runs and a table"),
        ),
        ("--multirun", "--trust"),
        keys="run",
        files=BOTH,
    ),
    "eval": Command(
        "eval runs='[A,B]' [key=value …]",
        "a tournament: win rates, the equilibrium, and how exploitable each policy is",
        (
            ("eval runs='[runs/A,runs/B]' prompts=64", "two runs and their reference, on 64 held-out prompts"),
            ("eval runs='[runs/A,smollm2-135m]' preference=style_panel", "a run and a model, with another judge"),
        ),
        ("--trust",),
        keys="own",
        files=BOTH,
    ),
    "eval-preference": Command(
        "eval-preference preference=NAME data=NAME [key=value …]",
        "how good a reward model, preference model or judge is, on labelled pairs",
        (
            (
                "eval-preference preference=skywork_v2 data=hub data.path=allenai/reward-bench data.split=filtered",
                "a published reward model on RewardBench",
            ),
            (
                "eval-preference preference=learned preference.path=runs/pm data=pandalm data.path=FILE rows=heldout",
                "a preference model, on what its run has held out",
            ),
        ),
        ("--trust",),
        keys="own",
        files=BOTH,
    ),
    "exploit": Command(
        "exploit RUN [key=value …]",
        "train a best response to a run's policy: a lower bound on its exploitability",
        (
            ("exploit runs/A", "with the settings of the run"),
            ("exploit runs/A train.steps=200 run.dir=runs/A-exploited", "longer, in a folder of your choice"),
        ),
        ("--trust",),
        ("RUN",),
        keys="run",
        files=("--config-dir",),
    ),
    "resume": Command(
        "resume RUN [--step N] [key=value …]",
        "continue a stopped run, bit for bit unless a value is changed",
        (
            ("resume runs/A", "from the newest checkpoint"),
            ("resume runs/A --step 20 optim.learning_rate=1e-5", "from an earlier one, with a lower learning rate"),
        ),
        ("--step", "--trust"),
        ("RUN",),
        keys="run",
        own_keys={"resume.changed": "`accept` continues although data or models of the run have changed since."},
    ),
    "top": Command(
        "top RUN [--once]",
        "a live view of a run: progress, metrics as sparklines, the last completions",
        (("top runs/A", "until it ends, or Ctrl-C"), ("top runs/A --once", "one view, for scripts")),
        ("--once", "--interval"),
        ("RUN",),
    ),
    "plan": Command(
        "plan [plan.gpu=24GB] [key=value …]",
        "parameters, predicted memory, and the batches that fit a GPU",
        (
            ("plan model=llama-8b", "on GPUs of 24, 48 and 80 GB"),
            ("plan model=qwen-7b adapter=qlora plan.gpu=16GB", "on a GPU of 16 GB"),
        ),
        keys="run",
        own_keys={
            "plan.gpu": "The memory of a GPU, such as 24GB; may be repeated.",
            "plan.shards": "The processes that share the base under --use_fsdp; the plan is that of one of them.",
        },
        files=BOTH,
    ),
    "data": Command(
        "data [--examples N] [key=value …]",
        "what would be trained on: rows, skips by reason, token lengths, examples",
        (
            ("data algo=dpo data=jsonl data.path=pairs.jsonl", "the pairs of a file"),
            ("data algo=sft data=hub data.path=ORG/NAME data.bad_rows=skip --examples 10", "and why rows are left out"),
        ),
        ("--examples",),
        keys="run",
        files=BOTH,
    ),
    "export": Command(
        "export RUN [--merge] [--step N] [--to DIR] [--push ID]",
        "a PEFT adapter, or a merged model, for transformers and vLLM, or on the hub",
        (
            ("export runs/A", "the adapter of the last step, in runs/A/export"),
            ("export runs/A --merge --to my-model", "a whole model"),
        ),
        ("--merge", "--step", "--to", "--push", "--public", "--trust"),
        ("RUN",),
    ),
    "runs": Command(
        "runs [DIR…] [--sort KEY]",
        "the runs in a folder: steps, win rate, KL and state of each",
        (
            ("runs", "all below runs/, by name"),
            ("runs runs/sweep --sort algo.kl_tau", "by a key of the configuration, which then has a column"),
        ),
        ("--sort", "--reverse"),
        ("FOLDERS",),
        many="*",
    ),
    "diff": Command(
        "diff A B [--all]",
        "what differs between two runs: configuration, inputs and results",
        (("diff runs/A runs/B", "differences alone"), ("diff runs/A runs/B --all", "everything")),
        ("--all",),
        ("A", "B"),
    ),
    "chat": Command(
        "chat POLICY [POLICY] [--reference] [key=value …]",
        "talk to a run, a checkpoint or a model, or to two at once; /new starts over, /exit ends",
        (
            ("chat runs/A --reference", "a policy next to its reference"),
            ("chat runs/A runs/B temperature=1", "two policies at another temperature"),
        ),
        ("--reference", "--trust"),
        ("POLICIES",),
        many="+",
        keys="own",
    ),
    "generate": Command(
        "generate POLICY out=FILE [--reference] [key=value …]",
        "completions in a file; format=pairs labels them for algo=dpo",
        (
            ("generate runs/A out=c.jsonl rows=heldout samples=4", "four completions of each held-out prompt"),
            ("generate runs/A format=pairs out=pairs.jsonl preference=sentiment", "pairs for the next round of DPO"),
        ),
        ("--reference", "--trust"),
        ("POLICY",),
        keys="own",
        files=BOTH,
    ),
    "ls": Command(
        "ls [GROUP]",
        "the available choices: algorithms, models, data, preferences, …",
        (("ls", "of every group"), ("ls preference", "of one")),
        positional=("GROUP",),
        files=("--config-dir",),
    ),
    "config": Command(
        "config [--explain] [key=value …]",
        "the whole configuration that the overrides select, as YAML",
        (
            ("config algo=ppo", "every value of a run"),
            ("config --explain algo=ppo > ppo.yaml", "with the meaning of each key, as a file to edit"),
        ),
        ("--explain",),
        keys="run",
        files=BOTH,
    ),
    "help": Command(
        "help [TOPIC]",
        "a key (type, default, meaning), a group and its choices, the keys of a choice, or a command",
        (("help algo.kl_tau", "one key"), ("help preference=judge", "all keys of a choice")),
        positional=("TOPIC",),
        files=("--config-dir",),
    ),
    "cp": Command(
        "cp GROUP/CHOICE DEST",
        "copy a shipped configuration to your own file or folder, to edit it",
        (
            ("cp experiment/panel .", "./panel.yaml, for --config panel.yaml"),
            ("cp algo/nash_md conf/algo/mine.yaml", "for --config-dir conf algo=mine"),
        ),
        positional=("CHOICE", "DEST"),
        files=("--config-dir",),
    ),
    "completion": Command(
        "completion bash|zsh|fish",
        "a script that completes commands, choices, keys and runs in a shell",
        (
            ('eval "$(alignrun completion bash)"', "in ~/.bashrc; for zsh in ~/.zshrc, after compinit"),
            ("completion fish > ~/.config/fish/completions/alignrun.fish", "for fish"),
        ),
        positional=("SHELL",),
    ),
}
"""Command → what it is; the empty name trains."""

VERBS = tuple(name for name in COMMANDS if name)
"""The names of all commands but training."""
