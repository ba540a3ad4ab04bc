"""Here the figures of reports are drawn."""

import pytest


@pytest.fixture(autouse=True)
def blank_figures() -> None:
    """Nothing is left blank."""
