"""The checksum of a tensor: whatever changes in it, the number changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.monitor import checksum as module
from counterpoint.monitor.checksum import WIDTH, checksum

DTYPES = [
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn),
    *(torch.int64, torch.uint8, torch.bool),
]


def some(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (values > 0) if dtype is torch.bool else values.mul(50).abs().to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_bit_of_one_entry_changes_it(dtype):
    tensor = some(dtype, 3, 7)
    before = int(checksum(tensor))
    raw = tensor.view(-1).view(torch.uint8)
    for byte in range(len(raw)):
        bit = 1 if dtype is torch.bool else 1 << (byte % 8)
        raw[byte] ^= bit
        assert int(checksum(tensor)) != before
        raw[byte] ^= bit
    assert int(checksum(tensor)) == before


@given(
    size=st.integers(2, 3 * WIDTH),
    places=st.lists(st.integers(0, 3 * WIDTH), min_size=1, max_size=6, unique=True),
    bit=st.sampled_from([0, 7, 15]),
)
def test_the_same_bit_of_several_entries_does_not_cancel(size, places, bit):
    words = torch.arange(size, dtype=torch.int16)
    before = int(checksum(words))
    places = sorted({place % size for place in places})
    words[places] ^= -(1 << 15) if bit == 15 else 1 << bit
    assert int(checksum(words)) != before


@pytest.mark.parametrize("distance", [1, WIDTH, WIDTH + 1, 2 * WIDTH])
def test_entries_that_change_places_change_it(distance):
    tensor = torch.randn(3 * WIDTH, generator=torch.Generator().manual_seed(1))
    before = int(checksum(tensor))
    swapped = tensor.clone()
    swapped[5], swapped[5 + distance] = tensor[5 + distance], tensor[5]
    assert int(checksum(swapped)) != before


def test_all_signs_turned_at_once_change_it():
    tensor = torch.ones(WIDTH)
    assert int(checksum(-tensor)) != int(checksum(tensor))


def test_it_goes_by_values_in_order_whatever_the_strides_and_the_place_in_memory():
    tensor = some(torch.bfloat16, 12, 10)
    assert int(checksum(tensor.t().contiguous().t())) == int(checksum(tensor))
    whole = some(torch.bfloat16, 121)
    assert int(checksum(whole[1:].clone())) == int(checksum(some(torch.bfloat16, 121)[1:].clone()))
    changed = whole.clone()
    changed[0] += 1
    # a tensor that begins in the middle of another one sees its own entries only
    assert int(checksum(changed[1:])) == int(checksum(whole[1:]))


def test_how_many_words_are_widened_at_a_time_does_not_matter(monkeypatch):
    tensor = torch.randn(5 * WIDTH + 3)
    whole = int(checksum(tensor))
    monkeypatch.setattr(module, "CHUNK", WIDTH)
    assert int(checksum(tensor)) == whole


def test_nothing_has_a_checksum_too():
    assert int(checksum(torch.zeros(0, 4))) == 0
    assert int(checksum(torch.tensor(3.0))) != int(checksum(torch.tensor(4.0)))


def test_a_tensor_of_parts_is_read_by_all_of_them():
    torchao = pytest.importorskip("torchao.quantization")

    def quantized() -> torch.nn.Linear:
        layer = torch.nn.Linear(8, 4, bias=False)
        torch.nn.init.ones_(layer.weight)
        torchao.quantize_(layer, torchao.Int8WeightOnlyConfig())
        return layer

    before = int(checksum(quantized().weight))
    assert int(checksum(quantized().weight)) == before
    for part in ("qdata", "scale"):
        layer = quantized()
        getattr(layer.weight, part).view(-1)[1] = 3
        assert int(checksum(layer.weight)) != before
