"""MTPO: the equilibrium of a preference over whole conversations of several turns (Shani et al., arXiv 2405.14655)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignrun.algorithms.base import Loss, algorithm
from alignrun.algorithms.common.conversations import (
    ConversationAlgorithm,
    Conversations,
    joined,
    planned_tokens,
)
from alignrun.algorithms.common.opponents import pairs_among
from alignrun.algorithms.common.rollout_metrics import rollout_metrics
from alignrun.algorithms.common.schedules import check_opponents
from alignrun.algorithms.common.stacking import concatenate
from alignrun.config import Config, require, schema
from alignrun.data.dataset import Dataset
from alignrun.data.encoding import Encoding
from alignrun.data.follow_up import FollowUps, transcript
from alignrun.errors import InputError
from alignrun.objectives.nash import policy_gradient_loss, suffix_advantages
from alignrun.types import Example, PromptBatch, Role, as_prompt, as_turns

MOST_TURNS = 8


@schema
class MTPOConfig:
    """The conversations, and how they are judged."""

    name: str = "mtpo"
    kl_tau: float = 0.02
    """τ, the weight of KL(π‖μ) over the whole conversation against a win rate in [0, 1]."""
    samples_per_prompt: int = 4
    """Conversations per prompt."""
    opponents_per_sample: int | None = 2
    """Others that each is judged against, drawn if every pair is a question to the preference; null is all."""
    turns: int = 2
    """Answers of the policy in a conversation, 2 to 8; the user replies between them."""
    user_says: str | None = None
    """The user's reply to every answer; null lets the reference play the user."""
    user_instruction: str = (
        "Play the user of the following conversation. Write only what the user says next to the assistant."
    )
    """What the reference is asked when it plays the user; it then sees the conversation with the roles swapped."""

    def __post_init__(self) -> None:
        require(self.kl_tau >= 0, "algo.kl_tau", f"must not be negative, not {self.kl_tau}")
        require(self.samples_per_prompt >= 2, "algo.samples_per_prompt", "must be at least 2, to be compared")
        check_opponents(self.opponents_per_sample)
        require(2 <= self.turns <= MOST_TURNS, "algo.turns", f"must lie in [2, {MOST_TURNS}], not {self.turns}")
        said = self.user_says is None or self.user_says.strip()
        require(bool(said), "algo.user_says", "must say something; null lets the reference play the user")
        require(bool(self.user_instruction.strip()), "algo.user_instruction", "must ask for something")


@dataclass(frozen=True, slots=True)
class JudgedConversations:
    """K conversations for each of B prompts, and the win rate of each over the others of its prompt."""

    said: Conversations
    """What the policy said."""
    preference: Tensor
    """[B, K] P(c ≻ c' | x), averaged over the conversations c' that c is judged against."""


@algorithm("mtpo", MTPOConfig)
class MTPO(ConversationAlgorithm):
    """max_π min_π' P(c ≻ c' | x) − τ KL(π‖μ) + τ KL(π'‖μ) over conversations c ~ π, c' ~ π' with a frozen user.

    c = (y¹, u¹, y², …, y^H): the policy's answers and the user's replies. KL is summed over the policy's turns.

    ∇ = E[Σ_h Σ_n ∇log π(y^h_n) · (P(c ≻ c' | x) − ½ − τ Σ_{m≥n, and later turns} log π(y_m)/μ(y_m))],  c, c' ~ π

    This is regularised self-play with the conversation as the completion: an answer is credited with all that follows
    it, which estimates the Q-function of the paper's mirror descent without a critic. The only stationary point is the
    equilibrium π(y^h|·) ∝ μ exp(Q(·, y^h)/τ), Q what the rest of the conversation wins less its penalty. The preference
    sees the conversation after its prompt as one text, with "user:" and "assistant:" before the later turns. Sample
    metrics are over whole conversations; evaluations and exports are of the policy, one turn at a time. If a rollout
    server drew c, its gradient is weighted with min(Π_h Π_n π/π_server, `generation.server_weight_cap`).
    """

    config: MTPOConfig
    judged_whole = True

    @classmethod
    def check(cls, config: Config) -> None:
        """A matrix game's preference knows single actions only."""
        super().check(config)
        if config.preference.name == "matrix":
            raise InputError(
                "config: algo=mtpo compares whole conversations, and preference=matrix knows only single actions: use "
                "preference=function with a function that reads both turns"
            )

    @classmethod
    def pairs(cls, config: Config, opponents: int | None = None) -> int:
        """Pairs of the conversations."""
        return pairs_among(config.algo.samples_per_prompt, opponents)

    @classmethod
    def later_turns(cls, config: Config) -> tuple[int, int]:
        """Those after the first, each longer by an answer and a reply."""
        algo, new = config.algo, config.generation.max_new_tokens
        each = planned_tokens(algo.user_says or "") + (new if algo.user_says is None else 0)
        asked = planned_tokens(algo.user_instruction) if algo.user_says is None else 0
        return algo.turns - 1, (algo.turns - 1) * (new + each) + asked

    @classmethod
    def added_tokens(cls, config: MTPOConfig, follow_ups: FollowUps, max_new_tokens: int) -> int:
        """An answer and a reply for each turn after the first, or what the user is asked."""
        if config.user_says is not None:
            return (config.turns - 1) * (max_new_tokens + follow_ups.added(config.user_says))
        each = 2 * max_new_tokens + follow_ups.added("x")
        return (config.turns - 1) * each + max(0, follow_ups.added_for_user(config.user_instruction))

    @classmethod
    def dataset(cls, config: Any, examples: Sequence[Example], encoding: Encoding) -> Dataset[Any]:
        """Encode the prompts that leave room for the whole conversation.

        Raises:
            InputError: as `ConversationAlgorithm.dataset`, or the reference cannot play the user of a row.
        """
        if config.user_says is None:
            if not encoding.tokenizer.chat_template:
                raise InputError(
                    "config: algo=mtpo: the tokenizer has no chat template, so the reference cannot play the user: "
                    "set algo.user_says, or give a template with model.chat_template"
                )
            for example in examples:
                if example.tools or any(turn["role"] == "tool" for turn in as_turns(example.prompt)):
                    raise InputError(
                        f"data: {example.origin}: the reference cannot play the user of a conversation with tools: set "
                        "algo.user_says, or remove the row"
                    )
        return super().dataset(config, examples, encoding)

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[JudgedConversations]:
        """K conversations of every prompt, turn by turn, judged against each other."""
        config = self.config
        streams = self.streams(self.tools.config, step)
        (first,) = self.rollouts.sample(prompts, streams, step, judged=False)  # only whole conversations are
        count = first.tokens.shape[1]
        asked = [as_prompt(text) for text in prompts.texts for _ in range(count)]
        answers = _by_prompt(self.rollouts.texts(first))
        openings, later = answers, []
        exchanges: list[list[tuple[str, str]]] = [[] for _ in asked]
        for turn in range(1, config.turns):
            replies = self._replies(asked, answers, step, 2 * turn)
            asked = [self.follow_ups.after(*said) for said in zip(asked, answers, replies, strict=True)]
            batch = self.later_prompts(asked)
            said, answers = self.say(Role.policy, batch, step, 2 * turn + 1)
            later.append((batch, said))
            for exchange, *more in zip(exchanges, replies, answers, strict=True):
                exchange.append((more[0], more[1]))
        read = [transcript(*whole) for whole in zip(openings, exchanges, strict=True)]
        judged = self.rollouts.among_texts(prompts, [read[place::count] for place in range(count)], step)
        pad_id = self.tools.policy.tokenizer.pad_token_id
        yield JudgedConversations(joined(prompts, first, later, pad_id), judged.win_rates(count))

    def _replies(self, asked: Sequence[Any], answers: Sequence[str], step: int, purpose: int) -> Sequence[str]:
        if self.config.user_says is not None:
            return [self.config.user_says] * len(asked)
        batch = self.user_prompts(asked, answers, self.config.user_instruction)
        return self.say(Role.reference, batch, step, purpose)[1]

    def loss(self, batch: JudgedConversations) -> Loss:
        """The surrogate of whole conversations, summed over the N = B·K conversations of the micro-batch."""
        policy, won = self.tools.policy, batch.preference.flatten()
        ours, base, said = [], [], []
        for prompts, completions in batch.said.turns():
            base.append(policy.log_probs(Role.reference, prompts, completions, self.temperature))
            ours.append(policy.log_probs(Role.policy, prompts, completions, self.temperature))
            said.append(completions)
        (log_probs, reference), whole = (torch.cat(parts, 1) for parts in (ours, base)), concatenate(said, 1)
        log_ratio, mask = log_probs.detach() - reference, whole.mask
        advantages = suffix_advantages(won, self.config.kl_tau * log_ratio, mask)
        advantages = advantages * self.correction.by_sequence(whole, log_probs)
        return Loss(
            total=policy_gradient_loss(log_probs, advantages, mask),
            targets=len(won),
            metrics={"win_rate": won.sum(), **rollout_metrics(policy, whole, log_probs, log_ratio)},
            tokens=mask.sum(),
        )


def _by_prompt(texts: Sequence[Sequence[str]]) -> list[str]:
    """K lists of B texts as one of B·K, those of a prompt together."""
    return [text for of_prompt in zip(*texts, strict=True) for text in of_prompt]
