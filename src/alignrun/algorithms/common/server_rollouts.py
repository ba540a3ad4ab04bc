"""Rollouts from a server: every role from its own weights, and mixtures by draft and verify."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from alignrun import distributed
from alignrun.algorithms.base import Tools
from alignrun.algorithms.common.drafting import Drafting, draft_role
from alignrun.algorithms.common.rollout import Rollouts, step_generator, step_seed
from alignrun.algorithms.common.serving import ServedPolicy
from alignrun.algorithms.common.stacking import pad_completions, stack
from alignrun.config import Config, Engine
from alignrun.generation.server.protocol import Ask, Drawn, prompt_seed, real_tokens
from alignrun.generation.streams import Stream, roles_of
from alignrun.models.device import batch_to
from alignrun.types import Completions, PromptBatch, Role


def server_notes(config: Config, declared: Sequence[Sequence[Stream]]) -> Sequence[str]:
    """What a rollout server draws of the declared streams, and where their mixtures come from."""
    if config.generation.engine is not Engine.server:
        return ()
    sources = [stream.source for streams in declared for stream in streams]
    roles = {draft_role(source) for source in sources}
    names = " and ".join(f"the {role.value}" for role in Role if role in roles)
    mixed = any(len(roles_of(source)) > 1 for source in sources)
    verified = "; the mixture is drafted there and verified here" if mixed else ""
    return [f"rollouts: {config.generation.server_url} draws {names}{verified}"]


class ServerRollouts(Rollouts):
    """Rollouts that a server draws; the main process asks, and broadcasts the answers. Raises like `ServedPolicy`.

    The policy's completions carry the server's log-probabilities.
    """

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._server = ServedPolicy(tools.policy, tools.config.generation)
        self._drafting = Drafting(tools, self.scoring)

    def drain(self) -> dict[str, float]:
        """What happened to the drafts of mixtures since the last call."""
        super().drain()  # no opponent is drafted by the policy's samples
        return self._drafting.drain()

    def _draw(
        self, prompts: PromptBatch, streams: Sequence[Stream], step: int, purpose: int, *, judged: bool
    ) -> list[Completions]:
        seed = step_seed(self._tools.config.seed, step, purpose)
        generator = step_generator(self._device, self._tools.config.seed, step, purpose)
        asked = [draft_role(stream.source) for stream in streams for _ in range(stream.samples)]
        drafts = iter(self._from_server(prompts, asked, self._temperatures(streams), seed))
        drawn: list[Completions] = []
        for number, stream in enumerate(streams):
            own = [next(drafts) for _ in range(stream.samples)]
            if len(roles_of(stream.source)) > 1:
                own = self._mixed(prompts, stream, own, generator, seed * len(streams) + number)
            elif draft_role(stream.source) is not Role.policy:  # nothing is learned from log-probabilities of others
                own = [replace(one, drawn_with=None) for one in own]
            drawn += own
        return drawn

    def _mixed(
        self,
        prompts: PromptBatch,
        stream: Stream,
        drafts: Sequence[Completions],
        generator: torch.Generator,
        seed: int,
    ) -> list[Completions]:
        """K completions [B, T] of a mixture from as many drafts."""
        sampling = replace(self._sampling, temperature=stream.temperature or self._sampling.temperature)
        shape = (2, len(prompts), stream.samples, sampling.max_new_tokens)
        uniforms = torch.rand(shape, generator=generator, device=self._device, dtype=torch.float64)
        longest = max(one.tokens.shape[1] for one in drafts)
        stacked = stack([pad_completions(one, longest, sampling.pad_id) for one in drafts])
        texts = [text for text in real_tokens(prompts) for _ in range(stream.samples)]

        def go_on(prefixes: Sequence[tuple[int, list[int]]], number: int) -> Sequence[Drawn]:
            served = None
            with distributed.raise_together():
                if distributed.is_main():
                    asks = [
                        Ask(texts[row] + known, prompt_seed(seed, row, number), sampling.max_new_tokens - len(known))
                        for row, known in prefixes
                    ]
                    served = self._server.draw(asks, draft_role(stream.source), sampling)
            drawn: Sequence[Drawn] = distributed.broadcast(served)
            return drawn

        mixed = self._drafting.complete(prompts, stacked, stream.source, sampling, uniforms, go_on)
        return [Completions(*pair) for pair in zip(mixed.tokens.unbind(1), mixed.mask.unbind(1), strict=True)]

    def _from_server(
        self, prompts: PromptBatch, asked: Sequence[Role], temperatures: Sequence[float], seed: int
    ) -> list[Completions]:
        """[B, T] one stream for each role and temperature, from the current weights."""
        served = None
        with distributed.raise_together():
            if distributed.is_main():
                roles = list(dict.fromkeys(asked))
                self._server.load(roles)
                drawn = {}
                for role in roles:
                    own = [one for other, one in zip(asked, temperatures, strict=True) if other is role]
                    role_seed = seed * len(Role) + list(Role).index(role)
                    drawn[role] = iter(self._server.sample(prompts, role, own, self._sampling, role_seed))
                # On the CPU: otherwise the other processes would open the tensors on the main process's GPU.
                served = [batch_to(next(drawn[role]), torch.device("cpu")) for role in asked]
        return [batch_to(one, self._device) for one in distributed.broadcast(served)]
