from pathlib import Path

import pytest
from transformers import LlamaConfig

from alignrun.config import ModelConfig, ModelSource
from alignrun.models.sources import load_architecture, load_tokenizer, vocabulary_size
from alignrun.models.tiny import byte_tokenizer


@pytest.mark.parametrize(("rows", "pad"), [(259, 257), (258, 257), (257, 0)])
def test_a_padding_token_without_an_embedding_is_replaced(tmp_path: Path, rows: int, pad: int) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    LlamaConfig(vocab_size=rows).save_pretrained(tmp_path)
    config = ModelConfig(name="path", source=ModelSource.hub, path=str(tmp_path))
    assert vocabulary_size(load_architecture(config)) == rows
    assert load_tokenizer(config).pad_token_id == pad
