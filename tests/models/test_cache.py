import torch
from transformers.cache_utils import DynamicLayer

from alignrun.models.decoding.cache import ROOM, GrowingCacheLayer, capacity


def test_a_roomy_layer_holds_what_transformers_own_does() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = GrowingCacheLayer(), DynamicLayer()
    rows, buffers = 4, set()
    for step in range(3 * ROOM):
        length = 5 if step == 0 else 1
        keys, values = (torch.randn(rows, 2, length, 3, generator=generator) for _ in range(2))
        for mine, other in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            assert torch.equal(mine, other)
        buffers.add(ours.keys.untyped_storage().data_ptr())
        if step == ROOM // 2:
            rows = 3
            for layer in (ours, theirs):
                layer.batch_select_indices(torch.tensor([0, 2, 3]))
    assert ours.get_seq_length() == theirs.get_seq_length() == 5 + 3 * ROOM - 1
    assert len(buffers) < 8  # and not one for every token


def test_capacity_is_what_the_buffers_come_to() -> None:
    layer = GrowingCacheLayer()
    layer.update(torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 2))
    layer.batch_select_indices(torch.tensor([0]))
    for _ in range(199):
        layer.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    assert layer.keys.untyped_storage().nbytes() == capacity(5, 200) * 2 * 4
