"""The model under test: the published architecture of an 8B model with random weights made on the device.

On a CPU, and with `--small`, the same with a few small layers.
"""

import contextlib
import gc
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from alignrun.config import Config
from alignrun.launch.build import load_trained, make_encoding
from alignrun.launch.compose import compose
from alignrun.models import backbone
from alignrun.models.device import release_memory
from alignrun.models.policy import Policy
from alignrun.models.sources import planned_architecture
from alignrun.models.tiny import byte_tokenizer
from alignrun.types import Completions, PromptBatch


@dataclass(frozen=True)
class Scale:
    """How large the checks are."""

    overrides: tuple[str, ...] = ()
    """Of the model."""
    rows: tuple[int, ...] = (768, 96)
    """Rows of a decoding step, two thirds of them the policy's: a step of 32 prompts, and one of 4."""
    prompts: tuple[int, ...] = (32, 4)
    prompt_tokens: int = 256
    new_tokens: int = 64
    """Of a decoding loop."""
    headline: tuple[str, ...] = ()
    """Settings of the headline command that differ."""


_SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 2}
_SMALL = {**_SIZES, "num_hidden_layers": 2, "vocab_size": 320}
SMALL = Scale(
    (*(f"model.architecture.{name}={size}" for name, size in _SMALL.items()), "model.dtype=float32"),
    rows=(12, 6),
    prompts=(4, 2),
    prompt_tokens=192,
    new_tokens=8,
    headline=("train.batch_size=2", "generation.max_new_tokens=8", "algo.samples_per_prompt=2"),
)


class Subject:
    """Builds the policy once for all sections that share it."""

    def __init__(self, device: torch.device, scale: Scale) -> None:
        self.device, self.scale = device, scale
        self._configs: dict[tuple[str, ...], Config] = {}
        self._files = tempfile.TemporaryDirectory(prefix="alignrun-gpu-check-")
        self.folder = Path(self._files.name)
        """For files of the checks: a tokenizer and an architecture, but no weights."""
        byte_tokenizer().save_pretrained(self.folder / "model")
        planned_architecture(self.config().model).save_pretrained(self.folder / "model")

    def close(self) -> None:
        """Free the model and delete the files."""
        self.release()
        self._files.cleanup()

    @property
    def large(self) -> bool:
        """Whether the model has its published size."""
        return not self.scale.overrides

    def settings(self, *overrides: str) -> list[str]:
        """The command line of a run with this model: its recipe with prompts of one length and a free judge."""
        scale = self.scale
        return [
            "algo=nash_md",
            "model=llama-8b",
            f"model.path={self.folder / 'model'}",
            "model.chat_template=null",
            f"model.device={self.device}",
            *scale.overrides,
            "data=inline",
            f"data.prompts={self.texts()}",
            f"data.max_prompt_tokens={scale.prompt_tokens}",
            "data.eval_size=2",
            "preference=letters",
            "tracker=none",
            *overrides,
        ]

    def config(self, *overrides: str) -> Config:
        """The configuration of such a run."""
        if overrides not in self._configs:
            self._configs[overrides] = compose(self.settings(*overrides))
        return self._configs[overrides]

    def texts(self) -> list[str]:
        """Prompts that fill their length: one token a byte, and those of the chat template."""
        tokenizer = byte_tokenizer()
        empty = [{"role": "user", "content": ""}]
        frame = len(tokenizer.apply_chat_template(empty, add_generation_prompt=True)["input_ids"])
        return [
            f"case {number} ".ljust(self.scale.prompt_tokens - frame, "x")
            for number in range(max(self.scale.prompts) + 8)
        ]

    @cached_property
    def policy(self) -> Policy:
        """The policy, its adapter moved away from zero so that it differs from the reference."""
        return self.load()

    def load(self, *overrides: str) -> Policy:
        """Another policy, of a run with these settings."""
        config = self.config(*overrides)
        with random_weights():
            policy = load_trained(config, make_encoding(config).tokenizer)
        assert isinstance(policy, Policy)
        generator = torch.Generator(self.device).manual_seed(7)
        with torch.no_grad():
            for weight in policy.trainable().values():
                weight += 0.02 * torch.randn(weight.shape, generator=generator, device=self.device)
        return policy

    def release(self) -> None:
        """Free the shared policy."""
        vars(self).pop("policy", None)
        gc.collect()
        release_memory()

    def prompts(self, count: int, *, padded: bool = False) -> PromptBatch:
        """Random prompts of full length; with `padded`, the first lacks a token."""
        ids = self._ids(count, self.scale.prompt_tokens)
        mask = torch.ones_like(ids)
        if padded:
            mask[0, 0] = 0
        return PromptBatch(("",) * count, ids, mask, padded=padded)

    def completions(self, count: int, tokens: int) -> Completions:
        """Random completions of full length."""
        ids = self._ids(count, tokens)
        return Completions(ids, torch.ones_like(ids, dtype=torch.bool))

    def _ids(self, rows: int, tokens: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(rows * 1000 + tokens)
        return torch.randint(0, 250, (rows, tokens), generator=generator, device=self.device)


@contextlib.contextmanager
def random_weights() -> Iterator[None]:
    """Within the context, models are built on their device with random weights instead of being read."""

    def build(config: Any, tokenizer: Any, dtype: torch.dtype, device: torch.device, *_: Any) -> PreTrainedModel:
        architecture = planned_architecture(config)
        for token in ("eos", "pad", "bos"):
            setattr(architecture, f"{token}_token_id", getattr(tokenizer, f"{token}_token_id"))
        with torch.device(device):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                architecture, dtype=dtype, attn_implementation=config.attention.value
            )
        return model.eval()

    with mock.patch.object(backbone, "load_model", build):
        yield
