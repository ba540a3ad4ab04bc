"""A panel of any preferences: preference.members='{helpful: {name: reward_model, path: …}, …}'

Transitive members may have an intransitive majority (Condorcet, Essai sur l'application de l'analyse, 1785): then no
completion is preferred to all others, only a mixture is unbeaten, and no Bradley-Terry reward can express the panel's
preference. Nash learning from human feedback starts from this point (arXiv 2312.00886).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import field
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alignrun import distributed
from alignrun.config import require, schema
from alignrun.models.backbone import Backbone
from alignrun.models.sharing import sharing
from alignrun.objectives.votes import egalitarian, majority, weighted_mean, worst_served
from alignrun.preferences.base import Preference, build_preference, discover, preference
from alignrun.preferences.members import EXAMPLE, named_errors, typed_members
from alignrun.preferences.side_by_side import side_by_side
from alignrun.types import Example


class PanelRule(str, Enum):
    """How the members' votes become one preference."""

    majority = "majority"
    """The probability that more than half of the members, voting independently, are for y; half a win for a tie."""
    mean = "mean"
    """The probability that one member, drawn at random or by `weights`, is for y."""
    maxmin = "maxmin"
    """Learners raise min_m P_m(π ≻ π'), the win rate with the worst-served member; a pair by itself is ½(min + max)."""


@schema
class PanelConfig:
    """The panel's members and its rule. Member m prefers y to y' with probability P_m."""

    name: str = "panel"
    members: dict[str, Any] = field(default_factory=dict)
    """By name, each with the settings of its preference: {name: reward_model, path: …}, or the name of a preset."""
    rule: PanelRule = PanelRule.majority
    weights: dict[str, float] = field(default_factory=dict)
    """For rule=mean: the weight of each member's vote, by name; empty for equal weights."""

    def __post_init__(self) -> None:
        members, key = typed_members(self.members), "preference.weights"
        require(len(members) >= 2, "preference.members", f"must name at least two, as in {EXAMPLE}")
        object.__setattr__(self, "members", members)
        if not self.weights:
            return
        require(self.rule is PanelRule.mean, key, "are those of a mean: set preference.rule=mean")
        for name in [*self.weights, *members]:
            both = name in members and name in self.weights
            require(
                both, key, f"must give a weight to each of {', '.join(members)}, and {name} is in only one of the two"
            )
        require(min(self.weights.values()) >= 0, key, "must not be negative")
        require(sum(self.weights.values()) > 0, key, "must not all be 0")


class Panel(Preference):
    """Several preferences combined by a rule."""

    def __init__(
        self,
        members: Mapping[str, Preference],
        rule: PanelRule,
        weights: Mapping[str, float] | None = None,
        waiting: Collection[str] = (),
    ) -> None:
        """`waiting` names the members that may run in separate threads, such as judges behind a server."""
        self._members, self._rule, self._waiting = dict(members), rule, waiting
        self._weights = torch.tensor([(weights or dict.fromkeys(members, 1.0))[name] for name in members])
        self._sums, self._count = torch.zeros(len(members), dtype=torch.float64), 0

    @property
    def members(self) -> Sequence[str]:  # type: ignore[override]
        """The members' names."""
        return tuple(self._members)

    @property
    def by_pair(self) -> bool:  # type: ignore[override]
        """Whether one of the members judges pair by pair."""
        return any(member.by_pair for member in self._members.values())

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] the rule's value for the members' votes."""
        return self.settle(self.votes(prompts, first, second))

    def settle(self, votes: Tensor) -> Tensor:
        """[B] the rule's value for votes [M, B]."""
        match self._rule:
            case PanelRule.majority:
                return majority(votes).float()
            case PanelRule.mean:
                return weighted_mean(votes, self._weights).float()
            case PanelRule.maxmin:
                return egalitarian(votes).float()

    def for_learner(self, prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> Tensor:
        """[B] the same; for maxmin, the votes of the member with the lowest mean over all B."""
        if self._rule is PanelRule.maxmin:
            return worst_served(self.votes(prompts, ours, theirs)).float()
        return self(prompts, ours, theirs)

    def votes(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[M, B] float64, P_m(first ≻ second). With several processes, the members run one after another, in step."""
        asked = {name: partial(self._vote, name, prompts, first, second) for name in self._members}
        found = side_by_side(asked, self._waiting if distributed.size() == 1 else ())
        votes = torch.stack(list(found.values())).double()
        self._sums, self._count = self._sums + votes.sum(1), self._count + votes.shape[1]
        return votes

    def _vote(self, name: str, *question: Sequence[str]) -> Tensor:
        with named_errors(name):
            return self._members[name](*question)

    def check(self, examples: Iterable[Example]) -> None:
        """Have every member check the rows."""
        rows = list(examples)
        for name, member in self._members.items():
            with named_errors(name):
                member.check(rows)

    def counts(self) -> dict[str, float]:
        """The members' counts, each under the member's name."""
        return {
            f"{name}/{key}": value for name, member in self._members.items() for key, value in member.counts().items()
        }

    def drain(self) -> dict[str, float]:
        """The mean vote of every member since the last call, and the lowest of these means."""
        sums, count = self._sums, self._count
        self._sums, self._count = torch.zeros_like(sums), 0
        inner = {f"{name}/{key}": value for name, one in self._members.items() for key, value in one.drain().items()}
        if not count:
            return {}
        means = dict(zip(self._members, (sums / count).tolist(), strict=True))
        return {f"panel/{name}": mean for name, mean in means.items()} | {"panel_worst": min(means.values())} | inner

    def expect(self, prompts: Sequence[str], completions: Sequence[str]) -> None:
        """Announce the completions to every member."""
        for member in self._members.values():
            member.expect(prompts, completions)


def check(config: PanelConfig) -> None:
    """Refuse invalid settings of members before anything is loaded. Raises InputError."""
    for name, section in config.members.items():
        with named_errors(name):
            discover()[section.name].check(section)


def columns(config: PanelConfig) -> Collection[str] | None:
    """The columns that any member reads; None for all of them. Raises InputError as the members' own."""
    read: set[str] = set()
    for name, section in config.members.items():
        with named_errors(name):
            found = discover()[section.name].columns(section)
        if found is None:
            return None
        read |= {*found}
    return read


def by_pair(config: PanelConfig) -> bool:
    """Whether a member judges pair by pair."""
    return any(discover()[section.name].by_pair(section) for section in config.members.values())


@preference("panel", PanelConfig, check=check, on_base=True, columns=columns, by_pair=by_pair)
def build(config: PanelConfig, backbone: Backbone | None = None) -> Preference:
    """The preference that the configuration asks for; members on one base share it."""
    members = {}
    with sharing():
        for name, section in config.members.items():
            with named_errors(name):
                members[name] = build_preference(section, backbone)
    waiting = [name for name, section in config.members.items() if not discover()[section.name].on_base]
    return Panel(members, config.rule, config.weights, waiting)
