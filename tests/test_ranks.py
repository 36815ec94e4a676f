"""What processes say to each other, and how they end."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from secateur.errors import InputError, RankError
from secateur.ranks import Ranks, joined
from tests.together import ended, start


def _speak(rank: int) -> None:
    for _ in range(2):  # one run may follow another
        with joined() as ranks:
            size = ranks.size
            assert ranks.rank == rank and ranks.first == (rank == 0)
            for dtype in (torch.float32, torch.float64, torch.int64, torch.bfloat16):
                tensor = torch.full((3, 2), rank + 1, dtype=dtype)
                ranks.sum(tensor)
                assert (tensor == size * (size + 1) // 2).all() and tensor.dtype == dtype
            assert ranks.gather(10 * rank) == [10 * other for other in range(size)]
            bits = torch.tensor([[-0.0, torch.nan], [1, rank]]).T  # not contiguous
            ranks.give(bits, size - 1)
            assert torch.equal(bits.isnan(), torch.tensor([[False, False], [True, False]]))
            assert bits[1, 1] == size - 1 and bits[0, 0].signbit()
            assert ranks.tell({"rank": [rank, "é"]}, dict[str, list[int | str]], size - 1) == {"rank": [size - 1, "é"]}
            found = ranks.each([partial(torch.full, (n,), rank) for n in range(5)])
            assert [one.tolist() for one in found] == [[n % size] * n for n in range(5)]
            assert [sum(ranks.gather(x)) for x in (len(ranks.share("abcd")), len(ranks.share("")))] == [4, 0]
            ranks.gather(0)


@pytest.mark.parametrize("size", [2, 3])
def test_all_hear_the_same(size):
    assert ended(start(size, _speak)) == [0] * size


def test_shares_are_all_there_is_in_sequence():
    for size in range(1, 6):
        for length in range(12):
            parts = []
            for rank in range(size):
                ranks = Ranks()
                ranks.rank, ranks.size = rank, size
                parts.append(ranks.share(range(length)))
            assert [x for part in parts for x in part] == list(range(length))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1 and len(parts[0]) == max(map(len, parts))


def _fail(rank: int, failing: int, way: str, said: Path) -> None:
    try:
        with joined() as ranks:
            ranks.gather(0)
            if rank == failing:
                if way == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise InputError("bad news") if way == "input" else KeyError("a bug")
            ranks.gather(0)
    except (InputError, RankError, KeyError) as error:
        (said / str(rank)).write_text(str(error))
        raise SystemExit(3) from None


@pytest.mark.parametrize(
    ("failing", "way", "speaker", "text"),
    [
        (0, "input", 0, "bad news"),
        (2, "input", 0, "rank 2 of 3: bad news"),
        (1, "bug", 0, "KeyError: 'a bug'"),
        (2, "killed", 0, "rank 2 of 3 does not answer any more"),
        (0, "killed", None, "rank 0 of 3 does not answer any more"),
    ],
)
def test_one_speaks_for_all_when_one_fails(failing, way, speaker, text, tmp_path, monkeypatch):
    began = time.monotonic()
    codes = ended(start(3, _fail, failing, way, tmp_path))
    assert 0 not in codes and None not in codes and time.monotonic() - began < 30
    (told,) = tmp_path.iterdir()
    assert text in told.read_text()
    assert speaker is None or told.name == str(speaker)
