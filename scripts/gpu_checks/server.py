"""vLLM against the native engine: the same policy, from 200 prompts."""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from alignrun.algorithms.common.rollout import sample_streams, sampling_of
from alignrun.algorithms.common.serving import ServedPolicy
from alignrun.config.training import Engine, GenerationConfig
from alignrun.models.policy import Policy
from alignrun.types import Completions, PromptBatch, Role
from gpu_checks.measure import synchronize
from gpu_checks.report import Section, Skip
from gpu_checks.subject import Scale, Subject

SIZES = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 16}
SIZES |= {"num_key_value_heads": 4, "vocab_size": 1024}
PROMPTS, NEW = 200, 64
SIGMAS = 4.0
"""How far two means may be apart, in standard errors of their difference."""


def run(subject: Subject, section: Section, left: float) -> None:
    """Serve a small random model and its adapter, and compare what both engines draw."""
    if importlib.util.find_spec("vllm") is None:
        raise Skip("vLLM is not installed in this environment")
    overrides = tuple(f"model.architecture.{name}={size}" for name, size in SIZES.items())
    subject.release()
    small = Subject(subject.device, Scale(overrides, prompt_tokens=192))
    try:
        policy = small.load()
        base = small.folder / "base"
        save_base(policy, base)
        with served(base, small.folder / "vllm.log", min(left, 240.0)) as url:
            compare(section, policy, url, small.prompts(PROMPTS), NEW)
    finally:
        small.close()


def compare(section: Section, policy: Policy, url: str, prompts: PromptBatch, new: int) -> None:
    """The mean log-probability of what each engine draws, under the trainer's policy.

    E_{y~q} log π(y | x) is the same for both engines where their policies are, and a token that one of them draws with
    another temperature, truncation or adapter moves it.
    """
    sampling = replace(sampling_of(policy, new, 1.0), stop_ids=policy.stop_ids)
    config = GenerationConfig(engine=Engine.server, server_url=url, max_new_tokens=new)
    server = ServedPolicy(policy, config)
    start = time.perf_counter()
    (theirs,) = server.sample(prompts, [1.0], sampling, seed=1)
    section.note("server: tokens/s, the first request included", _speed(theirs, start))
    generator = torch.Generator(policy.device).manual_seed(1)
    synchronize(policy.device)
    start = time.perf_counter()
    (ours,) = sample_streams(policy, prompts, [Role.policy], sampling, generator)
    section.note("native: tokens/s", _speed(ours, start))
    means, errors = zip(*(_mean_log_prob(policy, prompts, drawn) for drawn in (theirs, ours)), strict=True)
    section.note("mean log-probability of a token, server", means[0])
    section.note("mean log-probability of a token, native", means[1])
    apart = abs(means[0] - means[1]) / sum(error**2 for error in errors) ** 0.5
    section.at_most("distance of the means in standard errors", apart, SIGMAS)


def _speed(drawn: Completions, start: float) -> float:
    return int(drawn.mask.sum()) / (time.perf_counter() - start)


@torch.no_grad()
def _mean_log_prob(policy: Policy, prompts: PromptBatch, drawn: Completions) -> tuple[float, float]:
    """The mean over completions of log π per token, and its standard error."""
    on = Completions(drawn.tokens.to(policy.device), drawn.mask.to(policy.device))
    pieces: list[Tensor] = []
    for start in range(0, len(prompts), 20):
        span = slice(start, start + 20)
        part = PromptBatch(prompts.texts[span], prompts.input_ids[span], prompts.attention_mask[span], prompts.padded)
        pieces.append(policy.log_probs(Role.policy, part, Completions(on.tokens[span], on.mask[span])).sum(1))
    each = torch.cat(pieces).double() / on.mask.sum(1)
    return float(each.mean()), float(each.std() / len(each) ** 0.5)


def save_base(policy: Policy, folder: Path) -> None:
    """The base without its adapter, as vLLM loads it."""
    peft = policy.backbone.peft
    assert peft is not None
    weights = {
        name.replace(".base_layer.", "."): weight
        for name, weight in policy.model.state_dict().items()
        if ".lora_" not in name
    }
    policy.model.save_pretrained(folder, state_dict=weights)
    policy.tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def served(base: Path, log: Path, seconds: float) -> Iterator[str]:
    """A vLLM server of this base while the context lasts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(base)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enable-lora", "--max-lora-rank", "16"]
    command += ["--gpu-memory-utilization", "0.3", "--max-model-len", "1024", "--logprobs-mode", "processed_logprobs"]
    environment = os.environ | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "HF_HUB_OFFLINE": "1"}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait(process, url, log, seconds)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, seconds: float) -> None:
    """Until the server answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"vLLM ended with {process.returncode}: {log.read_text('utf-8')[-300:]}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        time.sleep(1)
    raise RuntimeError(f"vLLM did not answer within {seconds:.0f} s")
