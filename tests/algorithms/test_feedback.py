"""Reward and preference models: their scores on a whole model, their use as preferences, their files."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from helpers import load_policy, random_batch, refused_smoke
from safetensors.torch import load_file, save_file

from alignrun import cli
from alignrun.errors import InputError
from alignrun.launch.build import assemble
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.models.scorer import Scorer
from alignrun.preferences.base import Preference, build_preference
from alignrun.types import Role

COLOURS = ("red", "blue", "green", "black", "white", "grey")
PAIRS = [(f"Name colour {n}.", colour, colour + " it is not") for n, colour in enumerate(COLOURS)]
KINDS = {"reward_model": "bradley_terry", "preference_model": "learned"}


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": x, "chosen": y, "rejected": z} for x, y, z in PAIRS]
    rows += [{"prompt": x, "chosen": y, "rejected": "no"} for x, y, _ in PAIRS]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def overrides(name: str, path: Path, *more: str) -> list[str]:
    data = ["data=jsonl", f"data.path={path}", f"data.eval_path={path}", "data.eval_size=12"]
    return ["experiment=smoke", f"algo={name}", *data, "preference=none", *more]


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each kind that has learned its twelve pairs."""
    run = tmp_path_factory.mktemp("run") / request.param
    learning = ["train.steps=25", "train.batch_size=12", "train.micro_batch_size=null", "optim.learning_rate=5e-3"]
    assert cli.main([*overrides(request.param, pairs_file, *learning), f"run.dir={run}"]) == 0
    return run


def metrics(run: Path) -> dict[str, float]:
    return dict(json.loads((run / "summary.json").read_text()))


def kind_of(run: Path) -> str:
    return run.name


def preference_on(policy: Policy, run: Path) -> Preference:
    config = compose(["experiment=smoke", f"preference={KINDS[kind_of(run)]}", f"preference.path={run}"])
    return build_preference(config.preference, policy.backbone)


def test_it_learns_and_reports(trained: Path) -> None:
    result = metrics(trained)
    assert result["accuracy"] == 1.0
    assert result["log_loss"] < 0.3
    assert result["length_accuracy"] == 0.5  # half of the chosen are shorter: length is not what was learned
    assert result["over_length"] == 0.5
    assert -1 <= result["over_length_low"] <= 0.5 <= result["over_length_high"] <= 1
    assert result["intransitive"] == 0.0 or kind_of(trained) == "preference_model"
    svg = (trained / "reliability.svg").read_text()
    assert svg.startswith("<?xml")
    assert "perfectly calibrated" in svg


def plain_score(scorer: Scorer, ids: list[int]) -> float:
    hidden = scorer.backbone.model.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
    return float(hidden[0, -1] @ scorer.weight)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("overrides_of_model", [(), ("model.gradient_checkpointing=true",)])
def test_scores_are_those_of_each_text_alone(name: str, overrides_of_model: tuple[str, ...], pairs_file: Path) -> None:
    assembly = assemble(compose(overrides(name, pairs_file, *overrides_of_model)))
    scorer, data = assembly.trained, assembly.data
    assert isinstance(scorer, Scorer)
    with torch.no_grad():
        for weight in scorer.trainable().values():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
        batch = data.batch_at(0, 5)
        scores = assembly.algorithm.scores(batch)  # type: ignore[attr-defined]
        for row in range(5):
            prompt = batch.prompts.input_ids[row][batch.prompts.attention_mask[row].bool()].tolist()
            for side in range(2):
                tail = batch.completions.tokens[row, side][batch.completions.mask[row, side]].tolist()
                assert float(scores[row, side]) == pytest.approx(plain_score(scorer, prompt + tail), abs=2e-3)
    assert scores.std() > 0.01


@torch.no_grad()
def test_as_a_preference_it_says_what_it_was_trained_to_say(trained: Path) -> None:
    policy, _ = load_policy()
    preference = preference_on(policy, trained)
    prompts = [x for x, _, _ in PAIRS]
    chosen, rejected = [y for _, y, _ in PAIRS], [z for _, _, z in PAIRS]
    forward, backward = preference(prompts, chosen, rejected), preference(prompts, rejected, chosen)
    assert (forward > 0.6).all()
    torch.testing.assert_close(forward + backward, torch.ones(len(prompts)), rtol=0, atol=1e-6)
    assert torch.equal(preference(prompts, chosen, chosen), torch.full((len(prompts),), 0.5))


@torch.no_grad()
def test_it_stands_on_the_policys_base_without_touching_the_policy(trained: Path) -> None:
    policy, _ = load_policy()
    prompts, completions = random_batch(policy)
    before = {role: policy.log_probs(role, prompts, completions) for role in (Role.policy, Role.reference)}
    names = list(policy.trainable())
    preference = preference_on(policy, trained)
    texts = [x for x, _, _ in PAIRS], [y for _, y, _ in PAIRS], [z for _, _, z in PAIRS]
    shared = preference(*texts)
    assert "feedback" in policy.backbone.peft.peft_config  # an adapter, not a second copy of the base
    for role in before:
        assert torch.equal(policy.log_probs(role, prompts, completions), before[role])
    assert list(policy.trainable()) == names
    # On a base of its own, since the policy's is another one, it says the same.
    other, _ = load_policy("seed=5")
    apart = preference_on(other, trained)
    assert "feedback" not in other.backbone.peft.peft_config
    torch.testing.assert_close(apart(*texts), shared, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (torch.ones(16, dtype=torch.int64), "holds torch.int64 and not real numbers"),
        (torch.full((16,), float("nan")), "is not finite"),
        (torch.ones(5), r"holds a head of shape \[5\], and this base has hidden states of size"),
    ],
    ids=["int64", "nan", "shape"],
)
def test_a_head_that_cannot_be_used_is_refused(
    trained: Path, head: torch.Tensor, expected: str, tmp_path: Path
) -> None:
    folder = tmp_path / trained.name
    shutil.copytree(trained / "adapter", folder)
    size = len(load_file(folder / "head.safetensors")["head.weight"])
    save_file(
        {"head.weight": head if len(head) == 5 else head[:1].expand(size).contiguous()}, folder / "head.safetensors"
    )
    with pytest.raises(InputError, match=expected):
        preference_on(load_policy()[0], folder)


@torch.no_grad()
def test_a_head_of_another_precision_is_read(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / trained.name
    shutil.copytree(trained / "adapter", folder)
    head = load_file(folder / "head.safetensors")["head.weight"]
    save_file({"head.weight": head.bfloat16()}, folder / "head.safetensors")
    assert preference_on(load_policy()[0], folder)(["x"], ["yes"], ["no"]).isfinite().all()


@torch.no_grad()
def test_two_of_them_on_one_base_keep_apart(trained: Path) -> None:
    texts = [x for x, _, _ in PAIRS], [y for _, y, _ in PAIRS], [z for _, _, z in PAIRS]
    policy, _ = load_policy()
    first = preference_on(policy, trained)
    alone = first(*texts)
    second = preference_on(policy, trained)
    assert {"feedback", "feedback_2"} <= policy.backbone.peft.peft_config.keys()
    for layer in policy.backbone.layers:
        layer.lora_B["feedback"].weight.zero_()
    assert torch.equal(second(*texts), alone)
    assert not torch.allclose(first(*texts), alone, atol=1e-3)


@torch.no_grad()
def test_where_all_weights_are_trained_it_keeps_a_base_of_its_own(trained: Path) -> None:
    policy, _ = load_policy("adapter=none")
    apart = preference_on(policy, trained)
    texts = [x for x, _, _ in PAIRS], [y for _, y, _ in PAIRS], [z for _, _, z in PAIRS]
    assert (apart(*texts) > 0.6).all()


def test_an_online_algorithm_trains_against_it(trained: Path, tmp_path: Path) -> None:
    given = [f"preference={KINDS[kind_of(trained)]}", f"preference.path={trained}", f"run.dir={tmp_path / 'nash'}"]
    small = ["train.batch_size=2", "data.eval_size=4", "generation.max_new_tokens=4", "algo.samples_per_prompt=2"]
    assert cli.main(["experiment=smoke", *small, *given]) == 0
    saved = json.loads((tmp_path / "nash" / "summary.json").read_text())
    assert 0 < saved["win_rate"] < 1
    assert cli.main(["resume", str(tmp_path / "nash"), "train.steps=4"]) == 0


def test_a_killed_run_continues_and_an_exported_model_is_the_same(
    trained: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(trained), "--to", str(tmp_path / "export")]) == 0
    for name in ("adapter_model.safetensors", "head.safetensors", "alignrun.json"):
        assert (tmp_path / "export" / name).read_bytes() == (trained / "adapter" / name).read_bytes()
    assert cli.main(["export", str(trained), "--merge", "--to", str(tmp_path / "merged")]) == 2
    assert "export it without --merge" in capsys.readouterr().err
    name = kind_of(trained)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert cli.main([*overrides(name, pairs_file, "train.steps=4"), f"run.dir={whole}"]) == 0
    constant = "optim.schedule=constant"
    assert cli.main([*overrides(name, pairs_file, "train.steps=4", constant), f"run.dir={tmp_path / 'c'}"]) == 0
    assert cli.main([*overrides(name, pairs_file, "train.steps=2", constant), f"run.dir={halved}"]) == 0
    assert cli.main(["resume", str(halved), "train.steps=4"]) == 0
    adapter = "adapter/adapter_model.safetensors"
    assert (tmp_path / "c" / adapter).read_bytes() == (halved / adapter).read_bytes()
    assert (whole / adapter).read_bytes() != (halved / adapter).read_bytes()


def test_one_random_order_costs_half_and_learns_too(pairs_file: Path, tmp_path: Path) -> None:
    given = ["algo.orders=random", "train.steps=40", "train.batch_size=12", "train.micro_batch_size=null"]
    given.append("optim.learning_rate=5e-3")
    run = tmp_path / "run"
    assert cli.main([*overrides("preference_model", pairs_file, *given), f"run.dir={run}"]) == 0
    assert metrics(run)["accuracy"] > 0.9


class TestWrongPaths:
    def test_nothing_there(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        error = refused_smoke(capsys, tmp_path, "preference=learned", "preference.path=nowhere")
        assert "nowhere does not exist" in error
        assert "algo=preference_model" in error

    def test_the_other_kind(self, trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        wrong = {"reward_model": "learned", "preference_model": "bradley_terry"}[kind_of(trained)]
        error = refused_smoke(capsys, tmp_path, f"preference={wrong}", f"preference.path={trained}")
        assert f"use preference={KINDS[kind_of(trained)]}" in error

    def test_a_policy(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert cli.main(["experiment=smoke", f"run.dir={tmp_path / 'policy'}"]) == 0
        error = refused_smoke(capsys, tmp_path, "preference=learned", f"preference.path={tmp_path / 'policy'}")
        assert "holds no preference model" in error

    def test_a_card_that_names_another_base(
        self, trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        import shutil

        copy = tmp_path / "copy"
        shutil.copytree(trained / "adapter", copy)
        card = json.loads((copy / "alignrun.json").read_text())
        (copy / "alignrun.json").write_text(json.dumps(card | {"base": "0" * 64}))
        name = KINDS[kind_of(trained)]
        error = refused_smoke(capsys, tmp_path, f"preference={name}", f"preference.path={copy}")
        assert "trained on another base" in error
        (copy / "alignrun.json").write_text("{")
        assert "is damaged" in refused_smoke(capsys, tmp_path, f"preference={name}", f"preference.path={copy}")
        (copy / "alignrun.json").write_text(json.dumps(card))
        (copy / "head.safetensors").write_bytes(b"")
        assert "head.safetensors" in refused_smoke(capsys, tmp_path, f"preference={name}", f"preference.path={copy}")

    def test_as_a_reference(self, trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        error = refused_smoke(capsys, tmp_path, "reference=adapter", f"reference.path={trained}")
        assert "model and not a policy" in error

    def test_online_without_a_preference(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert "algo=nash_md needs a preference" in refused_smoke(capsys, tmp_path, "preference=none")


def test_soft_labels_are_met(pairs_file: Path, tmp_path: Path) -> None:
    """With one pair and a label of ⅔, the model ends at ⅔, not at 1."""
    path = tmp_path / "soft.jsonl"
    rows = [{"prompt": "p", "chosen": "yes", "rejected": "no", "a": 1, "b": 1, "c": 2}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    run = tmp_path / "run"
    given = ["data.columns.votes=[a,b,c]", "train.steps=60", "train.batch_size=1", "train.micro_batch_size=1"]
    assert cli.main([*overrides("preference_model", path, *given, "optim.learning_rate=3e-3"), f"run.dir={run}"]) == 0
    result = metrics(run)
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert result["label_entropy"] == pytest.approx(entropy, abs=1e-6)
    assert result["log_loss"] == pytest.approx(entropy, abs=2e-3)
    assert result["ece"] < 0.03
