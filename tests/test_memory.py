import gc

import pytest
import torch

from secateur.errors import InputError
from secateur.memory import Room, Shelf
from secateur.sizes import parse_size, show_size

CPU = torch.device("cpu")
TENSORS = {
    "matrix": torch.randn(3, 5),
    "transposed": torch.randn(3, 5).T,
    "half": torch.randn(4, 2, 6).bfloat16(),
    "with gaps": torch.randn(6, 8)[::2, 1::3],
    "expanded": torch.randn(1, 4).expand(3, 4),
    "numbers": torch.arange(7),
    "one": torch.tensor(2.5),
    "none": torch.empty(0, 4),
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("left", [0, 1 << 20])
def test_what_waits_comes_back_as_it_was(name, left, tmp_path):
    tensor = TENSORS[name]
    with Room({CPU: left}, tmp_path) as room:
        back = room.keep(tensor).get()
        assert torch.equal(back, tensor)
        assert back.dtype is tensor.dtype
        if name not in ("with gaps", "expanded"):  # kernels may round by how a tensor lies in memory
            assert back.stride() == tensor.stride()


def test_places_are_filled_in_order_and_given_back(tmp_path):
    first = torch.zeros(10)
    with Room({CPU: 100}, tmp_path) as room:
        one, two = room.keep(first), room.keep(first)
        assert room.left == 20
        three = room.keep(first)
        assert one.get() is first
        assert three.get() is not first  # it was read from the file
        four = room.keep(first, aside=True)
        assert four.get() is not first
        assert room.left == 20
        del one, two, four
        gc.collect()
        assert room.left == 100
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_free_again_is_used_again(tmp_path):
    with Room({CPU: 0}, tmp_path) as room:
        for number in range(20):
            shelf = Shelf(room)
            for value in range(3):
                shelf.append(torch.full((8,), number + value))
            shelf[1] = torch.full((8,), -1)
            assert [int(tensor[0]) for tensor in shelf] == [number, -1, number + 2]
        assert room._file is not None
        assert room._file._end == 3 * 8 * 8


def test_what_takes_the_place_of_another_may_have_another_size(tmp_path):
    with Room({CPU: 0}, tmp_path) as room:
        shelf = Shelf(room)
        for size in (3, 5, 2, 5):
            shelf.append(torch.arange(size))
        shelf[1] = torch.arange(9.0)
        shelf.append(torch.arange(5))
        assert [len(tensor) for tensor in shelf] == [3, 9, 2, 5, 5]
        assert torch.equal(shelf[1], torch.arange(9.0))
        assert torch.equal(shelf[3], torch.arange(5))


def test_without_a_bound_nothing_moves():
    room, tensor = Room(), torch.ones(3)
    assert room.keep(tensor, aside=True).get() is tensor
    assert room.left > 1 << 60


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("8GiB", 8 << 30),
        ("500MB", 500 * 10**6),
        ("1.5 kib", 1536),
        ("2tb", 2 * 10**12),
        ("12345", 12345),
        ("7B", 7),
        ("1e400", None),
        ("8 G B", None),
        ("-8GB", None),
        ("lots", None),
        ("0GB", None),
        ("٣GB", None),
        ("", None),
    ],
)
def test_sizes_are_decimal_or_binary_as_written(text, size):
    if size is None:
        with pytest.raises(InputError, match="memory"):
            parse_size(text)
    else:
        assert parse_size(text) == size


def test_sizes_are_shown_in_decimal_units():
    assert [show_size(size) for size in (1, 300_000, 12_400_000, 7_340_000_000)] == [
        "1 B",
        "300 kB",
        "12 MB",
        "7.3 GB",
    ]
