"""The architectures of the judges that the presets under conf/ name, so that a plan needs no network."""

from typing import Any

_LLAMA_3_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
_QWEN_3_0_6B = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
_PYTHIA_1B = {
    "model_type": "gpt_neox",
    "vocab_size": 50304,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "use_parallel_residual": True,
}
_DEBERTA_V3_LARGE = {
    "model_type": "deberta-v2",
    "vocab_size": 128100,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "max_relative_positions": -1,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Skywork/Skywork-Reward-V2-Llama-3.1-8B": _LLAMA_3_8B | {"num_labels": 1},
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": _QWEN_3_0_6B | {"num_labels": 1},
    "cleanrl/EleutherAI_pythia-1b-deduped__reward__tldr": _PYTHIA_1B | {"num_labels": 1},
    "RLHFlow/pair-preference-model-LLaMA3-8B": _LLAMA_3_8B,
    "RLHFlow/ArmoRM-Llama3-8B-v0.1": _LLAMA_3_8B | {"vocab_size": 128257},
    "llm-blender/PairRM-hf": _DEBERTA_V3_LARGE
    | {"source_prefix_id": 128001, "cand1_prefix_id": 128002, "cand2_prefix_id": 128003, "n_tasks": 1},
}
"""By the name on the hub: fields of the transformers configuration."""
