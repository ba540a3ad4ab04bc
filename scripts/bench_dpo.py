"""DPO's step time and peak memory against TRL: same model, pairs, LoRA, dtype and threads, in one run.

    python scripts/bench_dpo.py --setup ENV       # once: TRL in an environment of its own
    python scripts/bench_dpo.py --trl ENV [--prompt 448 --completion 64 --batch 4 --dtype float32 --rounds 3]

Both sides run as processes of their own that take turns, so that a slow minute hits both. A step is everything from
one optimiser step to the next; the first of each process is not counted. Peak memory is the largest resident size of
the process. Ours is `alignrun algo=dpo` itself, its reference scored in every step, as TRL's is.
"""

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRL_VERSION = "1.16.0"
RANK, ALPHA, TAU, RATE = 16, 32, 0.1, 1e-5
WORDS = "the of and to in is that for it as was with be by on not he his but at are this have from or had an they"


def setup(environment: Path) -> None:
    constraints = Path(__file__).parents[1] / "constraints.txt"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "-c", constraints, "torch", "transformers", "peft", "accelerate", "datasets"], check=True)
    subprocess.run([*pip, "-c", constraints, f"trl=={TRL_VERSION}"], check=True)


def write_pairs(folder: Path, model: Path, prompt: int, completion: int, count: int) -> Path:
    """Pairs of exactly these lengths: common words are one token each."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    generator = random.Random(0)

    def text(tokens: int, opening: str) -> str:
        words = [opening, *generator.choices(WORDS.split(), k=tokens)]
        while len(tokenizer(" ".join(words))["input_ids"]) > tokens:
            words.pop()
        return " ".join(words)

    path = folder / "pairs.jsonl"
    with path.open("w") as file:
        for index in range(count):
            row = {"prompt": text(prompt, f"Case {index}"), "chosen": text(completion, "Yes"), "rejected": "No"}
            row["rejected"] = text(completion, "No")
            file.write(json.dumps(row) + "\n")
    return path


def run_ours(options: argparse.Namespace) -> None:
    from alignrun.cli import main as alignrun

    run = Path(tempfile.mkdtemp()) / "run"
    code = alignrun(
        [
            "algo=dpo",
            "model=path",
            f"model.path={options.model}",
            f"model.dtype={options.dtype}",
            f"model.gradient_checkpointing={str(options.checkpointing).lower()}",
            "data=jsonl",
            f"data.path={options.pairs}",
            f"data.eval_path={options.pairs}",
            "data.eval_size=1",
            "preference=none",
            "tracker=none",
            f"adapter.rank={RANK}",
            f"adapter.alpha={ALPHA}",
            f"algo.kl_tau={TAU}",
            f"optim.learning_rate={RATE}",
            "optim.warmup_steps=0",
            f"train.steps={options.steps}",
            f"train.batch_size={options.batch}",
            "train.checkpoint_every=0",
            "generation.max_new_tokens=1",
            f"run.dir={run}",
        ]
    )
    assert code == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    report(seconds[1:], [row["loss"] for row in rows if "loss" in row])


def run_trl(options: argparse.Namespace) -> None:
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_step_end(self, *_: object, **__: object) -> None:
            self.marks.append(time.perf_counter())

    data = load_dataset("json", data_files=options.pairs, split="train", cache_dir=tempfile.mkdtemp())
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    trainer = DPOTrainer(
        model,
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=options.batch,
            max_steps=options.steps,
            learning_rate=RATE,
            beta=TAU,
            max_length=None,
            gradient_checkpointing=options.checkpointing,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(options.model),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock := Clock()],
    )
    trainer.train()
    seconds = [after - before for before, after in zip(clock.marks, clock.marks[1:], strict=False)]
    report(seconds, [row["loss"] for row in trainer.state.log_history if "loss" in row])


def report(seconds: list[float], losses: list[float]) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("RESULT " + json.dumps({"seconds": seconds, "gib": peak, "losses": losses}), flush=True)


def worker(python: Path | str, side: str, options: argparse.Namespace, pairs: Path) -> dict:
    command = [str(python), __file__, "--worker", side, "--pairs", str(pairs), "--model", str(options.model)]
    command += ["--batch", str(options.batch), "--steps", str(options.steps), "--dtype", options.dtype]
    command += ["--checkpointing"] if options.checkpointing else []
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not found:
        sys.exit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(found[-1].removeprefix("RESULT "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", type=Path, metavar="ENV", help="make an environment with TRL, and stop")
    parser.add_argument("--trl", type=Path, metavar="ENV", help="the environment with TRL")
    parser.add_argument("--model", help="a model folder; by default SmolLM2-135M-Instruct as alignrun keeps it")
    parser.add_argument("--prompt", type=int, default=448, help="tokens of a prompt, the template's not counted")
    parser.add_argument("--completion", type=int, default=64, help="tokens of a completion")
    parser.add_argument("--batch", type=int, default=4, help="pairs in a step")
    parser.add_argument("--steps", type=int, default=4, help="steps of one process, the first of which is not counted")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, on both sides")
    parser.add_argument("--worker", choices=("ours", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--pairs", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.setup:
        setup(options.setup)
    elif options.worker:
        (run_ours if options.worker == "ours" else run_trl)(options)
    elif options.trl:
        compare(options)
    else:
        parser.error("--trl ENV is missing: make one with --setup ENV")


def compare(options: argparse.Namespace) -> None:
    if not options.model:
        from alignrun.compose import compose
        from alignrun.models.sources import locate

        options.model = locate(compose(["model=smollm2-135m"]).model)
    folder = Path(tempfile.mkdtemp())
    pairs = write_pairs(folder, options.model, options.prompt, options.completion, options.batch * options.steps)
    sides = {"ours": sys.executable, "trl": options.trl / "bin" / "python"}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    memory: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side, python in sides.items():
            result = worker(python, side, options, pairs)
            seconds[side] += result["seconds"]
            memory[side].append(result["gib"])
            print(
                f"round {number + 1} {side:5s} {statistics.median(result['seconds']):7.2f} s  {result['gib']:.2f} GiB"
            )
            print(f"        losses {', '.join(f'{loss:.4f}' for loss in result['losses'])}", flush=True)
    for side in sides:
        values = seconds[side]
        low, high = min(values), max(values)
        print(
            f"{side:5s} {statistics.median(values):.2f} s a step ({low:.2f} to {high:.2f}), {max(memory[side]):.2f} GiB"
        )
    speed = statistics.median(seconds["trl"]) / statistics.median(seconds["ours"])
    print(f"throughput: {speed:.2f} times TRL {TRL_VERSION}'s; peak memory: "
          f"{max(memory['ours']) / max(memory['trl']):.2f} of it")  # fmt: skip
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
