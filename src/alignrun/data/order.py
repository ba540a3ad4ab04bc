"""The endless stream of epochs that batches are cut from, as a pure function: there is no state to save."""

from __future__ import annotations

import random
from array import array
from functools import lru_cache


def rows_at(step: int, size: int, count: int, seed: int, shift: int = 0) -> list[int]:
    """Places [step·size, (step + 1)·size) + shift of the stream of epochs over `count` rows, each in its own order.

    Every row comes once in an epoch; a batch may reach over several. A resumed run goes on where it stopped, since
    nothing but the arguments matters. The shift makes up for steps that were taken with another size.
    """
    first = step * size + shift
    places = (divmod(place, count) for place in range(first, first + size))
    return [_order(count, seed, epoch)[offset] for epoch, offset in places]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> array[int]:
    # Seeding with text keeps (seed 1, epoch 2) apart from (seed 2, epoch 1), and leaves the global generators alone.
    order = list(range(count))
    random.Random(f"prompts {seed} {epoch}").shuffle(order)
    return array("Q", order)  # an eighth of the memory
