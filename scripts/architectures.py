"""Check tiny random models of many families, and write docs/architectures.md: `python scripts/architectures.py`.

Every family is built with its vocabulary head tied to the embedding and untied, in float32 and in bfloat16, and takes
the path of a run: the check of its passes at load, a LoRA adapter on the default layers, log-probabilities of
completions of padded prompts. These are compared with what transformers and PEFT compute for each text alone, and with
the merged model.
"""

import copy
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from alignrun.config import AdapterConfig, Attention, ModelConfig
from alignrun.errors import InputError
from alignrun.models.backbone import Backbone
from alignrun.models.capabilities import check_passes
from alignrun.models.policy import Policy
from alignrun.models.tiny import byte_tokenizer
from alignrun.types import Completions, PromptBatch, Role

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
VOCABULARY = 64

_PLAIN = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
_GROUPED = _PLAIN | {"num_key_value_heads": 2}
_HEADS = _GROUPED | {"head_dim": 8}
_WINDOW = {"sliding_window": 4}  # shorter than the texts
_GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1,
           "first_k_dense_replace": 1}  # fmt: skip
_LATENT = _ROUTED | {"n_shared_experts": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8,
                     "qk_rope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}  # fmt: skip
_STATE = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8,
          "initializer_range": 0.2}  # fmt: skip
_MIXER = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}

FAMILIES: dict[str, dict[str, Any]] = {
    "apertus": _GROUPED,
    "arcee": _HEADS,
    "bamba": _GROUPED | _MIXER | {"attn_layer_indices": [1]},
    "biogpt": _PLAIN,
    "bitnet": _GROUPED,
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "codegen": _GPT | {"rotary_dim": 4},
    "cohere": _GROUPED,
    "cohere2": _GROUPED | _WINDOW,
    "deepseek_v2": _GROUPED | _LATENT,
    "deepseek_v3": _GROUPED | _LATENT,
    "diffllama": _GROUPED,
    "ernie4_5": _HEADS,
    "exaone4": _GROUPED | _WINDOW,
    "falcon": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
               "initializer_range": 0.2},
    "falcon_h1": _HEADS | _MIXER | {"mamba_d_ssm": 64},
    "falcon_mamba": _STATE,
    "gemma": _HEADS,
    "gemma2": _HEADS | _WINDOW | {"query_pre_attn_scalar": 8},
    "gemma3_text": _HEADS | _WINDOW | {"query_pre_attn_scalar": 8},
    "glm": _HEADS,
    "glm4": _HEADS,
    "glm4_moe": _HEADS | _ROUTED,
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 4,
                "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64,
                "initializer_range": 0.2},
    "gpt_neox": _PLAIN,
    "gpt_oss": _HEADS | _LOCAL | _WINDOW,
    "gptj": _GPT | {"rotary_dim": 4},
    "granite": _GROUPED | {"logits_scaling": 2.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5,
                           "embedding_multiplier": 2.0},
    "granitemoe": _GROUPED | _LOCAL,
    "granitemoehybrid": _GROUPED | _LOCAL | _MIXER | {"shared_intermediate_size": 16,
                                                      "layer_types": ["mamba", "attention"]},
    "granitemoeshared": _GROUPED | _LOCAL | {"shared_intermediate_size": 16},
    "helium": _HEADS,
    "hunyuan_v1_dense": _HEADS,
    "hunyuan_v1_moe": _HEADS | {"num_experts": 4, "moe_topk": 2},
    "jamba": _GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
                         "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
                         "use_mamba_kernels": False},
    "lfm2": _GROUPED | {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48,
                        "block_auto_adjust_ff_dim": False},
    "lfm2_moe": _GROUPED | _EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama": _GROUPED,
    "mamba": _STATE,
    "mamba2": _STATE | {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "minimax": _HEADS | _LOCAL | {"layer_types": ["linear_attention", "full_attention"], "block_size": 4},
    "ministral": _HEADS | _WINDOW,
    "mistral": _GROUPED | _WINDOW,
    "mixtral": _GROUPED | _LOCAL,
    "mpt": {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64,
            "initializer_range": 0.2},
    "nemotron": _GROUPED,
    "nemotron_h": _HEADS | {"hybrid_override_pattern": "M*", "mamba_num_heads": 4, "mamba_head_dim": 16,
                            "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8},
    "olmo": _GROUPED,
    "olmo2": _GROUPED,
    "olmo3": _GROUPED | _WINDOW,
    "olmoe": _GROUPED | {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"vocab_size": VOCABULARY, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32, "init_std": 0.2},
    "persimmon": _GROUPED,
    "phi": _GROUPED,
    "phi3": _GROUPED,
    "phimoe": _GROUPED | _LOCAL,
    "qwen2": _GROUPED,
    "qwen2_moe": _GROUPED | _EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3": _HEADS,
    "qwen3_moe": _HEADS | _EXPERTS,
    "qwen3_next": _HEADS | _EXPERTS | {"shared_expert_intermediate_size": 16, "linear_num_value_heads": 4,
                                       "layer_types": ["linear_attention", "full_attention"],
                                       "linear_num_key_heads": 2, "linear_key_head_dim": 8,
                                       "linear_value_head_dim": 8},
    "recurrent_gemma": _PLAIN | {"num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 4,
                                 "block_types": ["recurrent", "attention"], "w_init_variance_scale": 1.0},
    "rwkv": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32,
             "intermediate_size": 48, "context_length": 64},
    "seed_oss": _HEADS,
    "smollm3": _GROUPED,
    "stablelm": _GROUPED,
    "starcoder2": _GROUPED | _WINDOW,
    "xglm": {"vocab_size": VOCABULARY, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4,
             "max_position_embeddings": 64, "init_std": 0.2},
    "zamba2": _PLAIN | {"num_key_value_heads": 4, "layers_block_type": ["mamba", "hybrid"], "mamba_d_state": 8,
                        "n_mamba_heads": 4, "mamba_headdim": 16, "num_mem_blocks": 1, "hybrid_layer_ids": [1],
                        "use_mamba_kernels": False, "chunk_size": 8},
}  # fmt: skip

EXACT, ROUNDED = 1e-3, 0.1
"""The most that mean log-probabilities of tokens may differ, relative to their spread: in float32 and in bfloat16."""


@dataclass(frozen=True, slots=True)
class Row:
    """What was found for one family."""

    family: str
    attention: str
    adapted: str
    """The names of the layers that carry the default adapter."""
    result: str
    """`as transformers`, or the line with which it is refused."""

    def __str__(self) -> str:
        return f"| {self.family} | {self.attention} | {self.adapted} | {self.result} |"


def build(family: str, *, tied: bool, dtype: torch.dtype) -> PreTrainedModel:
    """A tiny random model, with the kernel of the default configuration where it has that."""
    config = AutoConfig.for_model(family, **FAMILIES[family], tie_word_embeddings=tied)
    torch.manual_seed(0)
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    except ValueError:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    return model.eval().requires_grad_(False)


ALL = [(dtype, tied) for dtype in (torch.float32, torch.bfloat16) for tied in (False, True)]


def check(family: str, variants: Sequence[tuple[torch.dtype, bool]] = ALL) -> Row:
    """Take the path of a run with each precision and head, tied or not; report the first failure."""
    adapted = attention = ""
    for dtype, tied in variants:
        model = build(family, tied=tied, dtype=dtype)
        attention = str(model.config._attn_implementation)
        try:
            policy = load(model)
        except InputError as refusal:
            return Row(family, attention, "", f"refused: {refusal}")
        adapted = adapted or ", ".join(sorted({name.split(".")[-1] for name in adapted_layers(policy)}))
        for what, error in errors(policy):
            if not error <= (EXACT if dtype is torch.float32 else ROUNDED):
                where = f"{str(dtype).removeprefix('torch.')}, {'tied' if tied else 'untied'}"
                return Row(family, attention, adapted, f"WRONG: {what} by {error:.0e} ({where})")
    return Row(family, attention, adapted, "as transformers")


def load(model: PreTrainedModel) -> Policy:
    """As `Policy.load` does it, for a model that is in no folder; its adapter is moved away from zero."""
    attention = Attention(model.config._attn_implementation)
    config = ModelConfig(name="tiny", path="tiny", attention=attention)
    backbone = Backbone(model, byte_tokenizer(), config)
    backbone.settle()
    check_passes(model)
    backbone.add("policy", AdapterConfig(rank=4, alpha=8.0))
    policy = Policy(backbone)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return policy


def adapted_layers(policy: Policy) -> list[str]:
    """Their names."""
    return [name.split(".lora_A.")[0] for name in policy.trainable() if ".lora_A." in name]


@torch.no_grad()
def errors(policy: Policy) -> Iterator[tuple[str, float]]:
    """What differs from plain passes of transformers and PEFT over each text alone, and by how much."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, VOCABULARY, (2, 6), generator=generator)
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    tokens = torch.randint(1, VOCABULARY, (4, 5), generator=generator)
    kept = torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [1] * 5, [1, 1, 1, 1, 0]]).bool()
    prompts, completions = PromptBatch(("", ""), ids, mask), Completions(tokens, kept)
    found = {role: policy.log_probs(role, prompts, completions)[kept] for role in (Role.policy, Role.reference)}

    texts = [torch.cat([ids[row // 2][mask[row // 2].bool()], tokens[row][kept[row]]]) for row in range(4)]
    sizes = kept.sum(1).tolist()
    peft = policy.backbone.peft
    assert peft is not None
    for layer in policy.backbone.layers:
        del layer.forward  # PEFT's own from here on
    adapted = alone(policy.model, texts, sizes)
    yield "the policy's log-probabilities differ", spread_error(found[Role.policy], adapted)
    with peft.disable_adapter():
        yield (
            "the reference's log-probabilities differ",
            spread_error(found[Role.reference], alone(policy.model, texts, sizes)),
        )
    merged = copy.deepcopy(peft).merge_and_unload()
    yield "the merged model differs", spread_error(alone(merged, texts, sizes), adapted)


def alone(model: PreTrainedModel, texts: list[Tensor], sizes: list[int]) -> Tensor:
    """Log-probabilities of the last tokens of each text, of passes over it alone without cache, mask or positions."""
    rows = []
    for text, size in zip(texts, sizes, strict=True):
        log_probs = model(input_ids=text[None], use_cache=False).logits[0].float().log_softmax(-1)
        rows.append(log_probs[:-1].gather(1, text[1:, None])[-size:, 0])
    return torch.cat(rows)


def spread_error(found: Tensor, expected: Tensor) -> float:
    """The mean difference, relative to the spread of what is expected."""
    return float((found - expected).abs().mean() / expected.std())


def page(rows: list[Row]) -> str:
    """docs/architectures.md."""
    good = sum(row.result == "as transformers" for row in rows)
    return "\n".join([
        "# Architectures that were checked",
        "",
        f"{len(rows)} families of transformers {transformers.__version__} as tiny random models; {good} of them can be "
        "trained. `python scripts/architectures.py` writes this page, and a test holds it to what the script finds.",
        "",
        "Each was built in float32 and bfloat16, with its vocabulary head tied to the embedding and not. *As "
        "transformers* means: passes over prompts padded on the left, over a prompt shared by several completions, and "
        "decoding with a cache give what a plain pass over each text gives; with a LoRA adapter on the default layers, "
        "the log-probabilities of policy and reference are those of transformers and PEFT, and so are those of the "
        "merged model. Attention windows are shorter than the texts. *Attention* is what `model.attention` must say. "
        "Any other model is checked in the same way when it is loaded, and refused in one line where it differs.",
        "",
        "| family | attention | layers adapted by default | log-probabilities |",
        "|---|---|---|---|",
        *map(str, rows),
        "",
    ])  # fmt: skip


def main() -> None:
    """Check all families, or those that are named, and write the page or print them."""
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    named = sys.argv[1:]
    rows = []
    for family in named or FAMILIES:
        rows.append(check(family))
        print(rows[-1], flush=True)
    if not named:
        PAGE.write_text(page(rows))


if __name__ == "__main__":
    main()
