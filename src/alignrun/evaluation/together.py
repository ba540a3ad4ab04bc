"""Several evaluators combined into one."""

from collections.abc import Sequence

from alignrun.types import Evaluation, Evaluator


class Together:
    """Runs evaluators in sequence and merges their results; the later one takes precedence."""

    def __init__(self, evaluators: Sequence[Evaluator]) -> None:
        self._evaluators = evaluators

    def __call__(self) -> Evaluation:
        """The merged results of all evaluators."""
        parts = [evaluate() for evaluate in self._evaluators]
        return Evaluation(
            metrics={name: value for part in parts for name, value in part.metrics.items()},
            lines=[line for part in parts for line in part.lines],
            samples=[sample for part in parts for sample in part.samples],
            files={name: text for part in parts for name, text in part.files.items()},
        )
