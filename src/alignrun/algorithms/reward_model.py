"""A Bradley-Terry reward model on a LoRA adapter: the first half of RLHF (Christiano et al., arXiv 1706.03741)."""

from collections.abc import Sequence

from torch import Tensor

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.feedback import FeedbackAlgorithm
from alignrun.config import FromData, schema
from alignrun.config.templates import split_template
from alignrun.data.encoding import Encoding
from alignrun.data.feedback_encoding import RewardEncoder
from alignrun.data.pairs import PairSet
from alignrun.objectives.preference import bradley_terry_loss
from alignrun.types import Example


@schema
class RewardTrainingConfig(FromData):
    """The prompt template of the reward model."""

    name: str = "reward_model"
    template: str = "{prompt}\n\n{completion}"
    """Text with {prompt} and {completion}; one user turn if the tokenizer has a chat template."""

    def __post_init__(self) -> None:
        split_template(self.template, ("prompt", "completion"), "algo.template")


@algorithm("reward_model", RewardTrainingConfig)
class RewardModel(FeedbackAlgorithm):
    """−p log σ(r_w − r_l) − (1−p) log σ(r_l − r_w), with r the scalar at the end of the text (arXiv 2312.00886 §3.1).

    Labels p may be soft, from several annotators. The model can only express transitive preferences.
    """

    kind = "reward"
    config: RewardTrainingConfig

    @classmethod
    def dataset(cls, config: RewardTrainingConfig, examples: Sequence[Example], encoding: Encoding) -> PairSet:
        """The pairs, with each completion encoded separately after the prompt."""
        encoder = RewardEncoder(encoding.tokenizer, config.template, encoding.rows)
        return PairSet.build(examples, encoding, encoder.encode_pair)

    def logits(self, scores: Tensor) -> Tensor:
        """r_w − r_l."""
        return scores[:, 0] - scores[:, 1]

    def objective(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of σ(r_w − r_l)."""
        return bradley_terry_loss(scores, labels)
