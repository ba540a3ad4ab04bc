"""A published model in its original format, applied to texts in batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from alignrun import distributed
from alignrun.config import LongText, ModelConfig, PublishedConfig, Quantize
from alignrun.errors import InputError, RunError
from alignrun.models.backbone import Backbone
from alignrun.models.device import find_device, find_dtype
from alignrun.models.quantization import bits_and_bytes
from alignrun.models.sharing import load_once
from alignrun.models.sources import context_length, hub_options, loading
from alignrun.models.weights import whole_weight

KEY = "preference"


@dataclass(frozen=True, slots=True)
class TokenRow:
    """The model's input for one question."""

    ids: tuple[int, ...]
    types: tuple[int, ...] = ()
    """Token types, if the model uses them."""


Forward = Callable[[dict[str, Tensor]], Tensor]
"""[N, width] from padded `input_ids` [N, S], their `attention_mask` and, if rows have them, `token_type_ids`."""


class Published:
    """The model and its tokenizer."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: PublishedConfig) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self._asked, self._skipped = 0, 0
        said = context_length(model.config)
        relative = getattr(model.config, "position_biased_input", True) is False  # DeBERTa supports any distance
        self.context = int(min(tokenizer.model_max_length, 1 << 20 if relative else said))

    @classmethod
    def load(cls, config: PublishedConfig, kind: Any, backbone: Backbone | None = None) -> "Published":
        """Load the model as `kind`, an Auto class or a model class, frozen, on its device or else on the backbone's.

        Raises:
            InputError: it cannot be found or read, has no head of this kind, or cannot be loaded as configured.
        """
        check_path(config)
        place = str(Path(str(config.path)).expanduser()) if _is_local(config) else str(config.path)
        if config.device == "auto" and backbone is not None:
            device = backbone.device
        else:
            device = find_device(config.device, f"{KEY}.device")
        dtype = find_dtype(config.dtype, device)
        source = source_of(config)
        options: dict[str, Any] = {"dtype": dtype}
        if config.attention is not None:
            options["attn_implementation"] = config.attention.value
        if config.quantize is not Quantize.none:
            options |= {"quantization_config": _quantization(config, device, dtype), "device_map": {"": device}}
        with loading(source, "tokenizer", KEY):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, **hub_options(source))
            tokenizer("text")

        def load_model() -> tuple[Any, Any]:
            with loading(source, "weights", KEY):
                loaded: tuple[Any, Any] = kind.from_pretrained(
                    place, use_safetensors=True, output_loading_info=True, **options, **hub_options(source)
                )
            return loaded

        held = (config.revision, config.trust_remote_code, dtype, config.attention, config.quantize, device)
        model, found = load_once((kind, place, *held), load_model)
        if missing := sorted(found["missing_keys"]):
            raise InputError(
                f"{KEY}.path={config.path} has no weights for {', '.join(missing[:3])}: it was not trained for "
                f"preference={config.name}"
            )
        if _is_local(config) and config.quantize is Quantize.none and (unfit := whole_weight(model, Path(place))):
            raise InputError(f"{KEY}.path={config.path}: {unfit}: choose another model")
        if config.chat_template is not None:
            tokenizer.chat_template = config.chat_template
        model.config.get_text_config().use_cache = False  # a single pass needs no cache
        if config.quantize is Quantize.none:
            model.to(device)
        return cls(model.eval().requires_grad_(False), tokenizer, config)

    @torch.no_grad()
    def read(
        self, rows: Sequence[TokenRow | None], forward: Forward, pad: Callable[[Sequence[TokenRow]], int], width: int
    ) -> Tensor:
        """[N, width] float32 on the CPU, `forward` of each row; NaN for None. Equal rows are read once.

        Rows of similar length are read together, `batch_tokens` at once, and processes share the batches.
        """
        places = {row: place for place, row in enumerate(dict.fromkeys(row for row in rows if row is not None))}
        batches = list(self._batches(sorted(places, key=lambda row: (len(row.ids), row.ids))))
        results = torch.zeros(len(places) + 1, width, dtype=torch.float64)
        with distributed.raise_together():
            for batch, counts in distributed.round_robin(batches):
                scores = forward(self._padded(batch, pad(batch))).double().cpu()
                if not bool(scores.isfinite().all()):
                    raise RunError(
                        f"{KEY}={self.config.name} gave a score that is not finite: set {KEY}.dtype=float32, or choose "
                        "another model if its weights are damaged"
                    )
                if counts:
                    results[[places[row] for row in batch]] = scores
        results = distributed.all_reduce_sum(results)
        results[-1] = torch.nan
        return results[[len(places) if row is None else places[row] for row in rows]].float()

    def fitting(self, row: TokenRow) -> TokenRow | None:
        """The row, or None if it is too long and skipped. Raises RunError if it is too long and not skipped."""
        if len(row.ids) <= self.context:
            return row
        if self.config.too_long is LongText.error:
            raise RunError(
                f"{KEY}={self.config.name} reads {self.context} tokens, and a prompt with what it judges has "
                f"{len(row.ids)}: lower generation.max_new_tokens or data.max_prompt_tokens, or set "
                f"{KEY}.too_long=skip"
            )
        return None

    def tally(self, questions: Sequence[TokenRow | None]) -> None:
        """Count questions for `counts`; None is one that was too long."""
        self._asked += len(questions)
        self._skipped += questions.count(None)

    def counts(self) -> dict[str, float]:
        """The number of questions so far, and of those that were too long."""
        return {f"{self.config.name}/asked": self._asked, f"{self.config.name}/too_long": self._skipped}

    def _batches(self, rows: Sequence[TokenRow]) -> Iterator[list[TokenRow]]:
        batch: list[TokenRow] = []
        for row in rows:
            if batch and (len(batch) + 1) * len(row.ids) > self.config.batch_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _padded(self, rows: Sequence[TokenRow], pad_id: int) -> dict[str, Tensor]:
        """Pads on the right if positions count from the first token; on the left if the model reads the last."""
        left = getattr(self.model.config, "summary_type", None) == "last" and self.tokenizer.padding_side == "left"
        longest = max(len(row.ids) for row in rows)

        def pad(values: Sequence[int], filling: int) -> list[int]:
            extra = [filling] * (longest - len(values))
            return [*extra, *values] if left else [*values, *extra]

        parts = {
            "input_ids": [pad(row.ids, pad_id) for row in rows],
            "attention_mask": [pad([1] * len(row.ids), 0) for row in rows],
        }
        if rows[0].types:
            parts["token_type_ids"] = [pad(row.types, getattr(self.tokenizer, "pad_token_type_id", 0)) for row in rows]
        return {name: torch.tensor(values, device=self.model.device) for name, values in parts.items()}


def check_path(config: PublishedConfig) -> None:
    """Refuse a path that is neither a folder with a model nor a name of the hub. Raises InputError."""
    path = str(config.path)
    looks_local = path.startswith(("/", "./", "../", "~"))
    folder = Path(path).expanduser()
    if looks_local and not folder.is_dir():
        raise InputError(f"{KEY}.path={path} is not a folder: name a folder with config.json, or a hub id")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(f"{KEY}.path={path} has no config.json: name a folder with a model and its tokenizer")


def source_of(config: PublishedConfig) -> ModelConfig:
    """The source of the model, as for a policy."""
    return ModelConfig(
        name=config.name, path=config.path, revision=config.revision, trust_remote_code=config.trust_remote_code
    )


def _is_local(config: PublishedConfig) -> bool:
    return Path(str(config.path)).expanduser().is_dir()


def _quantization(config: PublishedConfig, device: torch.device, dtype: torch.dtype) -> Any:
    setting = f"{KEY}.quantize={config.quantize.value}"
    if device.type != "cuda":
        raise InputError(f"{setting} needs a CUDA GPU, not {device.type}: set it to none")
    return bits_and_bytes(8 if config.quantize is Quantize.int8 else 4, dtype, setting)
