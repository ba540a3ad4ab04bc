"""The plan counts preference models as they are held, and a pass as torch's own allocator reports it."""

from pathlib import Path
from typing import Any

import pytest
from helpers import load_policy
from published_models import random_causal, random_model
from test_memory import measured_peak

from alignrun import cli
from alignrun.config import AdapterKind, Config
from alignrun.launch.compose import compose
from alignrun.models.published import TokenRow
from alignrun.planning import automatic, plan
from alignrun.planning.automatic import Fit
from alignrun.planning.judges import Judge, judges
from alignrun.planning.plan import make_plan
from alignrun.preferences.base import build_preference

WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 5, "head_dim": 32}
SMOKE = ["experiment=smoke", "data.max_prompt_tokens=40", "generation.max_new_tokens=24"]
JUDGE = ["preference.dtype=float32", "preference.device=cpu", "preference.batch_tokens=1024"]


def planned(*overrides: str) -> Config:
    return compose([*SMOKE, *overrides])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("judges")
    labels = {"id2label": {0: "helpful", 1: "brief"}, "label2id": {"helpful": 0, "brief": 1}}
    encoder = {key: value for key, value in WIDE.items() if key != "head_dim"}
    return {
        "reward": random_model("qwen3", folder / "reward", **WIDE, **labels),
        "encoder": random_model("deberta", folder / "encoder", num_labels=1, **encoder),
        "pair": random_causal("llama", folder / "pair", **WIDE),
    }


@pytest.mark.parametrize(
    ("name", "folder", "extra"),
    [
        ("reward_model", "reward", ["preference.labels={helpful: 1}"]),
        ("reward_model", "encoder", []),
        ("pair_model", "pair", []),
    ],
)
def test_a_judge_is_planned_as_it_is_held(name: str, folder: str, extra: list[str], folders: dict[str, Path]) -> None:
    config = planned(f"preference={name}", f"preference.path={folders[folder]}", *JUDGE, *extra)
    (judge,) = make_plan(config).judges
    preference: Any = build_preference(config.preference)
    published = preference._published
    assert judge.weights == sum(weight.nbytes for weight in published.model.parameters())
    tokens = 40 + (2 if name == "pair_model" else 1) * 24
    rows = [
        TokenRow((*[5 + number] * (tokens - 1), 7), (0,) * tokens * (folder == "encoder"))
        for number in range(1024 // tokens)
    ]
    forward = preference.forward if name == "pair_model" else preference._scores
    pad = preference.padding if name == "pair_model" else preference._padding
    width = 2 if extra else 1
    measured = measured_peak(lambda: published.read(rows, forward, pad, width))
    assert judge.passing == pytest.approx(measured, rel=0.2)


def test_a_panel_counts_what_is_shared_once(folders: dict[str, Path], tmp_path: Path) -> None:
    pairs, trained = tmp_path / "pairs.jsonl", tmp_path / "trained"
    pairs.write_text("".join(f'{{"prompt": "{n}?", "chosen": "yes {n}", "rejected": "no"}}\n' for n in range(4)))
    data = ["data=jsonl", f"data.path={pairs}", f"data.eval_path={pairs}", "preference=none", "train.steps=1"]
    assert cli.main(["experiment=smoke", "algo=reward_model", *data, f"run.dir={trained}"]) == 0
    scores = "name: reward_model, path: {}, dtype: float32, labels".format(folders["reward"])
    members = (
        f"{{helpful: {{{scores}: {{helpful: 1}}}}, brief: {{{scores}: {{brief: 1}}}}, letters: {{name: letters}}, "
        f"run: {{name: bradley_terry, path: {trained}}}, again: {{name: reward_model, path: {trained}}}}}"
    )
    panel = ["preference=panel", f"preference.members={members}"]
    helpful, brief, run, again = judges(planned(*panel), 40)
    (alone,) = judges(planned("preference=reward_model", f"preference.path={folders['reward']}", *JUDGE), 40)
    assert (helpful.weights, brief.weights, brief.shared) == (alone.weights, 0, True)
    policy, _ = load_policy()
    adapter = sum(weight.numel() for name, weight in policy.model.named_parameters() if ".policy." in name) * 4
    head = policy.model.config.hidden_size * 4
    assert run.weights == again.weights == adapter + head
    assert run.shared
    assert again.passing > 0
    # On another base, or where the policy's weights are trained themselves, the first holds a base of its own.
    for other in (["seed=1"], ["adapter=none"]):
        *_, first, second = judges(planned(*panel, *other), 40)
        base = sum(weight.nbytes for name, weight in policy.model.named_parameters() if ".lora_" not in name)
        assert (first.weights, second.weights) == (adapter + head + base, adapter + head)


def test_presets_are_planned_without_a_network() -> None:
    def judge(*overrides: str) -> Judge:
        (found,) = judges(planned(*overrides), 40)
        return found

    whole = judge("preference=skywork_v2").weights
    assert whole == 2 * 7_504_928_768  # Llama 3.1 8B with a score in place of its vocabulary head
    moved = judge("preference=skywork_v2", "preference.quantize=nf4", "preference.device=cuda:1")
    assert moved.weights == pytest.approx(whole * 0.3, rel=0.04)
    assert moved.device == "cuda:1"
    assert judge("preference=rlhflow_pair").weights == 2 * 8_030_261_248
    assert judge("preference=pairrm", "preference.dtype=float16").weights == pytest.approx(2 * 436e6, rel=0.01)


def test_a_judge_elsewhere_or_unknown_is_said(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = f"a: {{name: reward_model, path: {folders['pair']}, device: 'cuda:1'}}"
    served = "c: {name: reward_server, url: 'http://here:1', model: m}"
    members = f"preference.members={{{elsewhere}, b: {{name: pair_model, path: no/b}}, {served}}}"
    assert cli.main(["plan", *SMOKE, "preference=panel", members]) == 0
    said = capsys.readouterr().out
    assert "weights of preference.members.a (on cuda:1, not in the peak)" in said
    assert "judging: activations" not in said
    assert "preference.members.b is not counted: the configuration of no/b is not on this machine" in said
    assert "preference.members.c is not counted: http://here:1 serves it" in said


def test_less_fits_next_to_a_judge_and_nothing_where_its_pass_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    config = planned()

    def fit(*found: Judge) -> Fit:
        monkeypatch.setattr(plan, "judges", lambda *_: list(found))
        return automatic.largest_batches(config, (AdapterKind.lora,), (0.05,))[AdapterKind.lora][0]

    alone, mib = fit(), 1 << 20
    judged = fit(Judge("preference", 20 * mib, 10 * mib))
    assert alone.learned > judged.learned > 0 < judged.drawn < alone.drawn
    assert fit(Judge("preference", 20 * mib, 30 * mib)) == Fit(0, 0)
    assert fit(Judge("preference", 20 * mib, 30 * mib, device="cuda:1")) == alone
