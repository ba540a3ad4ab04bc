"""Base of the algorithms that sample completions and have them judged."""

from collections.abc import Callable, Sequence
from typing import Any

from alignrun.algorithms.base import Algorithm, Tools
from alignrun.algorithms.common.rollout import Rollouts


class OnlineAlgorithm(Algorithm):
    """Samples and judges through `rollouts`, and counts what is asked."""

    tools: Tools

    def __init__(self, config: Any, tools: Tools) -> None:
        super().__init__(config, tools)
        self.rollouts = Rollouts(tools)

    def report(self, note: Callable[[str], None]) -> None:
        """Print what happens while sampling with `note`."""
        self.rollouts.memory.note = note

    @property
    def asked(self) -> int:
        """Questions so far, where each pair is one in each order."""
        return self.rollouts.questions

    def notes(self) -> Sequence[str]:
        """How many pairs are judged, where each is a question."""
        config = self.tools.config
        opponents = getattr(config.algo, "opponents_per_sample", None)
        asked, every = (self.pairs(config, count) for count in (opponents, None))
        if not (self.tools.preference.by_pair and every):
            return super().notes()
        share = f"all {every}" if asked == every else f"{asked} of {every}"
        drawn = "" if asked == every else ", drawn at each step (algo.opponents_per_sample)"
        return [*super().notes(), f"judging: {share} pairs of completions of each prompt{drawn}"]
