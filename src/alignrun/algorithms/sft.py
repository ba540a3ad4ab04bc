"""SFT: maximum likelihood on demonstrations, typically to train the reference of later runs."""

from collections.abc import Sequence

from alignrun.algorithms.base import Loss, OfflineAlgorithm, Tools, algorithm
from alignrun.config import Config, FromData, ModelSource, require, schema
from alignrun.data.demonstrations import DemonstrationSet
from alignrun.data.encoding import Encoding
from alignrun.errors import InputError
from alignrun.models.hidden import check_packing
from alignrun.types import Example, PackedBatch


@schema
class SFTConfig(FromData):
    """Packing of demonstrations."""

    name: str = "sft"
    pack_tokens: int | None = None
    """Pack the demonstrations of a step into rows of at most this many tokens; `null` disables packing.

    The micro-batch size then counts rows.
    """

    def __post_init__(self) -> None:
        require(self.pack_tokens is None or self.pack_tokens >= 2, "algo.pack_tokens", "must be at least 2")


@algorithm("sft", SFTConfig)
class SFT(OfflineAlgorithm):
    """−Σ_n log π(y_n | x, y_<n) over the tokens of the completions, averaged over all tokens of the step.

    The completion is `completion`, the last turn of `messages`, or `chosen`; with `data.train_on=all` every earlier
    turn of the assistant is learned too. Attention never crosses demonstrations. With `reference=adapter`, training
    continues from that adapter.
    """

    config: SFTConfig
    whole_conversations = True

    def __init__(self, config: SFTConfig, tools: Tools) -> None:
        super().__init__(config, tools)
        check_packing(tools.policy.model)

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse a matrix game, which has no texts to learn."""
        super().check(config)
        if config.model.source is ModelSource.game:
            raise InputError("config: algo=sft learns from texts, and model=game has none: choose another model")

    @classmethod
    def dataset(cls, config: SFTConfig, examples: Sequence[Example], encoding: Encoding) -> DemonstrationSet:
        """The demonstrations."""
        return DemonstrationSet.build(examples, encoding, config.pack_tokens)

    def loss(self, batch: PackedBatch) -> Loss:
        """The negative log-likelihood, summed over target tokens."""
        log_probs = self.tools.policy.packed_log_probs(batch)
        tokens = batch.targets.sum()
        return Loss(total=-log_probs.sum(), targets=tokens, metrics={}, tokens=tokens)
