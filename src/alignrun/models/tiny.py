"""A random Llama with a byte tokenizer: runs every code path of a real model in milliseconds."""

import copy
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, plus the ChatML marks; `<|im_end|>` ends a completion."""
    # Share one backend: tokenizers (0.23) never frees a backend's cache, and many runs may share a process.
    return copy.copy(_byte_tokenizer())


@cache
def _byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return with_chat_marks(tokenizer)


def with_chat_marks(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer with the ChatML marks and template; `<|im_end|>` ends a completion."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = CHATML
    return fast


def random_llama(architecture: dict[str, object], tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of the given architecture with random weights and the tokenizer's vocabulary."""
    config = LlamaConfig(
        **{
            **architecture,
            "vocab_size": len(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
        }
    )
    return LlamaForCausalLM(config)
