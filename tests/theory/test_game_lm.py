"""Nash-MD through the real loop, on a language model that plays a game whose solution is known.

The numbers are the closed forms of the game (arXiv 2312.00886 and 2403.08635, Prop. 5.2): with a constant mixture
β the stationary point of Nash-MD is the best response to its own mixture with μ; β = 1 is the best response to μ.
"""

import json
from pathlib import Path

import pytest

from alignrun import cli

STATIONARY = {
    0.125: (0.487885, 0.131806, 0.380309),
    1.0: (0.790441, 0.052550, 0.157009),
}
GAP_AT_REFERENCE, KL_AT_REFERENCE = 0.06840333, 0.105543


@pytest.mark.slow
@pytest.mark.parametrize("mix_beta", [0.125, 1.0])
def test_nash_md_reaches_its_stationary_point(tmp_path: Path, mix_beta: float) -> None:
    run = tmp_path / "run"
    assert cli.main(["experiment=game", f"algo.mix_beta={mix_beta}", f"run.dir={run}"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if "eval/duality_gap" in row]
    first, last = evaluations[0], evaluations[-1]
    assert first["eval/duality_gap"] == pytest.approx(GAP_AT_REFERENCE, abs=1e-5)
    assert first["eval/kl_equilibrium"] == pytest.approx(KL_AT_REFERENCE, abs=1e-5)
    policy = [last[f"eval/policy/{action}"] for action in "abc"]
    distance = sum(abs(p - q) for p, q in zip(policy, STATIONARY[mix_beta], strict=True)) / 2
    assert distance < 0.04, policy
    if mix_beta < 1:
        # Its own stationary point is 0.0012 from the equilibrium in KL; the reference was a hundred times as far.
        assert last["eval/kl_equilibrium"] < KL_AT_REFERENCE / 10
        assert last["eval/duality_gap"] < GAP_AT_REFERENCE / 10
        assert last["eval/exploitability"] < first["eval/exploitability"]
    else:
        # The best response to the reference is preferred to it, and far more exploitable than the equilibrium.
        assert last["eval/win_rate"] > 0.55
        assert last["eval/kl_equilibrium"] > KL_AT_REFERENCE
        assert last["eval/duality_gap"] > GAP_AT_REFERENCE
