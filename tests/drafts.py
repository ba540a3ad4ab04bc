"""All completions of up to three tokens of a game LM, and every outcome of verifying them as drafts, enumerated."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignrun.config import Config
from alignrun.generation.decode import Sampling
from alignrun.generation.streams import Mixture, Source
from alignrun.generation.verify import Verified, verify
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.models.sources import load_tokenizer
from alignrun.types import Completions, PromptBatch, Role

LENGTH, VOCABULARY = 3, 6
EDGE = 1e-9
"""How far from the end of its cell a uniform number lies."""


@dataclass
class Texts:
    """All completions of a game LM of at most three tokens, and the logits at each of their tokens, in float64."""

    completions: Completions
    logits: dict[Role, Tensor]
    """[N, T, V]"""
    stop: int
    pad: int

    def sampling(self, **options: float) -> Sampling:
        return Sampling(LENGTH, [self.stop], self.pad, **options)


def game_policy(*overrides: str) -> tuple[Policy, Config]:
    """In float64, its adapter moved away from zero."""
    config = compose(["experiment=game", *overrides])
    policy = Policy.load(config.model, config.adapter, config.reference, load_tokenizer(config.model), 0)
    policy.model.double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return policy, config


def play(policy: Policy, count: int = 1) -> PromptBatch:
    prompt = torch.tensor([policy.tokenizer.encode("play")] * count)
    return PromptBatch(("play",) * count, prompt, torch.ones_like(prompt))


def all_texts(policy: Policy, least: float) -> Texts:
    """With logits of at least so much, in which no two tokens of a place are equally likely."""
    stop, pad = policy.tokenizer.eos_token_id, policy.tokenizer.pad_token_id
    grown: list[list[int]] = [[]]
    for _ in range(LENGTH):
        grown = [[*text, token] for text in grown for token in range(VOCABULARY) if stop not in text] + [
            text for text in grown if stop in text
        ]
    tokens = torch.tensor([text + [pad] * (LENGTH - len(text)) for text in grown])
    mask = torch.tensor([[place < len(text) for place in range(LENGTH)] for text in grown])
    prompts = play(policy)
    roles = (Role.policy, Role.reference)
    at = policy.logits(roles, prompts, Completions(tokens, mask))
    everywhere = torch.arange(tokens.numel())
    logits = {role: at(role, everywhere).reshape(*tokens.shape, VOCABULARY) for role in roles}
    for role in roles:
        logits[role] = logits[role].clamp(min=least) + (torch.linspace(0, 0.1, VOCABULARY) if least > -99 else 0)
    log_probs = policy.log_probs(Role.policy, prompts, Completions(tokens, mask))
    own = at(Role.policy, everywhere).log_softmax(-1).gather(1, tokens.reshape(-1, 1)).reshape(tokens.shape)
    torch.testing.assert_close(own * mask, log_probs)
    return Texts(Completions(tokens, mask), logits, stop, pad)


def mixture(beta: float) -> Mixture:
    return Mixture(Role.policy, Role.reference, beta)


def tempered(texts: Texts, source: Source, temperature: float, top_k: int = 0) -> Tensor:
    """[N, T, V] p^(1/T), normalised over the most likely tokens, for p ∝ π^(1−β) μ^β; plainly."""
    beta = source.beta if isinstance(source, Mixture) else float(source is Role.reference)
    policy, reference = (texts.logits[role].softmax(-1) for role in (Role.policy, Role.reference))
    powers = (policy ** (1 - beta) * reference**beta) ** (1 / temperature)
    if top_k:
        powers = torch.where(powers >= powers.topk(top_k, -1).values[..., -1:], powers, 0.0)
    return powers / powers.sum(-1, keepdim=True)


def whole(texts: Texts, each: Tensor) -> Tensor:
    """[N] the probability of every completion, from those of the next token [N, T, V]."""
    of = each.gather(-1, texts.completions.tokens[..., None]).squeeze(-1)
    return torch.where(texts.completions.mask, of, 1.0).prod(1)


def cells(texts: Texts, pi: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Drafts [R], uniform numbers [R, T] twice and weights [R]: each outcome of `verify` at both ends of its cell.

    The weights are the exact probabilities of the cells, so that a sum over the results is an expectation.
    """
    tokens, mask = texts.completions.tokens, texts.completions.mask
    rows, accepting, redrawing, weights = [], [], [], []
    for row in range(len(tokens)):
        length = int(mask[row].sum())
        if not whole(texts, pi)[row]:
            continue
        chosen = tokens[row, :length, None]
        accept = (m[row, :length].gather(-1, chosen) / pi[row, :length].gather(-1, chosen)).clamp(max=1).squeeze(-1)
        before = 1.0  # of the draft, and that its tokens so far are accepted
        for place in range(length):
            u = torch.zeros(LENGTH, dtype=torch.float64)
            u[:place] = accept[:place] - EDGE
            u[place] = accept[place] + EDGE
            excess = (m[row, place] - pi[row, place]).clamp(min=0)
            if accept[place] < 1:
                ends = (excess / excess.sum()).cumsum(0)
                for token in excess.nonzero().flatten().tolist():
                    start = float(ends[token - 1]) if token else 0.0
                    for number in (start + EDGE, float(ends[token]) - EDGE):
                        rows.append(row)
                        accepting.append(u)
                        redrawing.append(torch.full((LENGTH,), number, dtype=torch.float64))
                        weights.append(before * float((1 - accept[place]) * (ends[token] - start)) / 2)
            before = before * float(accept[place])
        u = torch.zeros(LENGTH, dtype=torch.float64)
        u[:length] = accept - EDGE
        rows.append(row)
        accepting.append(u)
        redrawing.append(torch.zeros(LENGTH, dtype=torch.float64))
        weights.append(before)
    drafted = torch.tensor(rows)
    numbers = (torch.stack(side).clamp(0, 1 - 1e-16) for side in (accepting, redrawing))
    return drafted, *numbers, torch.tensor(weights, dtype=torch.float64) * whole(texts, pi)[drafted]


def outcomes(
    texts: Texts, drawn_from: Source, target: Source, sampling: Sampling, pi: Tensor, m: Tensor
) -> tuple[Tensor, Verified]:
    """[N, N] the joint distribution of a draft and its completion: `verify` on all outcomes, then m exactly."""
    drafted, accepting, redrawing, weights = cells(texts, pi, m)
    assert abs(float(weights.sum()) - 1) < 1e-14
    tokens, mask = texts.completions.tokens, texts.completions.mask

    def logits(role: Role, places: Tensor) -> Tensor:
        return texts.logits[role][drafted].flatten(0, 1)[places]

    drafts = Completions(tokens[drafted], mask[drafted])
    found = verify(drafts, drawn_from, target, sampling, logits, accepting, redrawing)
    prefix, lengths = found.prefix, found.prefix.mask.sum(1)
    assert torch.equal(lengths, found.accepted + found.rejected)
    ended = (prefix.tokens == texts.stop).logical_and(prefix.mask).any(1) | (lengths == LENGTH)
    assert torch.equal(found.ended, ended)
    assert (prefix.tokens[~prefix.mask] == texts.pad).all()
    # The completions that begin with the prefix, and how likely the target makes them from there.
    begins = ((prefix.tokens[:, None] == tokens) | ~prefix.mask[:, None]).all(2)
    begins &= ~found.ended[:, None] | (lengths[:, None] == mask.sum(1))
    of = torch.where(mask, m.gather(-1, tokens[..., None]).squeeze(-1), 1.0)
    ahead = torch.arange(LENGTH) >= lengths[:, None, None]
    rest = torch.where(ahead, of, 1.0).prod(2)
    joint = torch.zeros(len(tokens), len(tokens), dtype=torch.float64)
    joint.index_add_(0, drafted, weights[:, None] * begins * rest)
    return joint, found
