"""Several measures of one run as one."""

from collections.abc import Sequence

from alignrun.types import Evaluation, Evaluator


class Together:
    """Runs evaluators one after another and joins what they say; the later one wins where names collide."""

    def __init__(self, evaluators: Sequence[Evaluator]) -> None:
        self._evaluators = evaluators

    def __call__(self) -> Evaluation:
        """Everything that each of them measured."""
        parts = [evaluate() for evaluate in self._evaluators]
        return Evaluation(
            metrics={name: value for part in parts for name, value in part.metrics.items()},
            lines=[line for part in parts for line in part.lines],
            samples=[sample for part in parts for sample in part.samples],
            files={name: text for part in parts for name, text in part.files.items()},
        )
