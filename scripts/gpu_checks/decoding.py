"""Decoding of the random model at two batch sizes, with and without CUDA graphs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignrun.models.adapters import POLICY
from alignrun.models.decoding.decoder import CachedDecoder
from gpu_checks.measure import copy_bandwidth, kernel_shares, seconds
from gpu_checks.report import Section
from gpu_checks.subject import Subject

TOLERANCE = 5e-2
"""Of logits, relative to the largest of them: half precision in another order."""
ESTIMATES = {768: "7,500 without and 20,000 at the roofline of one H200 (estimates)"}
WARM = 3
"""Steps before the first that is timed: one that runs eagerly, one that is recorded, one that is replayed."""


@dataclass
class Loop:
    """A decoder after its prompts, and the tokens that it is given."""

    decoder: CachedDecoder
    tokens: Tensor
    """[steps, R]"""
    done: int = 0

    def step(self) -> Tensor:
        """The next step's logits [R, V]."""
        logits = self.decoder.step(self.tokens[self.done])
        self.done += 1
        return logits


@torch.no_grad()
def run(subject: Subject, section: Section, left: float) -> None:
    """Logits, bytes and tokens per second, and where the time goes."""
    bandwidth = copy_bandwidth(subject.device)
    section.note("GB/s of a copy on this device", bandwidth)
    for rows, prompts in zip(subject.scale.rows, subject.scale.prompts, strict=True):
        _at(subject, section, rows, prompts, bandwidth)


def _at(subject: Subject, section: Section, rows: int, prompts: int, bandwidth: float) -> None:
    logits: dict[bool, list[Tensor]] = {}
    spent: dict[bool, float] = {}
    timed = max(1, subject.scale.new_tokens - WARM - 3)
    for graphs in (False, True):  # one after another: two caches would not fit
        loop = _loop(subject, rows, prompts, graphs)
        logits[graphs] = [loop.step().float() for _ in range(WARM)]
        name = f"{rows} rows, graphs {'on' if graphs else 'off'}"
        spent[graphs] = seconds(loop.step, subject.device, timed)
        moved = _bytes_read(subject, rows, subject.scale.prompt_tokens + WARM + timed // 2)
        section.note(f"{name}: row-tokens/s", rows / spent[graphs], ESTIMATES.get(rows, ""))
        section.note(f"{name}: GB/s of weights and cache", moved / spent[graphs] / 1e9, f"{bandwidth:.0f} at most")
        section.note(f"{name}: per cent of kernel time", kernel_shares(loop.step, subject.device))
        del loop
    off = max(float((one - other).abs().max() / one.abs().max()) for one, other in zip(*logits.values(), strict=True))
    section.at_most(f"{rows} rows: largest difference of logits, graphs against none", off, TOLERANCE)
    if subject.device.type == "cuda":
        faster = spent[False] / spent[True]
        section.check(f"{rows} rows: speed with graphs over that without", faster, "at least 0.97", faster >= 0.97)


def _loop(subject: Subject, rows: int, prompts: int, graphs: bool) -> Loop:
    """Two thirds of the rows are the policy's: samples, and the policy's side of mixtures."""
    model, new = subject.policy.model, subject.scale.new_tokens
    decoder = CachedDecoder(model, subject.prompts(prompts), [POLICY, None], replay=new if graphs else None)
    decoder.prefill()
    ours = 2 * rows // 3
    decoder.select([row % prompts for row in range(ours)] + [prompts + row % prompts for row in range(rows - ours)])
    generator = torch.Generator(subject.device).manual_seed(rows)
    tokens = torch.randint(0, 250, (new, rows), generator=generator, device=subject.device)
    return Loop(decoder, tokens)


def _bytes_read(subject: Subject, rows: int, tokens: int) -> int:
    """What a step must read: every weight except the embedding's table, and the keys and values so far."""
    model = subject.policy.model
    text, width = model.config.get_text_config(), model.dtype.itemsize
    table = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is table
    weights = sum(weight.nbytes for weight in model.parameters()) - (0 if tied else table.nbytes)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(weights + 2 * rows * tokens * text.num_key_value_heads * size * text.num_hidden_layers * width)
