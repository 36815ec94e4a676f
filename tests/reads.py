"""Counts what is read of tensors."""

from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open

from secateur.checkpoint import shards


class _Counting:
    def __init__(self, reads, path, **options):
        self._reads, self._path, self._file = reads, Path(path), safe_open(path, **options)

    def __enter__(self):
        self._open = self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self._open, name)

    def get_tensor(self, name):
        tensor = self._open.get_tensor(name)
        self._reads[self._path.parent] += tensor.nbytes
        return tensor


@contextmanager
def counted(monkeypatch):
    """The bytes of tensors that are read meanwhile, by the folder that they lie in."""
    reads: Counter[Path] = Counter()
    with monkeypatch.context() as patch:
        patch.setattr(shards, "safe_open", lambda path, **options: _Counting(reads, path, **options))
        yield reads


def size_of(folder):
    """The bytes of all weights in a folder."""
    return sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
