"""Base of the algorithms that sample completions and have them judged."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignrun.algorithms.base import Algorithm, Tools
from alignrun.algorithms.common.mismatch import KL, Correction, check_mismatch
from alignrun.algorithms.common.rollout import Rollouts
from alignrun.algorithms.common.server_rollouts import ServerRollouts, server_notes
from alignrun.config import Engine


class OnlineAlgorithm(Algorithm):
    """Samples and judges through `rollouts`, and counts questions."""

    tools: Tools

    def __init__(self, config: Any, tools: Tools) -> None:
        super().__init__(config, tools)
        served = tools.config.generation.engine is Engine.server
        self.rollouts = ServerRollouts(tools) if served else Rollouts(tools)
        self.correction = Correction(tools.config)
        """Weights for the gradient of samples that a server drew."""

    def report(self, note: Callable[[str], None]) -> None:
        """Print what happens while sampling and scoring with `note`."""
        self.rollouts.memory.note = self.rollouts.scoring.note = note

    @property
    def asked(self) -> int:
        """Questions so far; each pair counts once per order."""
        return self.rollouts.questions

    @property
    def measured(self) -> dict[str, float]:
        """What the sampling of the next steps depends on."""
        return self.rollouts.measured

    def drain(self) -> dict[str, float]:
        """Further, what a rollout server drew and how."""
        return super().drain() | self.rollouts.drain() | self.correction.drain()

    def check_update(self, metrics: Mapping[str, float]) -> None:
        """Refuse an update on completions of a server whose policy is not the trained one. Raises RunError."""
        check_mismatch(self.tools.config, metrics.get(KL, 0.0))

    def notes(self) -> Sequence[str]:
        """What a server draws, and the number of judged pairs, if each is a question."""
        config = self.tools.config
        notes = [*super().notes(), *server_notes(config, self.declared(config))]
        opponents = getattr(config.algo, "opponents_per_sample", None)
        asked, every = (self.pairs(config, count) for count in (opponents, None))
        if not (self.tools.preference.by_pair and every):
            return notes
        share = f"all {every}" if asked == every else f"{asked} of {every}"
        drawn = "" if asked == every else ", drawn at each step (algo.opponents_per_sample)"
        return [*notes, f"judging: {share} pairs of completions of each prompt{drawn}"]
