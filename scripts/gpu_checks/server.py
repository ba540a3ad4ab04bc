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
from typing import cast

import torch
from torch import Tensor

from alignrun.algorithms.base import Tools
from alignrun.algorithms.common.batches import rows
from alignrun.algorithms.common.mismatch import KL, log_ratio, mismatch_metrics
from alignrun.algorithms.common.rollout import Rollouts
from alignrun.algorithms.common.server_rollouts import ServerRollouts
from alignrun.config import Config, Engine, GenerationConfig
from alignrun.generation.streams import Mixture, Stream
from alignrun.models.policy import Policy
from alignrun.preferences.base import Preference
from alignrun.types import Completions, PromptBatch, Role
from gpu_checks.measure import synchronize
from gpu_checks.report import Section, Skip
from gpu_checks.subject import Scale, Subject

SIZES = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 16}
SIZES |= {"num_key_value_heads": 4, "vocab_size": 1024}
PROMPTS, NEW = 200, 64
BETA = 0.125
"""The weight of the reference in the mixture."""
MOST_KL = 0.1
"""KL(server‖policy) in nats per token, as `generation.server_max_kl` has it by default."""
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
            compare(section, policy, small.config(), url, small.prompts(PROMPTS), NEW)
    finally:
        small.close()


def compare(section: Section, policy: Policy, config: Config, url: str, prompts: PromptBatch, new: int) -> None:
    """Mismatch of the server with the trainer, and what both engines draw from the policy and from a mixture.

    E_{y~q} log π(y | x) is the same for both engines where what they draw from is, and a token that one of them draws
    with another temperature, truncation or adapter moves it.
    """
    generation = replace(config.generation, engine=Engine.server, server_url=url, max_new_tokens=new, batch_size=None)
    generation = replace(generation, server_max_kl=None)  # a mismatch is a result and not the end
    tools = Tools(policy, cast(Preference, None), replace(config, generation=generation))  # nothing is judged
    mixture = Mixture(Role.policy, Role.reference, BETA)
    streams = [Stream(Role.policy, samples=1), Stream(mixture, samples=1)]
    found: dict[str, list[tuple[float, float]]] = {}
    for name, rollouts in (("server", ServerRollouts(tools)), ("native", Rollouts(tools))):
        synchronize(policy.device)
        start = time.perf_counter()
        drawn = [_alone(samples) for samples in rollouts.sample(prompts, streams, step=1)]
        spent = time.perf_counter() - start
        section.note(f"{name}: tokens/s of policy and mixture", sum(int(one.mask.sum()) for one in drawn) / spent)
        found[name] = [_mean_log_prob(policy, prompts, one, generation.temperature) for one in drawn]
        if isinstance(rollouts, ServerRollouts):
            _mismatch(section, policy, prompts, drawn[0], generation)
            section.note("drafts", rollouts.drain())
    for what, *means in zip(("policy", "mixture"), found["server"], found["native"], strict=True):
        (theirs, one), (ours, other) = means
        section.note(f"{what}: mean log-probability of a token, server and native", f"{theirs:.4f}, {ours:.4f}")
        apart = abs(theirs - ours) / (one**2 + other**2) ** 0.5
        section.at_most(f"{what}: distance of the means in standard errors", apart, SIGMAS)


def _alone(samples: Completions) -> Completions:
    """[B, T] the only sample of [B, 1, T]."""
    drawn_with = None if samples.drawn_with is None else samples.drawn_with[:, 0]
    return Completions(samples.tokens[:, 0], samples.mask[:, 0], drawn_with)


@torch.no_grad()
def _mismatch(
    section: Section, policy: Policy, prompts: PromptBatch, drawn: Completions, generation: GenerationConfig
) -> None:
    log_probs = _log_probs(policy, prompts, drawn, generation.temperature)
    ratio = log_ratio(drawn, log_probs)
    assert ratio is not None
    kl = float(mismatch_metrics(drawn, log_probs)[KL]) / len(log_probs)
    section.at_most("KL(server‖policy) in nats per token", kl, MOST_KL)
    section.note("largest ratio of policy and server at a token", float(ratio.abs().max().exp()))


def _mean_log_prob(policy: Policy, prompts: PromptBatch, drawn: Completions, temperature: float) -> tuple[float, float]:
    """The mean over completions of log π per token, and its standard error."""
    each = _log_probs(policy, prompts, drawn, temperature).sum(1).double() / drawn.mask.sum(1)
    return float(each.mean()), float(each.std() / len(each) ** 0.5)


@torch.no_grad()
def _log_probs(policy: Policy, prompts: PromptBatch, drawn: Completions, temperature: float) -> Tensor:
    """[B, T] log π of every token, 20 prompts at a time."""
    pieces = []
    for start in range(0, len(prompts), 20):
        part, own = (rows(batch, slice(start, start + 20)) for batch in (prompts, drawn))
        pieces.append(policy.log_probs(Role.policy, part, own, temperature))
    return torch.cat(pieces)


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
