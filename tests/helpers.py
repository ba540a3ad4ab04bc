"""Small policies and batches that several tests share."""

import torch

from alignrun.compose import compose
from alignrun.config import Config
from alignrun.models.policy import Policy
from alignrun.models.sources import load_tokenizer
from alignrun.types import Completions, PromptBatch


def load_policy(*overrides: str) -> tuple[Policy, Config]:
    """A policy of the smoke preset, its adapter moved away from zero so that it differs from the reference."""
    config = compose(["experiment=smoke", *overrides])
    policy = Policy.load(config.model, config.adapter, config.reference, load_tokenizer(config.model), config.seed)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return policy, config


def random_batch(policy: Policy, prompts: int = 3, tokens: int = 5, seed: int = 0) -> tuple[PromptBatch, Completions]:
    """Left-padded prompts and right-padded completions of unequal lengths."""
    generator = torch.Generator().manual_seed(seed)
    width = 6
    ids = torch.randint(0, 200, (prompts, width), generator=generator)
    mask = torch.ones(prompts, width, dtype=torch.long)
    completion = torch.randint(0, 200, (prompts, tokens), generator=generator)
    completion_mask = torch.ones(prompts, tokens, dtype=torch.bool)
    for row in range(prompts):
        mask[row, : row % 3] = 0
        completion_mask[row, tokens - row % 2 :] = False
    batch = PromptBatch(tuple(f"prompt {row}" for row in range(prompts)), ids, mask)
    return batch, Completions(completion, completion_mask)
