import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import load_policy

from alignrun.data.prompts import PromptSet
from alignrun.evaluation.completions import CompletionCache, Drawing, content_key, draw, score
from alignrun.launch.build import make_encoding
from alignrun.models.policy import Policy
from alignrun.types import Completions, Example, Role

DRAWING = Drawing(samples=3, max_new_tokens=6, temperature=0.8, top_k=0, top_p=1.0, batch_size=2, seed=0)


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    _, config = load_policy()
    texts = ("Hi", "A longer one to read", "Third")
    return PromptSet.build([Example(text, f"row {row}") for row, text in enumerate(texts)], make_encoding(config))


@pytest.mark.parametrize("role", [Role.policy, Role.reference])
def test_scores_are_those_of_each_completion_alone(policy: Policy, prompts: PromptSet, role: Role) -> None:
    drawn = draw(policy, role, prompts, DRAWING, "stream")
    assert [len(row) for row in drawn.texts] == [3, 3, 3]
    for x, batch in enumerate(prompts.all_batches(1)):
        for k, ids in enumerate(drawn.tokens[x]):
            tokens = torch.tensor([ids])
            alone = policy.log_probs(role, batch, Completions(tokens, torch.ones_like(tokens, dtype=torch.bool)), 0.8)
            assert drawn.log_probs[x][k] == pytest.approx(alone.sum().item(), abs=1e-4)
            assert drawn.ends[x][k] == (ids[-1] in policy.stop_ids)
            text = policy.tokenizer.decode(ids, skip_special_tokens=True).strip()
            assert drawn.texts[x][k] == text


def test_the_policy_and_the_reference_score_differently(policy: Policy, prompts: PromptSet) -> None:
    drawn = draw(policy, Role.policy, prompts, DRAWING, "stream")
    under_reference = score(policy, Role.reference, prompts, drawn.tokens, DRAWING)
    assert np.abs(np.array(drawn.log_probs) - under_reference).min() > 1e-3
    # The mean of log π − log μ over π's own samples is an estimate of KL(π‖μ), which is positive.
    many = replace(DRAWING, samples=64)
    drawn = draw(policy, Role.policy, prompts, many, "stream")
    assert (np.array(drawn.log_probs) - score(policy, Role.reference, prompts, drawn.tokens, many)).mean() > 0


def test_draws_depend_on_the_stream_and_the_seed_alone(policy: Policy, prompts: PromptSet) -> None:
    first = draw(policy, Role.policy, prompts, DRAWING, "a")
    assert draw(policy, Role.policy, prompts, DRAWING, "a") == first
    assert draw(policy, Role.policy, prompts, DRAWING, "b").tokens != first.tokens
    assert draw(policy, Role.policy, prompts, replace(DRAWING, seed=1), "a").tokens != first.tokens


def test_the_key_follows_all_that_completions_depend_on(prompts: PromptSet) -> None:
    policy, _ = load_policy()
    policy.tokenizer = copy.deepcopy(policy.tokenizer)  # byte tokenizers share what is added to one of them
    key = content_key(policy, Role.policy, prompts, DRAWING)
    assert key == content_key(policy, Role.policy, prompts, DRAWING)
    others = [content_key(policy, Role.reference, prompts, DRAWING)]
    for field, value in (("samples", 2), ("max_new_tokens", 5), ("temperature", 1.0), ("top_k", 3), ("top_p", 0.5)):
        others.append(content_key(policy, Role.policy, prompts, replace(DRAWING, **{field: value})))
    others.append(content_key(policy, Role.policy, replace(prompts, encoded=prompts.encoded[::-1]), DRAWING))
    begun = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
    policy.tokenizer.chat_template = begun
    others.append(content_key(policy, Role.policy, prompts, DRAWING))
    policy.tokenizer.chat_template = None
    policy.tokenizer.add_tokens(["<new>"])
    others.append(content_key(policy, Role.policy, prompts, DRAWING))
    weight = next(iter(policy.trainable().values()))
    with torch.no_grad():
        weight[0, 0] += 1e-6
    others.append(content_key(policy, Role.policy, prompts, DRAWING))
    assert None not in others
    assert len({key, *others}) == len(others) + 1


def test_without_an_adapter_the_smallest_change_of_a_weight_shows(prompts: PromptSet) -> None:
    policy, _ = load_policy("adapter=none")
    before = policy.fingerprint(Role.policy)
    reference = policy.fingerprint(Role.reference)
    weight = next(iter(policy.trainable().values()))
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert policy.fingerprint(Role.policy) != before
    assert policy.fingerprint(Role.reference) == reference


def test_the_cache_gives_back_what_was_made_and_survives_damage(
    policy: Policy, prompts: PromptSet, tmp_path: Path
) -> None:
    made = []

    def make():
        made.append(1)
        return draw(policy, Role.policy, prompts, DRAWING, "s")

    cache = CompletionCache(tmp_path / "deep" / "cache")
    first = cache.drawn("k", make)
    assert CompletionCache(tmp_path / "deep" / "cache").drawn("k", make) == first
    assert made == [1]
    file = tmp_path / "deep" / "cache" / "k.json"
    for damaged in ("", "{", "[]", json.dumps({"texts": []}), '{"other": 1}'):
        file.write_text(damaged)
        assert cache.drawn("k", make) == first
    assert len(made) == 6
    scores = cache.scores("s", lambda: np.array([[1.5, -np.pi]]))
    assert np.array_equal(cache.scores("s", lambda: np.zeros((1, 2))), scores)
    assert CompletionCache(None).drawn("k", make) == first
    assert cache.drawn(None, make) == first
    assert len(made) == 8


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = CompletionCache(tmp_path / "file")
    assert cache.scores("s", lambda: np.ones((1, 1))) == 1
    (tmp_path / "cache" / "s.json").mkdir(parents=True)
    assert CompletionCache(tmp_path / "cache").scores("s", lambda: np.ones((1, 1))) == 1
