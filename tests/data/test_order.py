import random
from collections import Counter

import pytest

from alignrun.data.order import rows_at


@pytest.mark.parametrize(("size", "count"), [(1, 1), (1, 5), (3, 5), (5, 5), (12, 5), (4, 8)])
def test_steps_cut_one_stream_of_whole_epochs(size: int, count: int) -> None:
    stream = [row for step in range(4 * count) for row in rows_at(step, size, count, seed=3)]
    assert stream == rows_at(0, 4 * count * size, count, seed=3)
    for start in range(0, len(stream), count):
        assert sorted(stream[start : start + count]) == list(range(count))


def test_the_order_is_fixed_for_all_time() -> None:
    # A run resumed after an upgrade must see the rows that it would have seen.
    assert rows_at(0, 7, 7, seed=0) == [4, 1, 3, 5, 0, 6, 2]
    assert rows_at(1, 5, 7, seed=0) == [*rows_at(0, 7, 7, seed=0)[5:], *rows_at(0, 10, 7, seed=0)[7:]]


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(rows_at(epoch, 20, 20, seed)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_global_generator_is_left_alone() -> None:
    random.seed(0)
    before = random.getstate()
    rows_at(0, 3, 1_000, seed=17)
    assert random.getstate() == before


def test_every_row_is_equally_likely_to_come_first() -> None:
    first = Counter(rows_at(epoch, 7, 7, seed=1)[0] for epoch in range(1400))
    assert all(200 - 66 < first[row] < 200 + 66 for row in range(7))  # 5 standard deviations of 13.1
