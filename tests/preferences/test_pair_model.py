"""Models that read both answers: their published formats to the token, and antisymmetry by construction."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published_models import byte_tokens, random_causal, random_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DebertaV2Config

from alignrun.config import LongText, Precision
from alignrun.errors import InputError, RunError
from alignrun.launch import compose
from alignrun.models.pair_ranker import PairRanker
from alignrun.planning.plan import make_plan
from alignrun.preferences.base import build_preference
from alignrun.preferences.pair_model import PairAnswersConfig, PairModel, PairModelConfig
from alignrun.types import Prompt

PROMPTS = ["Say {first}!", "How are you?", "x"]
FIRST, SECOND = ["Well {second}", "I am well.", "same"], ["No", "I am not well, I am afraid.", "same"]
PUBLISHED_TURNS = (
    "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n {{ message['content'] }}"
    "{% else %}\n\n<turn> assistant\n {{ message['content'] }}{% endif %}{% endfor %}\n\n\n"
)


def preset(name: str, folder: Path, **values: object) -> object:
    section = compose.compose([f"preference={name}"]).preference
    return replace(section, path=str(folder), dtype=Precision.float32, device="cpu", **values)


def check_symmetry(preference: object) -> torch.Tensor:
    forward, backward = preference(PROMPTS, FIRST, SECOND), preference(PROMPTS, SECOND, FIRST)  # type: ignore[operator]
    torch.testing.assert_close(forward + backward, torch.ones(3), rtol=0, atol=2**-23)
    assert forward[2] == 0.5
    assert (forward[:2] - 0.5).abs().min() > 1e-3
    return forward


def test_rlhflow_is_read_as_its_card_says(tmp_path: Path) -> None:
    folder = random_causal("llama", tmp_path, std=1.0)
    found = check_symmetry(build_preference(preset("rlhflow_pair", folder)))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    names = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in "AB"]
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "?"}]
    long = Prompt("user: Hi …", tuple(talk))

    def probability(turns: list[dict[str, str]], one: str, other: str) -> float:
        context = tokenizer.apply_chat_template(turns, chat_template=PUBLISHED_TURNS, tokenize=False)
        text = f"[CONTEXT] {context} [RESPONSE A] {one} [RESPONSE B] {other} \n"
        whole = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
        ids = tokenizer(whole.replace("<bos>", ""), add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0, -1, names]
        return float(logits.softmax(0)[0])

    for prompt, one, other, answer in [*zip(PROMPTS, FIRST, SECOND, found.tolist(), strict=True)]:
        turns = [{"role": "user", "content": prompt}]
        assert answer == pytest.approx(
            (probability(turns, one, other) + 1 - probability(turns, other, one)) / 2, abs=1e-5
        )
    ours = build_preference(preset("rlhflow_pair", folder))([long], ["a"], ["b"])
    assert float(ours) == pytest.approx((probability(talk, "a", "b") + 1 - probability(talk, "b", "a")) / 2, abs=1e-5)


def test_pairrm_is_read_as_its_card_says(tmp_path: Path) -> None:
    tokenizer = byte_tokens("bert")
    ids = {
        f"{name}_prefix_id": tokenizer.convert_tokens_to_ids(f"<|{mark}|>")
        for name, mark in (("source", "source"), ("cand1", "candidate1"), ("cand2", "candidate2"))
    }
    folder = random_model("deberta", tmp_path, auto=PairRanker, std=1.0, n_tasks=1, drop_out=0.05, **ids)
    found = check_symmetry(build_preference(preset("pairrm", folder)))
    model = PairRanker.from_pretrained(folder)

    def logit(prompt: str, one: str, other: str) -> float:
        parts = [f"<|source|>{prompt}", f"<|candidate1|>{one}", f"<|candidate2|>{other}"]
        row = torch.tensor([[token for part in parts for token in tokenizer(part)["input_ids"]]])
        with torch.no_grad():
            encoded = model.pretrained_model(row).last_hidden_state[0]
            source, left, right = (
                encoded[row[0].tolist().index(ids[f"{n}_prefix_id"])] for n in ("source", "cand1", "cand2")
            )
            return float(model.head_layer(torch.cat([source, left])) - model.head_layer(torch.cat([source, right])))

    for *asked, answer in zip(PROMPTS, FIRST, SECOND, found.tolist(), strict=True):
        prompt, one, other = asked
        logits = torch.tensor(logit(prompt, one, other) - logit(prompt, other, one))
        assert answer == pytest.approx(float(torch.sigmoid(logits / 2)), abs=1e-5)
    with pytest.raises(InputError, match="has no marks"):
        build_preference(preset("pairrm", random_model("deberta", tmp_path / "other", auto=PairRanker, n_tasks=1)))
    assert isinstance(model.config, DebertaV2Config)


@pytest.mark.parametrize("name", ["pair_model", "rlhflow_pair", "pairrm", "skywork_v2", "reward_model", "armorm"])
def test_presets_are_composed_and_planned(name: str) -> None:
    config = compose.compose([f"preference={name}", "preference.path=some/model", "experiment=smoke"])
    assert make_plan(config).peak > 0


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    folder = random_causal("qwen3", tmp_path, max_position_embeddings=256)
    plain = PairModelConfig(path=str(folder), dtype=Precision.float32, device="cpu")
    with pytest.raises(InputError, match=r"preference.answers.first='Yes' is 3 tokens for this tokenizer"):
        build_preference(replace(plain, answers=PairAnswersConfig("Yes", "N")))
    with pytest.raises(InputError, match=r"preference.template must hold \{context\}, \{first\}, \{second\}"):
        replace(plain, template="{first} or {second}")
    with pytest.raises(InputError, match="must be different tokens"):
        replace(plain, answers=PairAnswersConfig("A", "A"))
    with pytest.raises(RunError, match="reads 256 tokens"):
        build_preference(plain)(["x"], ["y" * 300], ["z"])
    skipping = build_preference(replace(plain, too_long=LongText.skip))
    assert isinstance(skipping, PairModel)
    assert skipping(["x", "x"], ["y" * 300, "y"], ["z", "z"])[0] == 0.5
    assert skipping.counts() == {"pair_model/asked": 2, "pair_model/too_long": 1}
    with pytest.raises(RunError, match="context_template: the chat template refuses"):
        build_preference(replace(plain, context_template="{{ raise_exception('no') }}"))(["x"], ["y"], ["z"])
