"""ArmoRM as its published code reads it: scores at the end, weights at the end of the prompt."""

from pathlib import Path

import pytest
import torch
from published_models import random_model
from transformers import AutoTokenizer

from alignrun.config import Precision
from alignrun.errors import InputError, RunError
from alignrun.models.gated_reward import GatedReward
from alignrun.preferences.armorm import SCORES, ArmoRM, ArmoRMConfig, build
from alignrun.types import Prompt

LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
TALK = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "And?"})
ASK = (["Hi", Prompt("Hi, Ho, And?", TALK), "Hi"], ["Hello", "Fine.", ""])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"gating_hidden_dim": 8, "gating_n_hidden": 2, "gating_temperature": 2, "num_objectives": 19}
    return random_model("llama", tmp_path_factory.mktemp("armorm"), auto=GatedReward, std=1.0, **sizes)


def armorm(folder: Path, **values: object) -> ArmoRM:
    plain = {"path": str(folder), "dtype": Precision.float32, "device": "cpu", "chat_template": LLAMA_3}
    made = build(ArmoRMConfig(**{**plain, **values}))
    assert isinstance(made, ArmoRM)
    return made


@torch.no_grad()
def published(folder: Path, turns: list[dict[str, str]]) -> tuple[float, list[float]]:
    """The reward and the scores by the steps of the model card's code, one conversation at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), GatedReward.from_pretrained(folder)
    text = tokenizer.apply_chat_template(turns, chat_template=LLAMA_3, tokenize=False).removeprefix("<bos>")
    ids = tokenizer(text)["input_ids"]
    pattern = tokenizer("<|im_end|><|im_start|>assistant\n\n", add_special_tokens=False)["input_ids"]
    place = max(j for j in range(len(ids)) if ids[j : j + len(pattern)] == pattern)
    hidden = model.model(torch.tensor([ids])).last_hidden_state[0]
    x = hidden[place]
    layers = list(model.gating.layers)
    for layer in layers[:-1]:
        x = torch.relu(x @ layer.weight.T + layer.bias)
    gate = torch.softmax((x @ layers[-1].weight.T + layers[-1].bias) / 2, dim=0) * model.gating.logit_scale[0]
    scores = model.regression_layer.weight @ hidden[-1]
    return float((gate * (scores @ model.reward_transform_matrix)).sum()), scores.tolist()


def test_it_is_read_as_the_published_code_does(folder: Path) -> None:
    expected = []
    for prompt, answer in zip(*ASK, strict=True):
        turns = prompt.turns if isinstance(prompt, Prompt) else ({"role": "user", "content": prompt},)
        expected.append(published(folder, [*turns, {"role": "assistant", "content": answer}]))
    found = armorm(folder).rewards(*ASK)
    assert found.tolist() == pytest.approx([reward for reward, _ in expected], rel=1e-4, abs=1e-4)
    assert found.std() > 0.1
    weights = {"helpsteer-verbosity": -0.5, "code-readability": 2.0}
    fixed = armorm(folder, labels=weights).rewards(*ASK)
    mixed = [sum(weights.get(name, 0) * one for name, one in zip(SCORES, each, strict=True)) for _, each in expected]
    assert fixed.tolist() == pytest.approx(mixed, rel=1e-4, abs=1e-4)


def test_what_is_no_armorm_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"an ArmoRM has no score helpful: choose from helpsteer-helpfulness, "):
        armorm(folder, labels={"helpful": 1.0})
    with pytest.raises(InputError, match=r"has 3 scores, and an ArmoRM has 19"):
        armorm(random_model("llama", tmp_path / "few", auto=GatedReward, num_objectives=3, gating_hidden_dim=4))
    with pytest.raises(InputError, match=r"has no weights for gating.*it was not trained for preference=armorm"):
        armorm(random_model("llama", tmp_path / "plain", num_labels=1))
    changing = LLAMA_3.replace("{{ m.role }}", "{{ messages | length }}")
    with pytest.raises(RunError, match=r"writes a prompt differently once an answer follows"):
        armorm(folder, chat_template=changing).rewards(*ASK)
