"""The methods that the studies compare: what each trains, and how the tables call it."""

from dataclasses import dataclass

TAU = 0.01
"""Of every method that takes one."""


@dataclass(frozen=True, slots=True)
class Method:
    """What to train, and how the tables call it."""

    label: str
    overrides: tuple[str, ...]
    """`{pairs}` stands for labelled pairs of μ's completions, `{reward}` for a reward model of them, and `{runs}` and
    `{seed}` for the folder and the seed of the study's runs."""
    against: str | None = None
    """The method whose policy of the same seed it is a trained best response to."""


def _online(algorithm: str, *overrides: str, kl_tau: float | None = TAU) -> tuple[str, ...]:
    regularised = () if kl_tau is None else (f"algo.kl_tau={kl_tau}",)
    return f"algo={algorithm}", "algo.samples_per_prompt=8", *regularised, *overrides


def _offline(algorithm: str) -> tuple[str, ...]:
    data = (f"algo.kl_tau={TAU}", "data=jsonl", "data.prompts=[]", "data.path={pairs}", "data.eval_path={pairs}")
    return f"algo={algorithm}", *data, "data.columns.label=probability"


def _response(method: str) -> Method:
    overrides = _online("best_response", f"algo.opponent={{runs}}/{method}-{{seed}}")
    return Method(f"best response to {METHODS[method].label}", overrides, against=method)


_BRADLEY_TERRY = ("preference=bradley_terry", "preference.path={reward}")
METHODS = {
    "ppo": Method("PPO, win rate against μ", _online("ppo", "algo.epochs=1", "algo.normalize_reward=false")),
    "nash_md": Method("Nash-MD, β = 0.125", _online("nash_md")),
    "online_ipo": Method("online IPO", _online("online_ipo")),
    "self_play": Method("self-play", _online("self_play")),
    "ppo_bt": Method(
        "PPO, Bradley-Terry reward", _online("ppo", "algo.epochs=1", "algo.normalize_reward=false", *_BRADLEY_TERRY)
    ),
    "dpo": Method("DPO", _offline("dpo")),
    "ipo": Method("IPO", _offline("ipo")),
    "grpo": Method("GRPO, win rate against μ", _online("grpo")),
    "grpo_bt": Method("GRPO, Bradley-Terry reward", _online("grpo", *_BRADLEY_TERRY)),
    "best_response": Method("best response to μ", _online("best_response")),
    "nash_md_0": Method("Nash-MD, β from 0.125 to 0", _online("nash_md", "algo.mix_beta_end=0")),
    "nash_ema": Method("Nash-EMA, 0.9", _online("nash_ema", "algo.ema_decay=0.9")),
    "nash_mp": Method("Nash-MP", _online("nash_mp")),
    "nash_mp_1": Method("Nash-MP, pairs at temperature 1", _online("nash_mp", "algo.explore_temperature=1")),
    "ipo_md": Method("IPO-MD, β = 0.125", _online("ipo_md")),
    "online_dpo": Method("online DPO", _online("online_dpo")),
    "inpo": Method("INPO", _online("inpo")),
    "sppo": Method("SPPO", _online("sppo", kl_tau=None)),
    "spo": Method("SPO", _online("spo")),
    "mnpo": Method("MNPO", _online("mnpo")),
    "rspo": Method("RSPO", _online("rspo")),
    "rebel": Method("REBEL, win rate against μ", _online("rebel")),
    "comal": Method("COMAL, τ = 0", _online("comal", "algo.refresh_every=15", kl_tau=0)),
    "omwu": Method("OMWU, τ = 0", _online("omwu", kl_tau=0)),
    "nash_pg": Method("NashPG, τ = 0", _online("nash_pg", "algo.refresh_every=15", "algo.epochs=1", kl_tau=0)),
}
METHODS |= {f"against_{method}": _response(method) for method in ("ppo", "nash_md", "online_ipo", "self_play")}
AGAINST_MU = frozenset({"ppo", "ppo_bt", "grpo", "grpo_bt", "rebel", "best_response", "dpo", "ipo"})
"""The methods whose opponent is μ: in a win rate, in labelled pairs or in a reward model of these.

That of the others is the policy as it learns, or a mixture or an average of it."""
