"""The layers by which a model is sharded."""

from torch import nn
from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers, which the model's family declares by the names of their classes; empty where it does not."""
    kinds = set(model._no_split_modules or ())
    return [module for module in model.base_model.modules() if type(module).__name__ in kinds]
