"""Whole training steps against TRL, and against the matrix products that no implementation can avoid, in one run.

    python scripts/bench.py --setup ENV            # once: TRL, in environments of its own below ENV
    python scripts/bench.py --trl ENV --task nash_md [--new 64 --prompt 37 --batch 8 --dtype float32 --rounds 3]
    python scripts/bench.py --sides ours floor --dtype both --lengths 32,128,512
    python scripts/bench.py --sides ours server --task online_dpo --random --model tiny

Tasks: nash_md, ppo, online_dpo and dpo. All sides get the same model, prompts, lengths, LoRA (rank 16, all linear
layers), dtype and threads, and are separate processes that take turns after every step, so that a slow minute affects
all; ratios are of steps of the same turn. A step is everything from one optimiser step to the next; the first of each
process is not counted. No completion ends before its limit. Peak memory is the largest resident size of a process, or
on CUDA what its tensors took at most; all sides hold theirs at once, and `--sides` says which run. `--clock cpu` counts
the processor seconds of each side instead of the time that passes, for machines that others use too.

Our side is `alignrun` itself. Where TRL needs a reward model it gets one of a few thousand weights, so that judging is
free on both sides. TRL's PPO trains all weights of a separate value model, as released; ours trains a second adapter.
TRL's Nash-MD lets policy and reference write into one key-value cache when it samples from their mixture, so that each
attends to the other's text; `--uncached` turns that cache off, as its source intends. `floor` is the time of the
bare products of the step's linear layers, one after another, without attention, LoRA, norms or sampling; on CUDA those
of a decoded token are one graph.

`server` is our side with `generation.engine=server` and the stand-in server of the tests, whose own computing is not
counted: what is left of sampling is the cost of the path, which is to write the adapter, have it loaded, and send and
read all requests. The stand-in reads every prefix again for each token, so take a tiny model.

`--random` uses random weights in the architecture of `--model`, where its own are not available.
"""

import argparse
import copy
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TASKS = ("nash_md", "ppo", "online_dpo", "dpo")
TRL_VERSIONS = {"nash_md": "1.12.0", "ppo": "1.12.0", "online_dpo": "1.12.0", "dpo": "1.16.0"}
"""The last release with Nash-MD and PPO, and the latest for DPO."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
RANK, ALPHA, TAU, RATE = 16, 32, 0.1, 1e-5
WORDS = "the of and to in is that for it as was with be by on not he his but at are this have from or had an they"
NEVER = "<repo_name>"
"""The end of the text, for the benchmark: a token that this model does not say."""


def setup(folder: Path) -> None:
    """One environment for each version of TRL."""
    constraints = Path(__file__).parents[1] / "constraints.txt"
    for version in sorted(set(TRL_VERSIONS.values())):
        environment = folder / version
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", constraints]
        libraries = ["torch", "transformers", "peft", "accelerate", "datasets", "requests"]  # TRL imports the last too
        subprocess.run([*pip, *libraries, f"trl=={version}"], check=True)


def write_random_model(folder: Path, name: str, dtype: str) -> Path:
    """Random weights and a tokenizer of bytes; the token that ends a completion is one among all that are drawn."""
    import torch
    from transformers import AutoModelForCausalLM

    from alignrun.launch.compose import compose
    from alignrun.models.sources import planned_architecture
    from alignrun.models.tiny import byte_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    architecture = planned_architecture(compose([f"model={name}"]).model)
    for token in ("eos", "pad", "bos"):
        setattr(architecture, f"{token}_token_id", getattr(tokenizer, f"{token}_token_id"))
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(architecture, dtype=getattr(torch, dtype))
    target = folder / "model"
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def write_model(folder: Path, source: Path) -> Path:
    """The model, with prompts read as they are and no token that ends a completion."""
    from transformers import AutoTokenizer

    target = folder / "model"
    target.mkdir()
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            (target / file.name).symlink_to(file.resolve())
        elif file.suffix == ".json":
            (target / file.name).write_text(file.read_text())
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = None
    tokenizer.eos_token = NEVER
    tokenizer.save_pretrained(target)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((target / name).read_text())
        settings["eos_token_id"] = tokenizer.eos_token_id
        (target / name).write_text(json.dumps(settings))
    return target


def write_data(folder: Path, model: Path, options: argparse.Namespace) -> Path:
    """Prompts, and for DPO completions, of exactly these lengths: common words are one token each."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    generator = random.Random(0)

    def text(tokens: int, opening: str) -> str:
        words = [opening, *generator.choices(WORDS.split(), k=tokens)]
        while len(tokenizer(" ".join(words))["input_ids"]) > tokens:
            words.pop()
        return " ".join(words)

    path = folder / "data.jsonl"
    with path.open("w") as file:
        for index in range(options.batch * (options.steps + 1)):
            row = {"prompt": text(options.prompt, f"Case {index}")}
            if options.task == "dpo":
                row |= {"chosen": text(options.new, "Yes"), "rejected": text(options.new, "No")}
            file.write(json.dumps(row) + "\n")
    return path


class Turns:
    """The steps of this process: each waits for its turn, and then reports how long it took.

    What comes after the last step waits, too, as long as others are at theirs.
    """

    def __init__(self, clock: str) -> None:
        self._now = CLOCKS[clock]
        self._start = self._sampling = self._left_out = 0.0

    def watch_sampling(self, owner: Any, name: str) -> None:
        """Count the seconds spent in a function as sampling, by replacing it where it lives."""
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            try:
                return original(*args, **kwargs)
            finally:
                self._sampling += self._now() - start

        setattr(owner, name, timed)

    def leave_out(self, seconds: float) -> None:
        """Do not count so much of the sampling."""
        self._left_out += seconds

    def begin(self) -> None:
        if not sys.stdin.readline():  # the parent has exited
            sys.exit(1)
        self._start, self._sampling, self._left_out = self._now(), 0.0, 0.0

    def pass_on(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = {"sampling": self._sampling - self._left_out, "training": self._now() - self._start - self._sampling}
        print("STEP " + json.dumps(seconds), flush=True)
        self.begin()


def report(losses: list[float]) -> None:
    """The last line of a process."""
    import torch

    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch.cuda.is_available():
        gib = torch.cuda.max_memory_allocated() / 2**30
    print("RESULT " + json.dumps({"gib": gib, "losses": losses}), flush=True)


def overrides(options: argparse.Namespace) -> list[str]:
    """The configuration of our side."""
    settings = [
        *options.ours,
        f"algo={options.task}",
        f"algo.kl_tau={TAU}",
        "model=path",
        f"model.path={options.model}",
        f"model.dtype={options.dtype}",
        "data=jsonl",
        f"data.path={options.data}",
        f"data.eval_path={options.data}",
        "data.eval_size=1",
        "tracker=none",
        f"adapter.rank={RANK}",
        f"adapter.alpha={ALPHA}",
        f"optim.learning_rate={RATE}",
        "optim.warmup_steps=0",
        f"train.steps={options.steps}",
        f"train.batch_size={options.batch}",
        "train.checkpoint_every=0",
        "evaluation.every=0",
    ]
    if options.task == "dpo":
        return [*settings, "preference=none", "generation.max_new_tokens=1"]
    settings += ["preference=letters", f"generation.max_new_tokens={options.new}"]
    extra = {
        "nash_md": ["algo.mix_beta=0.125", "algo.samples_per_prompt=1"],
        "ppo": ["algo.epochs=1", "algo.samples_per_prompt=1", "algo.normalize_reward=false"],
        "online_dpo": ["algo.samples_per_prompt=2"],
    }
    return settings + extra[options.task]


def run_ours(options: argparse.Namespace) -> None:
    run_alignrun(options, Turns(options.clock))


def run_server(options: argparse.Namespace) -> None:
    """Our side with the stand-in server of the tests, in a thread of this process."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import torch
    from generation.serving import VllmLike
    from transformers import AutoModelForCausalLM

    turns = Turns(options.clock)
    thread_clock = {"wall": time.perf_counter, "cpu": time.thread_time}[options.clock]

    class Timed(VllmLike):
        def next_token(self, *args: Any) -> int:  # the server computes for one request at a time
            start = thread_clock()
            try:
                return super().next_token(*args)
            finally:
                turns.leave_out(thread_clock() - start)

    server = Timed(AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)))
    try:
        run_alignrun(options, turns, "generation.engine=server", f"generation.server_url={server.url}")
    finally:
        server.stop()


def run_alignrun(options: argparse.Namespace, turns: Turns, *more: str) -> None:
    from alignrun.algorithms.common import rollout
    from alignrun.algorithms.common.server_rollouts import ServerRollouts
    from alignrun.cli import main as alignrun
    from alignrun.training.trainer import Trainer

    turns.watch_sampling(rollout, "sample_streams")
    turns.watch_sampling(rollout, "sample_pairs")
    turns.watch_sampling(ServerRollouts, "_draw")
    step = Trainer.train_step

    def in_turn(trainer: Trainer, number: int) -> dict[str, float]:
        if number == 0:
            turns.begin()
        metrics = step(trainer, number)
        turns.pass_on()
        return metrics

    Trainer.train_step = in_turn  # type: ignore[method-assign]
    run = Path(tempfile.mkdtemp()) / "run"
    code = alignrun([*overrides(options), *more, f"run.dir={run}"])
    assert code == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    report([row["loss"] for row in rows if "loss" in row])


def run_trl(options: argparse.Namespace) -> None:
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin, TrainerCallback

    turns = Turns(options.clock)
    turns.watch_sampling(GenerationMixin, "generate")

    class InTurn(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            turns.begin()

        def on_step_end(self, *_: object, **__: object) -> None:
            turns.pass_on()

    dtype = getattr(torch, options.dtype)
    data = load_dataset("json", data_files=options.data, split="train", cache_dir=tempfile.mkdtemp())
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": options.batch,
        "learning_rate": RATE,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    if options.task != "ppo":
        common["max_steps"] = options.steps
    parts: dict[str, Any] = {
        "model": AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype),
        "train_dataset": data,
        "processing_class": tokenizer,
        "peft_config": LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        "callbacks": [InTurn()],
    }
    trainer = trl_trainer(options, common, parts)
    trainer.train()
    report([row["loss"] for row in trainer.state.log_history if "loss" in row])


def trl_trainer(options: argparse.Namespace, common: dict[str, Any], parts: dict[str, Any]) -> Any:
    """TRL's trainer for the task."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if options.task == "dpo":
        from trl import DPOConfig, DPOTrainer

        return DPOTrainer(args=DPOConfig(beta=TAU, max_length=None, **common), **parts)
    small = AutoConfig.from_pretrained(
        options.model,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        num_labels=1,
    )
    reward = AutoModelForSequenceClassification.from_config(small)
    length = {"max_new_tokens": options.new, "max_length": options.prompt + options.new + 8, "temperature": 1.0}
    if options.task == "nash_md":
        from trl.experimental.nash_md import NashMDConfig, NashMDTrainer

        if options.uncached:
            turn_off_the_cache_of_the_mixture()
        return NashMDTrainer(
            args=NashMDConfig(beta=TAU, mixture_coef=0.125, **length, **common), reward_funcs=reward, **parts
        )
    if options.task == "online_dpo":
        from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

        processors = {"reward_processing_classes": parts["processing_class"]}
        return OnlineDPOTrainer(
            args=OnlineDPOConfig(beta=TAU, **length, **common), reward_funcs=reward, **processors, **parts
        )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    value = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=1, dtype=parts["model"].dtype)
    tokens = parts["train_dataset"].map(
        lambda row: {"input_ids": parts["processing_class"](row["prompt"])["input_ids"]}, remove_columns=["prompt"]
    )
    arguments = PPOConfig(
        kl_coef=TAU,
        num_ppo_epochs=1,
        num_mini_batches=1,
        response_length=options.new,
        temperature=1.0,
        num_sample_generations=0,
        local_rollout_forward_batch_size=options.batch,
        total_episodes=options.batch * options.steps,
        **common,
    )
    parts |= {"train_dataset": tokens, "eval_dataset": tokens}
    return PPOTrainer(args=arguments, ref_model=None, reward_model=reward, value_model=value, **parts)


def turn_off_the_cache_of_the_mixture() -> None:
    from trl.experimental.nash_md.nash_md_trainer import GeometricMixtureWrapper

    generate = GeometricMixtureWrapper.generate

    def uncached(mixture: Any, *, generation_config: Any, **inputs: Any) -> Any:
        settings = copy.deepcopy(generation_config)
        settings.use_cache = False
        return generate(mixture, generation_config=settings, **inputs)

    GeometricMixtureWrapper.generate = uncached


def run_floor(options: argparse.Namespace) -> None:
    """The linear layers' products of every step, nothing else."""
    import torch
    from transformers import AutoModelForCausalLM

    from alignrun.models.device import lay_out_weights

    cuda = torch.cuda.is_available()
    torch.set_default_device("cuda" if cuda else "cpu")
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).to(
        torch.get_default_device()
    )
    lay_out_weights(model)  # as ours stores them, which is the faster way
    head = model.get_output_embeddings().weight.detach()
    layers = [
        module.weight.detach()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module.weight.data_ptr() != head.data_ptr()
    ]

    def forward(rows: int, head_rows: int) -> None:
        inputs = {width: torch.randn(rows, width, dtype=head.dtype) for width in {layer.shape[1] for layer in layers}}
        for layer in layers:
            torch.mm(inputs[layer.shape[1]], layer.T)
        for chunk in torch.randn(head_rows, head.shape[1], dtype=head.dtype).split(512):
            torch.mm(chunk, head.T)

    def backward(rows: int, head_rows: int) -> None:  # of the base's weights, the inputs' gradients alone
        outputs = {width: torch.randn(rows, width, dtype=head.dtype) for width in {layer.shape[0] for layer in layers}}
        for layer in layers:
            torch.mm(outputs[layer.shape[0]], layer)
        for count in [len(chunk) for chunk in torch.empty(head_rows).split(512)]:
            torch.mm(torch.randn(count, head.shape[0], dtype=head.dtype), head)

    batch, prompt, new = options.batch, options.prompt, options.new
    # Roles that decode in one batch, completions that are learned from, passes over them forward and backward; and the
    # same of a value function, which does without the vocabulary.
    roles, decoded, learned, forwards, backwards, value_forwards, value_backwards = {
        "nash_md": (2, 3, 1, 2, 1, 0, 0),
        "online_dpo": (1, 2, 2, 2, 1, 0, 0),
        "ppo": (1, 1, 1, 3, 1, 2, 1),
        "dpo": (0, 0, 2, 2, 1, 0, 0),
    }[options.task]
    rows, targets = batch * (prompt + learned * new), batch * learned * new

    def decode_token() -> None:
        forward(decoded * batch, decoded * batch)

    if cuda and decoded:
        with torch.no_grad():
            decode_token()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                decode_token()
        decode_token = graph.replay

    def decode() -> None:
        forward(roles * batch * prompt, roles * batch)
        for _ in range(new - 1):
            decode_token()
        if cuda:
            torch.cuda.synchronize()

    def train() -> None:
        for _ in range(forwards):
            forward(rows, targets)
        for _ in range(backwards):
            backward(rows, targets)
        for _ in range(value_forwards):
            forward(rows, 0)
        for _ in range(value_backwards):
            backward(rows, 0)

    turns = Turns(options.clock)
    parts = SimpleNamespace(decode=decode)
    turns.watch_sampling(parts, "decode")
    turns.begin()
    with torch.no_grad():
        for _ in range(options.steps):
            if decoded:
                parts.decode()
            train()
            turns.pass_on()
    report([])


WORKERS: dict[str, Callable[[argparse.Namespace], None]] = {
    "ours": run_ours,
    "server": run_server,
    "trl": run_trl,
    "floor": run_floor,
}


def trl_python(options: argparse.Namespace) -> Path:
    """The interpreter of TRL's environment for the task."""
    interpreter: Path = options.trl / TRL_VERSIONS[options.task] / "bin" / "python"
    return interpreter


class Process:
    """One side in a process of its own, which works only when it is its turn."""

    def __init__(self, side: str, options: argparse.Namespace) -> None:
        self.side = side
        python = trl_python(options) if side == "trl" else sys.executable
        command = [str(python), __file__, "--worker", side]
        for name in ("task", "model", "data", "prompt", "new", "batch", "steps", "dtype", "clock"):
            command += [f"--{name}", str(getattr(options, name))]
        command += [f"--ours={setting}" for setting in options.ours]
        command += ["--uncached"] * options.uncached
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._said: list[str] = []
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )

    def step(self) -> dict[str, float]:
        """Seconds of the next step, by phase."""
        self._go()
        seconds: dict[str, float] = self._read("STEP ")
        return seconds | {"whole": sum(seconds.values())}

    def finish(self) -> dict[str, Any]:
        """Peak memory and losses, once all steps are done."""
        self._go()
        result = self._read("RESULT ")
        self._process.communicate()
        if self._process.returncode:
            raise self._failure()
        return result

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _go(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what became of it is found out by reading
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def _read(self, mark: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(mark):
                found: dict[str, Any] = json.loads(line.removeprefix(mark))
                return found
            self._said.append(line)
        self._process.wait()
        raise self._failure()

    def _failure(self) -> SystemExit:
        self._errors.seek(0)
        return SystemExit(f"{self.side} failed:\n{''.join(self._said)[-2000:]}\n{self._errors.read()[-4000:]}")


Seconds = dict[str, float]
"""Of one step: whole, sampling and training."""


@dataclass
class Measured:
    """The counted steps of each side, and its peak memory."""

    steps: dict[str, list[Seconds]]
    gib: dict[str, float]

    def whole(self, side: str) -> float:
        """The median of the side's steps, in seconds."""
        return statistics.median(seconds["whole"] for seconds in self.steps[side])

    def over(self, above: str, below: str, phase: str = "whole") -> str:
        """The ratio of two sides' steps, or a dash where one of them did not run or has no such phase."""
        if not {above, below} <= self.steps.keys() or not all(seconds[phase] for seconds in self.steps[below]):
            return "-"
        return ratio(self.steps[above], self.steps[below], phase)


def compare(options: argparse.Namespace) -> None:
    """Measure each precision and length, and print a table where there are several."""
    found: dict[tuple[str, int], Measured] = {}
    for dtype in ["float32", "bfloat16"] if options.dtype == "both" else [options.dtype]:
        for new in options.lengths or [options.new]:
            one = copy.copy(options)
            one.dtype, one.new = dtype, new
            found[dtype, new] = measure(one)
            summarize(one, found[dtype, new])
    if len(found) > 1:
        print("\n| dtype | tokens | ours, s | trl / ours | whole / floor | sampling / floor | training / floor | GiB |")
        print("|---|---|---|---|---|---|---|---|")
        for (dtype, new), measured in found.items():
            ratios = [measured.over("trl", "ours")]
            ratios += [measured.over("ours", "floor", phase) for phase in ("whole", "sampling", "training")]
            gib = " of ".join(f"{measured.gib[side]:.2f}" for side in ("ours", "trl") if side in measured.gib)
            ours = f"{measured.whole('ours'):.2f}" if "ours" in measured.steps else "-"
            print(f"| {dtype} | {new} | {ours} | {' | '.join(ratios)} | {gib or '-'} |")
    for dtype in dict.fromkeys(dtype for dtype, _ in found):
        of_length = {new: measured for (kind, new), measured in found.items() if kind == dtype}
        shortest, longest = min(of_length), max(of_length)
        for side in of_length[shortest].steps if longest > shortest else ():
            growth = math.log(of_length[longest].whole(side) / of_length[shortest].whole(side))
            power = growth / math.log(longest / shortest)
            print(f"{dtype}, {side}: from {shortest} to {longest} tokens, seconds grow as length^{power:.2f}")


def measure(options: argparse.Namespace) -> Measured:
    """Run all sides in turns, in one precision and at one length."""
    from alignrun.launch.compose import compose
    from alignrun.models.sources import locate

    sides = [side for side in WORKERS if side in options.sides and (side != "trl" or options.trl)]
    measured = Measured({side: [] for side in sides}, dict.fromkeys(sides, 0.0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.random:
            options.model = write_random_model(folder, options.model, options.dtype)
        else:
            options.model = write_model(folder, Path(locate(compose([f"model={options.model}"]).model)))
        options.data = write_data(folder, options.model, options)
        for number in range(options.rounds):
            with running(sides, options) as processes:
                for step in range(options.steps):
                    for process in processes:
                        seconds = process.step()
                        counted = "" if step else ", not counted"
                        print(
                            f"round {number + 1}, step {step + 1}  {process.side:6s} {seconds['whole']:7.2f} s, "
                            f"sampling {seconds['sampling']:.2f} s{counted}",
                            flush=True,
                        )
                        if step:
                            measured.steps[process.side].append(seconds)
                for process in processes:
                    result, side = process.finish(), process.side
                    measured.gib[side] = max(measured.gib[side], result["gib"])
                    losses = ", ".join(f"{loss:.4f}" for loss in result["losses"])
                    print(f"round {number + 1}  {side:6s} {result['gib']:.2f} GiB  losses {losses}", flush=True)
    return measured


@contextmanager
def running(sides: list[str], options: argparse.Namespace) -> Iterator[list[Process]]:
    """One process of each side; what is left of them ends with the context."""
    processes: list[Process] = []
    try:
        for side in sides:
            processes.append(Process(side, options))
        yield processes
    finally:
        for process in processes:
            process.stop()


def summarize(options: argparse.Namespace, measured: Measured) -> None:
    """Medians and ratios of one precision and length."""
    steps, gib = measured.steps, measured.gib
    clock = "processor" if options.clock == "cpu" else "wall"
    print(
        f"\n{options.task}, {options.dtype}, prompts of {options.prompt} tokens, {options.new} new, {options.batch} a "
        f"step, {clock} time"
    )
    for side in steps:
        whole = [seconds["whole"] for seconds in steps[side]]
        share = sum(seconds["sampling"] for seconds in steps[side]) / sum(whole)
        print(
            f"{side:6s} {measured.whole(side):7.2f} s a step ({min(whole):.2f} to {max(whole):.2f}), "
            f"{share:.0%} of it sampling, {gib[side]:.2f} GiB"
        )
    if {"ours", "trl"} <= steps.keys():
        print(f"trl / ours: {measured.over('trl', 'ours')}")
        print(f"memory, ours / trl: {gib['ours'] / gib['trl']:.2f}")
    if {"ours", "server"} <= steps.keys():
        print(f"sampling, path to the server / native engine: {measured.over('server', 'ours', 'sampling')}")
    for phase in ("whole", "sampling", "training"):
        if (found := measured.over("ours", "floor", phase)) != "-":
            print(f"{phase}, ours / floor: {found}")


def ratio(above: list[Seconds], below: list[Seconds], phase: str) -> str:
    """The median over the turns, and the spread."""
    ratios = [one[phase] / other[phase] for one, other in zip(above, below, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def lengths(text: str) -> list[int]:
    """Numbers of tokens, such as 32,128,512."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", type=Path, metavar="ENV", help="make environments with TRL, and stop")
    parser.add_argument("--trl", type=Path, metavar="ENV", help="the environments with TRL; without, ours alone")
    parser.add_argument("--task", choices=TASKS, default="nash_md")
    parser.add_argument("--sides", nargs="+", choices=tuple(WORKERS), default=["ours", "trl", "floor"])
    parser.add_argument("--prompt", type=int, default=37, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of a completion")
    parser.add_argument("--lengths", type=lengths, metavar="N,N,…", help="several lengths instead of --new")
    parser.add_argument("--batch", type=int, default=8, help="prompts in a step")
    parser.add_argument("--steps", type=int, default=3, help="steps of one process, the first of which is not counted")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "both"), default="float32")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: seconds that processors worked")
    parser.add_argument("--worker", choices=tuple(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--model", default="smollm2-135m", help="the base, as in model=…")
    parser.add_argument("--random", action="store_true", help="random weights instead of the model's own")
    parser.add_argument("--ours", action="append", default=[], metavar="KEY=VALUE", help="a setting of our side alone")
    parser.add_argument("--uncached", action="store_true", help="TRL's mixture without the cache that spoils it")
    parser.add_argument("--data", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps must be at least 2: the first is not counted")
    if "server" in options.sides and options.task == "dpo":
        parser.error("--task dpo samples nothing: leave --sides server out")
    if options.setup:
        setup(options.setup)
    elif options.trl and not trl_python(options).is_file():
        parser.error(f"--trl {options.trl}: no TRL {TRL_VERSIONS[options.task]} there: --setup {options.trl} makes it")
    elif options.worker:
        WORKERS[options.worker](options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
