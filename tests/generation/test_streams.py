"""Declared streams: which roles they need, how many rows they take, and who can draw them."""

import pytest

from alignrun.errors import InputError
from alignrun.generation.streams import Mixture, decoding_roles, decoding_rows, roles_of
from alignrun.types import Role


def mixture(beta: float) -> Mixture:
    return Mixture(Role.policy, Role.reference, beta)


def test_a_mixture_needs_the_roles_that_have_weight_in_it() -> None:
    assert roles_of(mixture(0.3)) == (Role.policy, Role.reference)
    assert roles_of(mixture(0.0)) == roles_of(Role.policy) == (Role.policy,)
    assert roles_of(mixture(1.0)) == roles_of(Role.reference) == (Role.reference,)
    assert decoding_rows([Role.policy, mixture(0.0), mixture(0.5)]) == 4


def test_blocks_start_with_the_policy_and_end_with_the_bare_base() -> None:
    sources = [Role.reference, Mixture(Role.anchor, Role.opponent, 0.5), Role.average, Role.policy]
    assert decoding_roles(sources) == [Role.policy, Role.opponent, Role.anchor, Role.average, Role.reference]


@pytest.mark.parametrize("beta", [-0.1, 1.5, float("nan")])
def test_a_weight_outside_of_the_unit_interval_is_refused(beta: float) -> None:
    with pytest.raises(InputError, match=r"must lie in \[0, 1\]"):
        mixture(beta)
