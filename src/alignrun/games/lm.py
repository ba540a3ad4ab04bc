"""A causal language model whose completions are the actions of a matrix game.

It uses the same sampling, algorithms and training loop as a large model, while the game's equilibrium, best responses
and exploitability are known exactly.
"""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignrun.games import Game
from alignrun.games.files import PROMPT

IMPOSSIBLE = -30.0
"""The logit of every token that is not an action; relative to log μ it is below float32's resolution."""


def game_tokenizer(game: Game) -> PreTrainedTokenizerFast:
    """One token for the prompt and one for each action."""
    words = ["<pad>", "<eos>", PROMPT, *game.actions]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<pad>")


def game_llama(game: Game, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A tiny Llama with random weights whose next-token distribution after the prompt is exactly μ.

    With h the hidden state after the prompt and W a random head, the rank-one correction
    W + (log μ − W h) hᵀ / |h|² makes the logits at h equal to log μ and leaves every other direction unchanged, so an
    adapter can move the policy anywhere in the simplex.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    target = torch.full((len(tokenizer),), IMPOSSIBLE)
    actions = tokenizer.convert_tokens_to_ids(list(game.actions))
    target[actions] = game.reference.log().to(target)
    prompt = torch.tensor([tokenizer.encode(PROMPT)])
    with torch.no_grad():
        hidden = model.base_model(input_ids=prompt).last_hidden_state[0, -1]
        head = model.lm_head.weight
        impossible = torch.ones(len(tokenizer), dtype=torch.bool)
        impossible[actions] = False
        head[impossible] = 0.0
        head += torch.outer(target - head @ hidden, hidden) / hidden.square().sum()
    return model
