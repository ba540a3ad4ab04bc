"""Published general preference models: the format of their checkpoints, and what their own code makes of it."""

from pathlib import Path

import pytest
import torch
from published_models import random_causal
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from alignrun.config import Precision
from alignrun.errors import InputError
from alignrun.preferences.base import Preference
from alignrun.preferences.general_preference import GeneralPreferenceConfig, build

PROMPT, ANSWERS = "Which one?", ["alpha", "beta beta", "c"]


def checkpoint(folder: Path, *, prompt_head: bool = True) -> tuple[Path, dict[str, torch.Tensor]]:
    """A language model with heads of 2k = 4."""
    random_causal("llama", folder)
    generator = torch.Generator().manual_seed(1)
    heads = {"value_head.weight": torch.randn(4, 16, generator=generator)}
    if prompt_head:
        heads["prompt_head.weight"] = torch.randn(2, 16, generator=generator)
    file = folder / "model.safetensors"
    save_file(load_file(file) | heads, file, {"format": "pt"})
    return folder, heads


def judge(folder: Path) -> Preference:
    return build(GeneralPreferenceConfig(path=str(folder), dtype=Precision.float32, device="cpu"))


@pytest.mark.parametrize("prompt_head", [True, False])
def test_it_is_read_as_its_authors_read_it(prompt_head: bool, tmp_path: Path) -> None:
    folder, heads = checkpoint(tmp_path, prompt_head=prompt_head)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)

    def hidden(answer: str | None) -> torch.Tensor:
        turns = [{"role": "user", "content": PROMPT}]
        turns += [] if answer is None else [{"role": "assistant", "content": answer}]
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), return_tensors="pt")["input_ids"]
        if answer is not None:
            ids[0, -1] = tokenizer.eos_token_id
        with torch.no_grad():
            return model(ids).last_hidden_state[0, -1]

    scales = torch.softmax(heads["prompt_head.weight"] @ hidden(None), 0) if prompt_head else torch.ones(2)
    vectors = [torch.nn.functional.normalize(heads["value_head.weight"] @ hidden(answer), dim=0) for answer in ANSWERS]
    turn = torch.block_diag(*[scale * torch.tensor([[0.0, -1.0], [1.0, 0.0]]) for scale in scales])
    preference = judge(folder)
    for one, first in zip(ANSWERS, vectors, strict=True):
        for other, second in zip(ANSWERS, vectors, strict=True):
            expected = torch.sigmoid(first @ turn.T @ second / 0.1)
            torch.testing.assert_close(preference([PROMPT], [one], [other])[0], expected, rtol=1e-4, atol=1e-5)


def test_antisymmetry_is_exact(tmp_path: Path) -> None:
    folder, _ = checkpoint(tmp_path)
    preference = judge(folder)
    forward, backward = (
        preference([PROMPT] * 3, a, b) for a, b in ((ANSWERS, ANSWERS[::-1]), (ANSWERS[::-1], ANSWERS))
    )
    torch.testing.assert_close(forward + backward, torch.ones(3), rtol=0, atol=2**-23)
    assert (forward - 0.5).abs().max() > 0.01


def test_a_model_without_heads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no weights for value_head.weight"):
        judge(random_causal("llama", tmp_path))
