"""Where tensors wait that nobody computes with just now: where they are, in the host's memory, or in a file.

A :class:`Room` has so many bytes of each kind of memory to give. What is put there goes to the first place that has
enough left, and comes back with the same bits wherever it was: how much memory there is changes no result.
"""

import math
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor


class Room:
    """So many bytes of memory for tensors that wait, and a file for what they do not hold; a context.

    The file has no name, so that nothing is left of it when the process ends, whatever ends it. It is read and written
    and not mapped: mapped pages would count as this process's memory, and a full disk would kill it where otherwise an
    error can be caught.
    """

    def __init__(self, places: Mapping[torch.device, int] | None = None, folder: Path | None = None) -> None:
        """Nothing waits yet.

        Args:
            places: the bytes of each device, in the order in which they are to be filled. By default there is no
                bound, and every tensor stays where it is.
            folder: where the file is made once it is needed. Needed if there are ``places``.
        """
        self._left: dict[torch.device, int] | None = None if places is None else dict(places)
        self._folder = folder
        self._file: _File | None = None

    def __enter__(self) -> "Room":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What waits in the file is lost."""
        if self._file is not None:
            self._file.close()

    @property
    def left(self) -> float:
        """Bytes that fit into the first place yet."""
        return math.inf if self._left is None else next(iter(self._left.values()), 0)

    def keep(self, tensor: Tensor, *, aside: bool = False) -> "Kept":
        """Let ``tensor`` wait in the first place with enough left; if it is to go ``aside``, not in the very first."""
        if self._left is None:
            return Kept(tensor, _InMemory(tensor.device))
        size = tensor.nbytes
        for device in list(self._left)[1 if aside else 0 :]:
            if self._left[device] >= size:
                return Kept(tensor, _InMemory(device, self._left, size))
        if self._file is None:
            self._file = _File(self._folder)
        return Kept(tensor, _InFile(self._file, size))


class Kept:
    """A tensor that waits in a room. Its place is free for others once this is gone.

    Attributes:
        size: in bytes.
    """

    def __init__(self, tensor: Tensor, place: "_InMemory | _InFile") -> None:
        self._place, self._device, self.size = place, tensor.device, tensor.nbytes
        self.set(tensor)

    def get(self) -> Tensor:
        """The tensor, on the device where it was: itself, or a copy if it waits elsewhere."""
        return self._place.take().to(self._device)

    def set(self, tensor: Tensor) -> None:
        """Let another tensor of as many bytes wait in its stead."""
        assert tensor.nbytes == self.size
        self._place.put(tensor)


class Shelf:
    """Tensors that wait in a room, by number."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._kept: list[Kept] = []

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Tensor:
        return self._kept[index].get()

    def __setitem__(self, index: int, tensor: Tensor) -> None:
        if tensor.nbytes == self._kept[index].size:
            self._kept[index].set(tensor)
        else:
            self._kept[index] = self._room.keep(tensor)

    def __iter__(self) -> Iterator[Tensor]:
        return (kept.get() for kept in self._kept)

    def append(self, tensor: Tensor) -> None:
        """Add one."""
        self._kept.append(self._room.keep(tensor))


class _InMemory:
    """A place in the memory of a device, whose bytes go back to what is ``left`` there."""

    def __init__(self, device: torch.device, left: dict[torch.device, int] | None = None, size: int = 0) -> None:
        self._device = device
        if left is not None:
            left[device] -= size
            weakref.finalize(self, _give_back, left, device, size)

    def put(self, tensor: Tensor) -> None:
        self._tensor = tensor.to(self._device)

    def take(self) -> Tensor:
        return self._tensor


def _give_back(left: dict[torch.device, int], device: torch.device, size: int) -> None:
    left[device] += size


class _InFile:
    """A place in the file."""

    def __init__(self, file: "_File", size: int) -> None:
        self._file, self._at = file, file.claim(size)
        weakref.finalize(self, file.release, self._at, size)

    def put(self, tensor: Tensor) -> None:
        self._like = torch.empty_like(tensor, device="meta")  # of the same strides, where each element has its own
        same = self._like.stride() == tensor.stride()
        self._file.write(self._at, _bytes(tensor.cpu() if same else tensor.cpu().clone()))

    def take(self) -> Tensor:
        tensor = torch.empty_like(self._like, device="cpu")
        self._file.read(self._at, _bytes(tensor))
        return tensor


class _File:
    """An unnamed file. A place that is free again serves what has the same size, as most things here have."""

    def __init__(self, folder: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed with the room)
        self._end = 0
        self._free: dict[int, list[int]] = defaultdict(list)

    def claim(self, size: int) -> int:
        if self._free[size]:
            return self._free[size].pop()
        self._end += size
        return self._end - size

    def release(self, at: int, size: int) -> None:
        self._free[size].append(at)

    def write(self, at: int, data: memoryview) -> None:
        self._file.seek(at)
        self._file.write(data)
        self._file.flush()

    def read(self, at: int, data: memoryview) -> None:
        self._file.seek(at)
        self._file.readinto(data)

    def close(self) -> None:
        self._file.close()


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a tensor, in whose order its elements lie there without gaps."""
    flat = tensor.as_strided((tensor.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data
