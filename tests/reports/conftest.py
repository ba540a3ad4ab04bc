"""Here the figures of reports are drawn."""

from collections.abc import Iterator

import pytest
import quick


@pytest.fixture(scope="module", autouse=True)
def drawn_figures() -> Iterator[None]:
    quick.draw_figures()
    yield
    quick.blank_figures()
