from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
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


def metaspace_tokenizer(scheme: str = "always") -> Any:
    """Pieces of SentencePiece's kind: a space is a letter of the word after it, and every text opens with one."""
    pieces = ["▁", "Su", "re", "▁Su", "▁Q", "Sure", "▁Sure"]
    letters = sorted({letter for code in range(32, 127) if (letter := chr(code)) != " "})
    vocabulary = {
        piece: place
        for place, piece in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters])
    }
    vocabulary |= {piece: len(vocabulary) + place for place, piece in enumerate(pieces)}
    merges = [("S", "u"), ("r", "e"), ("▁", "Su"), ("▁", "Q")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=(
            "{{ bos_token }}{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
            "{% if add_generation_prompt %}assistant\n{% endif %}"
        ),
    )


def headed_tokenizer() -> Any:
    """Bytes with some merges, headers around the role, and a mark for the end of the turn that is not EOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: place for place, letter in enumerate([*alphabet, "ĊĊ", "Su", "re", "Sure", "ĠS"])}
    merges = [("Ċ", "Ċ"), ("S", "u"), ("r", "e"), ("Su", "re"), ("Ġ", "S")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+|\p{N}")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|domain|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        additional_special_tokens=marks,
        chat_template=(
            "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
            "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
            "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
        ),
    )


@pytest.fixture
def llama3_tokenizer() -> Any:
    return headed_tokenizer()


@pytest.fixture(params=["chatml", "metaspace", "metaspace first", "llama3"])
def kinds(request: pytest.FixtureRequest) -> Any:
    """Tokenizers of the kinds in use, each with a chat template."""
    match request.param:
        case "chatml":
            return byte_tokenizer(CHATML)
        case "llama3":
            return headed_tokenizer()
    return metaspace_tokenizer("first" if "first" in request.param else "always")
