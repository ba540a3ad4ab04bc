"""Preference models that embed each completion: cycles are learned, K completions cost K passes."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import load_policy, refused_smoke
from safetensors.torch import save_file

from alignrun import cli
from alignrun.errors import InputError
from alignrun.launch.compose import compose
from alignrun.models.scorer import Scorer
from alignrun.objectives.preference import bradley_terry_loss, skew_logits
from alignrun.preferences.base import build_preference

CYCLE = ["alpha", "beta", "gamma", "delta"]
"""Each beats the next, and the last the first."""
PROMPTS = [f"Which {number}?" for number in range(4)]
EMBEDDING = ["algo=preference_model", "algo.head=embedding", "algo.embedding_size=4"]


def test_the_logit_is_a_skew_symmetric_form() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1000, 6, generator=generator)
    scales = torch.rand(1000, 3, generator=generator)
    matrix = torch.block_diag(*[torch.tensor([[0.0, 1.0], [-1.0, 0.0]])] * 3)
    torch.testing.assert_close(skew_logits(first, second), torch.einsum("ni,ij,nj->n", first, matrix, second))
    assert torch.equal(skew_logits(first, second, scales), -skew_logits(second, first, scales))
    assert not skew_logits(first, first).any()


def test_no_reward_orders_a_cycle() -> None:
    pairs = [(one, (one + 1) % 4) for one in range(4)]
    best = max(sum(order[a] > order[b] for a, b in pairs) for order in itertools.permutations(range(4)))
    assert best == 3
    rewards = torch.randn(4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.SGD([rewards], 1.0)
    for _ in range(200):
        optimizer.zero_grad()
        bradley_terry_loss(rewards[torch.tensor(pairs)], torch.ones(4)).sum().backward()
        optimizer.step()
    # What a Bradley-Terry model learns of it is that all are alike, which is right on half of the pairs.
    assert rewards.detach().std() < 1e-3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cycle")
    rows = [
        {"prompt": prompt, "chosen": one, "rejected": other}
        for prompt in PROMPTS
        for one, other in zip(CYCLE, [*CYCLE[1:], CYCLE[0]], strict=True)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ["data=jsonl", f"data.path={folder / 'pairs.jsonl'}", f"data.eval_path={folder / 'pairs.jsonl'}"]
    learning = ["train.steps=40", "train.batch_size=16", "train.micro_batch_size=16", "optim.learning_rate=5e-3"]
    given = ["experiment=smoke", "data.eval_size=16", *data, "preference=none", *learning]
    assert cli.main([*given, "algo=reward_model", f"run.dir={folder / 'reward'}"]) == 0
    assert cli.main([*given, *EMBEDDING, f"run.dir={folder / 'embedding'}"]) == 0
    return folder / "embedding"


def test_a_cycle_is_learned_where_a_reward_cannot(run: Path) -> None:
    accuracy, reward = (
        json.loads((path / "summary.json").read_text())["accuracy"] for path in (run, run.parent / "reward")
    )
    assert accuracy == 1.0
    assert reward <= 0.75


def test_k_completions_cost_k_passes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = load_policy()
    preference = build_preference(
        compose(["experiment=smoke", "preference=learned", f"preference.path={run}"]).preference, policy.backbone
    )
    read: list[int] = []
    scores = Scorer.scores

    def counting(self: Scorer, prompts: object, completions: object) -> torch.Tensor:
        found = scores(self, prompts, completions)  # type: ignore[arg-type]
        read.append(len(found))
        return found

    monkeypatch.setattr(Scorer, "scores", counting)
    first, second = (list(side) for side in zip(*itertools.product(CYCLE, repeat=2), strict=True))
    table = preference([PROMPTS[0]] * 16, first, second).reshape(4, 4)
    assert sum(read) == 4
    torch.testing.assert_close(table + table.T, torch.ones(4, 4), rtol=0, atol=2**-23)
    assert torch.equal(table.diagonal(), torch.full((4,), 0.5))
    assert all(table[one, (one + 1) % 4] > 0.9 for one in range(4))


@pytest.mark.parametrize("shape", [(64,), (3, 64), (0, 64), (4, 5), (2, 4, 64)])
def test_a_head_of_another_shape_is_refused(run: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(run / "adapter", copy)
    save_file({"head.weight": torch.ones(shape)}, copy / "head.safetensors")
    policy, _ = load_policy()
    section = compose(["experiment=smoke", "preference=learned", f"preference.path={copy}"]).preference
    with pytest.raises(InputError, match=re.escape(f"holds a head of shape {list(shape)}")):
        build_preference(section, policy.backbone)


def test_bad_settings_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for setting, said in (
        ("algo.embedding_size=3", "must be even and at least 2, not 3"),
        ("algo.temperature=0", "algo.temperature must be positive"),
        ("algo.embedding_template=x", "algo.embedding_template must hold {prompt}, {completion}"),
    ):
        assert said in refused_smoke(
            capsys, tmp_path, *EMBEDDING, "preference=none", "data=pandalm", "data.path=x", setting
        )
