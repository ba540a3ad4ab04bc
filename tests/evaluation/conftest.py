"""Here intervals are those that users get."""

from collections.abc import Iterator

import pytest
import quick


@pytest.fixture(scope="module", autouse=True)
def full_resamples() -> Iterator[None]:
    quick.all_resamples()
    yield
    quick.few_resamples()
