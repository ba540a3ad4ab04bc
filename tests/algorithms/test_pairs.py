"""DPO, IPO and GPO on a whole model: values and gradients against full logits without caches, sharing or padding."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import load_policy, random_batch

from alignrun.algorithms.base import Algorithm, Tools, discover
from alignrun.algorithms.common import reference_cache
from alignrun.algorithms.common.batches import rows
from alignrun.data.trimming import trim
from alignrun.launch.build import assemble
from alignrun.launch.compose import compose
from alignrun.preferences.none import NoPreference
from alignrun.types import Completions, PairBatch, PromptBatch

LABELS = (1.0, 0.5, 2 / 3, 1.0)


def pair_batch(policy, pairs: int = 4, tokens: int = 6) -> PairBatch:
    prompts, _ = random_batch(policy, prompts=pairs)
    _, completions = random_batch(policy, prompts=2 * pairs, tokens=tokens, seed=1)
    shaped = Completions(completions.tokens.unflatten(0, (pairs, 2)), completions.mask.unflatten(0, (pairs, 2)))
    return PairBatch(prompts, shaped, torch.tensor(LABELS[:pairs]))


def make(name: str, *overrides: str) -> Algorithm:
    policy, config = load_policy(f"algo={name}", *overrides)
    return discover()[name](config.algo, Tools(policy, NoPreference(), config))


def plain_margin(model, batch: PairBatch, row: int, *, mean: bool = False) -> torch.Tensor:
    """log π(chosen) − log π(rejected) from the model's own logits, one row at a time."""
    prompt = batch.prompts.input_ids[row][batch.prompts.attention_mask[row].bool()]
    sums = []
    for side in range(2):
        completion = batch.completions.tokens[row, side][batch.completions.mask[row, side]]
        logits = model(input_ids=torch.cat([prompt, completion])[None], use_cache=False).logits[0]
        scores = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, completion[:, None])
        sums.append(scores.mean() if mean else scores.sum())
    return sums[0] - sums[1]


FORMULAS = {
    "dpo": lambda h, p: -p * math.log(1 / (1 + math.exp(-0.1 * h))) - (1 - p) * math.log(1 / (1 + math.exp(0.1 * h))),
    "ipo": lambda h, p: p * (h - 5) ** 2 + (1 - p) * (h + 5) ** 2,
    "gpo": lambda h, p: p * max(0, 1 - 0.1 * h) + (1 - p) * max(0, 1 + 0.1 * h),
}


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
def test_the_loss_is_the_formula_on_full_logits(name: str, mean: bool) -> None:
    overrides = ["algo.surrogate=hinge"] if name == "gpo" else []
    algorithm = make(name, *overrides, f"algo.length_norm={mean}")
    policy = algorithm.tools.policy
    batch = pair_batch(policy)
    loss = algorithm.loss(batch)
    with torch.no_grad():
        ours = [float(plain_margin(policy.model, batch, row, mean=mean)) for row in range(4)]
        with policy.backbone.frozen(None):
            base = [float(plain_margin(policy.model, batch, row, mean=mean)) for row in range(4)]
    assert max(abs(h - b) for h, b in zip(ours, base, strict=True)) > 1e-3  # the policy is not its reference
    expected = sum(FORMULAS[name](h - b, p) for h, b, p in zip(ours, base, LABELS, strict=True))
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-4)
    assert loss.targets == 4


def test_the_gradient_is_that_of_full_logits() -> None:
    algorithm = make("ipo")
    policy = algorithm.tools.policy
    batch = pair_batch(policy)
    weights = list(policy.trainable().values())
    ours = torch.autograd.grad(algorithm.loss(batch).total, weights)
    with torch.no_grad(), policy.backbone.frozen(None):
        base = [plain_margin(policy.model, batch, row) for row in range(4)]
    total = sum(
        p * (h - 5).square() + (1 - p) * (h + 5).square()
        for p, h in ((p, plain_margin(policy.model, batch, row) - base[row]) for row, p in enumerate(LABELS))
    )
    for mine, plain in zip(ours, torch.autograd.grad(total, weights), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))


def test_a_shared_prompt_gives_the_same_loss_and_gradient_as_one_row_for_each_completion() -> None:
    shared, apart = make("dpo"), make("dpo", "model.gradient_checkpointing=true")
    batch = pair_batch(shared.tools.policy)
    gradients = []
    for algorithm in (shared, apart):
        loss = algorithm.loss(batch).total
        gradients.append((loss.detach(), torch.autograd.grad(loss, list(algorithm.tools.policy.trainable().values()))))
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=1e-5, atol=1e-6)
    for one, other in zip(gradients[0][1], gradients[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_micro_batches_add_up_and_trimming_changes_nothing() -> None:
    algorithm = make("dpo")
    batch = pair_batch(algorithm.tools.policy)
    batch = replace(batch, completions=Completions(*(pad_columns(part, 3) for part in unpack(batch.completions))))
    whole = algorithm.loss(batch)
    parts = [algorithm.loss(trim(rows(batch, slice(start, start + 2)))) for start in (0, 2)]
    assert trim(rows(batch, slice(0, 2))).completions.tokens.shape[2] == 6
    torch.testing.assert_close(whole.total, parts[0].total + parts[1].total)
    for name, value in whole.metrics.items():
        torch.testing.assert_close(value, parts[0].metrics[name] + parts[1].metrics[name], rtol=1e-4, atol=1e-4)


def unpack(completions: Completions) -> tuple[torch.Tensor, torch.Tensor]:
    return completions.tokens, completions.mask


def pad_columns(tensor: torch.Tensor, columns: int) -> torch.Tensor:
    return torch.nn.functional.pad(tensor, (0, columns))


def test_swapping_a_pair_and_its_label_changes_nothing() -> None:
    algorithm = make("dpo", "algo.label_smoothing=0.1")
    batch = pair_batch(algorithm.tools.policy)
    flipped = Completions(batch.completions.tokens.flip(1), batch.completions.mask.flip(1))
    swapped = replace(batch, completions=flipped, labels=1 - batch.labels)
    torch.testing.assert_close(algorithm.loss(batch).total, algorithm.loss(swapped).total, rtol=1e-5, atol=1e-5)


def test_metrics_are_those_that_people_know() -> None:
    algorithm = make("dpo")
    policy = algorithm.tools.policy
    batch = pair_batch(policy)
    metrics = algorithm.loss(batch).metrics
    with torch.no_grad():
        ours = [float(plain_margin(policy.model, batch, row)) for row in range(4)]
        with policy.backbone.frozen(None):
            base = [float(plain_margin(policy.model, batch, row)) for row in range(4)]
    margins = [0.1 * (h - b) for h, b in zip(ours, base, strict=True)]
    assert float(metrics["rewards/margin"]) == pytest.approx(sum(margins), abs=1e-4)
    right = sum(float(margin > 0) for margin, label in zip(margins, LABELS, strict=True) if label != 0.5)
    assert float(metrics["accuracy"]) == pytest.approx(right + 0.5)  # the tie counts half
    difference = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    torch.testing.assert_close(difference, metrics["rewards/margin"])


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    texts = [(f"Question {n}?", "yes " * (n % 3 + 1), "no, never") for n in range(6)]
    path.write_text("\n".join(json.dumps({"prompt": x, "chosen": y, "rejected": z}) for x, y, z in texts))
    return path


class TestPrecomputedReference:
    def overrides(self, path: Path) -> list[str]:
        given = ["experiment=smoke", "algo=dpo", "data=jsonl", f"data.path={path}", f"data.eval_path={path}"]
        return [*given, "preference=none", "algo.precompute_reference=true"]

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("ALIGNRUN_CACHE", str(tmp_path / "cache"))
        return tmp_path / "cache" / "reference"

    def test_the_loss_is_the_same(self, pairs_file: Path) -> None:
        ahead = assemble(compose(self.overrides(pairs_file)))
        fresh = assemble(compose([*self.overrides(pairs_file), "algo.precompute_reference=false"]))
        one, other = ahead.data.batch_at(0, 4), fresh.data.batch_at(0, 4)
        assert one.reference is not None
        assert other.reference is None
        for assembly in (ahead, fresh):
            with torch.no_grad():
                for weight in assembly.trained.trainable().values():
                    weight += 0.1
        torch.testing.assert_close(
            ahead.algorithm.loss(one).total, fresh.algorithm.loss(other).total, rtol=1e-5, atol=1e-5
        )

    def test_it_is_computed_once_and_read_after_that(
        self, pairs_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = assemble(compose(self.overrides(pairs_file)))
        files = sorted(cache.iterdir())
        assert files

        def never(*_: object) -> torch.Tensor:
            raise AssertionError("computed again")

        monkeypatch.setattr(reference_cache, "_compute", never)
        second = assemble(compose([*self.overrides(pairs_file), "algo.kl_tau=0.5"]))
        assert torch.equal(first.data.batch_at(0, 6).reference, second.data.batch_at(0, 6).reference)
        assert sorted(cache.iterdir()) == files
        with pytest.raises(AssertionError, match="computed again"):  # another base
            assemble(compose([*self.overrides(pairs_file), "seed=1"]))
        pairs_file.write_text(pairs_file.read_text().replace("never", "no"))
        with pytest.raises(AssertionError, match="computed again"):  # other tokens
            assemble(compose(self.overrides(pairs_file)))

    def test_a_damaged_file_is_computed_again(self, pairs_file: Path, cache: Path) -> None:
        first = assemble(compose(self.overrides(pairs_file))).data.batch_at(0, 6)
        for file in cache.iterdir():
            file.write_bytes(b"nonsense")
        again = assemble(compose(self.overrides(pairs_file))).data.batch_at(0, 6)
        assert torch.equal(first.reference, again.reference)


def test_a_batch_stays_where_its_prompts_are(pairs_file: Path) -> None:
    """Sorting a batch by length must carry labels, texts and reference along."""
    given = ["experiment=smoke", "algo=dpo", "data=jsonl", f"data.path={pairs_file}", f"data.eval_path={pairs_file}"]
    assembly = assemble(compose([*given, "preference=none"]))
    batch = assembly.data.batch_at(0, 6)
    assert isinstance(batch.prompts, PromptBatch)
    tokenizer = assembly.trained.tokenizer  # type: ignore[attr-defined]
    for row, text in enumerate(batch.prompts.texts):
        number = int(text.split()[1].rstrip("?"))
        chosen = tokenizer.decode(batch.completions.tokens[row, 0][batch.completions.mask[row, 0]])
        assert chosen.count("yes") == number % 3 + 1
        prompt = tokenizer.decode(batch.prompts.input_ids[row][batch.prompts.attention_mask[row].bool()])
        assert text in prompt
