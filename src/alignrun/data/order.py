"""The endless stream of epochs that batches are taken from, as a pure function without state."""

from __future__ import annotations

import random
from array import array
from functools import lru_cache


def rows_at(step: int, size: int, count: int, seed: int, shift: int = 0) -> list[int]:
    """Indices [step·size, (step + 1)·size) + shift of the stream of shuffled epochs over `count` rows.

    Every row occurs once per epoch; a batch may span several. A resumed run continues where it stopped, since only the
    arguments matter. The shift compensates for steps taken with another batch size.
    """
    first = step * size + shift
    places = (divmod(place, count) for place in range(first, first + size))
    return [_order(count, seed, epoch)[offset] for epoch, offset in places]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> array[int]:
    # Seeding with text distinguishes (seed 1, epoch 2) from (seed 2, epoch 1), and does not touch the global
    # generators.
    order = list(range(count))
    random.Random(f"prompts {seed} {epoch}").shuffle(order)
    return array("Q", order)  # an eighth of the memory
