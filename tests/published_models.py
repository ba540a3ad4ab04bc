"""Random models in the formats of published ones, as folders that `from_pretrained` reads."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    Gemma2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from alignrun.models.tiny import CHATML

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
DECODER = SIZES | {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}
ENCODER = SIZES | {"max_position_embeddings": 512}
CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, DECODER),
    "qwen3": (Qwen3Config, DECODER),
    "gemma2": (Gemma2Config, DECODER),
    "deberta": (
        DebertaV2Config,
        ENCODER
        | {
            "relative_attention": True,
            "position_biased_input": False,
            "pos_att_type": ["p2c", "c2p"],
            "type_vocab_size": 0,
        },
    ),
    "bert": (BertConfig, ENCODER),
}
MARKS = [
    "<bos>",
    "<|im_end|>",
    "<|im_start|>",
    "<pad>",
    "[CLS]",
    "[SEP]",
    "<|source|>",
    "<|candidate1|>",
    "<|candidate2|>",
]


def byte_tokens(kind: str) -> PreTrainedTokenizerFast:
    """A byte tokenizer with the habits of a family: BOS for Llama and Gemma, a chat template or pairs."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(MARKS)
    ids = {mark: tokenizer.token_to_id(mark) for mark in MARKS}
    if kind in ("llama", "gemma2"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", ids["<bos>"])]
        )
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<|im_end|>")
        fast.chat_template = "{{ bos_token }}" + CHATML
    elif kind == "qwen3":
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<pad>")
        fast.chat_template = CHATML
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(mark, ids[mark]) for mark in ("[CLS]", "[SEP]")],
        )
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            cls_token="[CLS]",
            sep_token="[SEP]",
            pad_token="<pad>",
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        )
    return fast


def random_model(
    kind: str, folder: Path, *, auto: Any = AutoModelForSequenceClassification, std: float = 0.3, **changes: Any
) -> Path:
    """A model of a family with its tokenizer, saved; `changes` are to its configuration."""
    config_class, values = CONFIGS[kind]
    tokenizer = byte_tokens(kind)
    config = config_class(
        vocab_size=len(tokenizer),
        **{"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": None, **values, **changes},
    )
    torch.manual_seed(0)
    model = auto.from_config(config) if hasattr(auto, "from_config") else auto(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=std)  # such that no score is near another
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_causal(kind: str, folder: Path, **changes: Any) -> Path:
    """The same as a language model."""
    return random_model(kind, folder, auto=AutoModelForCausalLM, **changes)
