import io
import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from alignrun.config import ModelConfig, ModelSource
from alignrun.errors import InputError
from alignrun.launch.compose import compose
from alignrun.models.sources import load_architecture, load_model, load_tokenizer, vocabulary_size
from alignrun.models.tiny import byte_tokenizer, random_llama


@pytest.mark.parametrize(("rows", "pad"), [(259, 257), (258, 257), (257, 0)])
def test_a_padding_token_without_an_embedding_is_replaced(tmp_path: Path, rows: int, pad: int) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    LlamaConfig(vocab_size=rows).save_pretrained(tmp_path)
    config = ModelConfig(name="path", source=ModelSource.hub, path=str(tmp_path))
    assert vocabulary_size(load_architecture(config)) == rows
    assert load_tokenizer(config).pad_token_id == pad


def test_the_advice_of_transformers_precedes_no_error(tmp_path: Path) -> None:
    """It would be a second line next to the one in which the model is refused."""
    tokenizer = byte_tokenizer()
    model = random_llama(dict(compose(["experiment=smoke"]).model.architecture), tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": 10**9}))
    config = compose(["experiment=smoke", "model=path", f"model.path={tmp_path}", "model.chat_template=null"]).model
    advice = io.StringIO()
    handler = logging.StreamHandler(advice)
    logging.getLogger("transformers").addHandler(handler)
    try:
        load_architecture(config)
        with pytest.raises(InputError, match="cannot be loaded"):
            load_model(config, load_tokenizer(config), torch.float32)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert not advice.getvalue()
