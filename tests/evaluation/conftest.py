"""Here intervals are those that users get."""

import pytest


@pytest.fixture(autouse=True)
def few_resamples() -> None:
    """Nothing is rough."""
