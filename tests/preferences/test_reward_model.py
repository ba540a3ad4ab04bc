"""Published reward models: the scores are those of transformers' own pipeline, on the same conversation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import load_policy
from published_models import CONFIGS, random_causal, random_model
from transformers import AutoTokenizer, pipeline

from alignrun import cli
from alignrun.config import LongText, Precision, Quantize
from alignrun.errors import InputError, RunError
from alignrun.launch.compose import compose
from alignrun.preferences.base import build_preference
from alignrun.preferences.reward_model import PublishedReward, RewardModelConfig, build, check
from alignrun.run.trust import check_own
from alignrun.types import Prompt

TALK = Prompt(
    "user: Hi\n\nassistant: Hello.\n\nuser: And?",
    (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And?"},
    ),
)
PROMPTS = ["How are you?", "How are you?", TALK, "x"]
ANSWERS = ["Well.", "I am well, thank you, and how are you?", "Nothing", ""]


def scores(folder: Path, prompts: list[Any] = PROMPTS, answers: list[str] = ANSWERS, **values: Any) -> torch.Tensor:
    preference = build(RewardModelConfig(path=str(folder), dtype=Precision.float32, device="cpu", **values))
    assert isinstance(preference, PublishedReward)
    return preference.rewards(prompts, answers)


@pytest.mark.parametrize("kind", CONFIGS)
def test_scores_are_those_of_the_pipeline(kind: str, tmp_path: Path) -> None:
    folder = random_model(kind, tmp_path, num_labels=1)
    pipe = pipeline("text-classification", str(folder), function_to_apply="none", device="cpu", dtype=torch.float32)
    expected = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        turns = [*(prompt.turns if isinstance(prompt, Prompt) else [{"role": "user", "content": prompt}])]
        asked: Any = {"text": str(prompt), "text_pair": answer}
        if pipe.tokenizer.chat_template:
            text = pipe.tokenizer.apply_chat_template(
                [*turns, {"role": "assistant", "content": answer}], tokenize=False
            )
            asked = text.removeprefix("<bos>")  # which the pipeline puts first itself
        (found,) = [pipe(asked)] if isinstance(asked, dict) else pipe([asked])
        expected.append(found["score"])
    found = scores(folder)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert found.std() > 2e-3  # far more than the tolerance
    # One text at a time, or as many as there are: the same.
    torch.testing.assert_close(scores(folder, batch_tokens=1), found, rtol=1e-4, atol=1e-5)


def test_a_decoder_without_padding_token_reads_the_last_token(tmp_path: Path) -> None:
    folder = random_model("llama", tmp_path, num_labels=1)
    alone = torch.cat([scores(folder, [p], [a]) for p, a in zip(PROMPTS, ANSWERS, strict=True)])
    torch.testing.assert_close(scores(folder), alone, rtol=1e-4, atol=1e-5)


def test_names_of_special_tokens_stay_text(tmp_path: Path) -> None:
    for kind, mark in (("llama", "<|im_end|>"), ("deberta", "[SEP]")):
        folder = random_model(kind, tmp_path / kind, num_labels=1)
        preference = build(RewardModelConfig(path=str(folder), device="cpu"))
        assert isinstance(preference, PublishedReward)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        plain, marked = (preference._encoder.encode("Hi", f"a{text}b").ids for text in ("", mark))
        count = tokenizer.convert_tokens_to_ids(mark)
        assert plain.count(count) == marked.count(count)
        assert len(marked) == len(plain) + len(mark)
        if kind == "llama":
            assert marked.count(tokenizer.bos_token_id) == 1


def test_several_scores_are_weighted_by_name(tmp_path: Path) -> None:
    labels = {"id2label": {0: "helpful", 1: "honest", 2: "brief"}, "label2id": {"helpful": 0, "honest": 1, "brief": 2}}
    folder = random_model("qwen3", tmp_path, **labels)
    parts = {name: scores(folder, labels={name: 1.0}) for name in ("helpful", "brief")}
    torch.testing.assert_close(
        scores(folder, labels={"helpful": 2.0, "brief": -0.5}), 2 * parts["helpful"] - 0.5 * parts["brief"]
    )
    with pytest.raises(InputError, match=r"has 3 scores: weight them, as in preference.labels='\{helpful: 1\}'"):
        scores(folder)
    with pytest.raises(InputError, match="has no score kind: choose from helpful, honest, brief"):
        scores(folder, labels={"kind": 1.0})


def test_long_texts_are_an_error_or_counted(tmp_path: Path) -> None:
    folder = random_model("qwen3", tmp_path, num_labels=1, max_position_embeddings=64)
    long = "a" * 100
    with pytest.raises(
        RunError, match=r"reward_model reads 64 tokens, and a prompt with what it judges has 1\d\d: lower"
    ):
        scores(folder, ["Hi"], [long])
    preference = build(RewardModelConfig(path=str(folder), device="cpu", too_long=LongText.skip))
    assert isinstance(preference, PublishedReward)
    assert preference(["Hi", "Hi"], [long, "a"], ["b", "b"])[0] == 0.5
    assert preference.counts() == {"reward_model/asked": 3, "reward_model/too_long": 1}
    first, middle, other, alone = preference.log_odds(["Hi", "Hi", "Hi", "Ho"], ["a", long, "b", long]).tolist()
    assert middle == pytest.approx((first + other) / 2, abs=1e-5)
    assert alone == 0


def test_what_cannot_judge_is_refused_in_one_line(tmp_path: Path) -> None:
    causal = random_causal("llama", tmp_path / "causal")
    with pytest.raises(InputError, match=r"has no weights for score.weight: it was not trained for preference=reward"):
        scores(causal)
    bare = random_model("qwen3", tmp_path / "bare", num_labels=1)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=r"no chat template and takes no pairs: give preference\.chat_template"):
        scores(bare)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert scores(bare, chat_template=template).isfinite().all()
    (bare / "model.safetensors").rename(bare / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"the weights of .* cannot be loaded"):
        scores(bare, chat_template=template)
    with pytest.raises(InputError, match="quantize=nf4 needs a CUDA GPU"):
        scores(causal, quantize=Quantize.nf4)
    for path, words in ((tmp_path / "nothing", "is not a folder"), (tmp_path, "has no config.json")):
        with pytest.raises(InputError, match=words):
            check(RewardModelConfig(path=str(path)))
    with pytest.raises(RunError, match="ends with the assistant"):
        scores(random_model("qwen3", tmp_path / "whole", num_labels=1), [Prompt("x", TALK.turns[:2])], ["a"])


def test_a_stored_configuration_of_others_loads_nothing_from_elsewhere() -> None:
    stored = {"preference": {"name": "reward_model", "path": "someone/model", "trust_remote_code": True}}
    with pytest.raises(InputError, match=r"run code of the model .*load a model from elsewhere \(preference.path"):
        check_own(stored, "", "run", ("preference",))
    shipped = {"preference": {"name": "reward_model", "path": compose(["preference=skywork_v2"]).preference.path}}
    check_own(shipped, "", "run", ("preference",))


def test_a_run_is_judged_by_a_published_model_and_by_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, trained = random_model("qwen3", tmp_path / "model", num_labels=1), tmp_path / "trained"
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(f'{{"prompt": "{n}?", "chosen": "yes {n}", "rejected": "no"}}\n' for n in range(4)))
    smoke = ["experiment=smoke", "train.steps=1"]
    data = ["data=jsonl", f"data.path={pairs}", f"data.eval_path={pairs}", "preference=none"]
    assert cli.main([*smoke, "algo=reward_model", *data, f"run.dir={trained}"]) == 0
    chosen = ["preference=reward_model", f"preference.path={folder}"]
    assert cli.main([*smoke, *chosen, f"run.dir={tmp_path / 'run'}"]) == 0
    assert '"feedback model"' in (tmp_path / "run" / "pins.json").read_text()
    policy, _ = load_policy()
    asked = (["0?", "1?"], ["yes 0", "no"], ["no", "yes 1"])
    either = (["preference=reward_model"], ["preference=bradley_terry"])
    one, other = (
        build_preference(compose([*name, f"preference.path={trained}"]).preference, policy.backbone)(*asked)
        for name in either
    )
    assert torch.equal(one, other)
    capsys.readouterr()
    assert cli.main([*smoke, *chosen[:1], f"preference.path={trained}", "preference.quantize=nf4"]) == 2
    assert "preference.quantize is for published models" in capsys.readouterr().err
