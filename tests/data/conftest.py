from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(chat_template: str | None, *, closes_with_eos: bool = False) -> Any:
    """One token a byte; outside a chat template it opens with BOS, as Llama's does."""
    special = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <|im_end|>" if closes_with_eos else "<s> $A", special_tokens=[("<s>", 1), ("<|im_end|>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=chat_template,
    )


@pytest.fixture
def chat_tokenizer() -> Any:
    return byte_tokenizer(CHATML)


@pytest.fixture
def other_eos_tokenizer() -> Any:
    """A chat tokenizer whose turns end with a token other than its EOS."""
    tokenizer = byte_tokenizer(CHATML)
    tokenizer.eos_token = "<s>"
    return tokenizer


@pytest.fixture
def plain_tokenizer() -> Any:
    return byte_tokenizer(None)


@pytest.fixture
def closing_tokenizer() -> Any:
    return byte_tokenizer(None, closes_with_eos=True)
