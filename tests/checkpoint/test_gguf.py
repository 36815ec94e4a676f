"""GGUF headers that lie: no length in them is believed."""

import struct

import pytest

from secateur.checkpoint import local_folder, outline
from secateur.checkpoint.gguf import read_contents
from secateur.errors import InputError


def text(content):
    return struct.pack("<Q", len(content)) + content.encode()


def gguf(entries=(), tensors=(), *, announced=0, of=0):
    """A file without weights: entries of (key, type, bytes), tensors of (name, shape); it may announce more of each."""
    header = struct.pack("<IQQ", 3, announced or len(tensors), of or len(entries))
    fields = b"".join(text(key) + struct.pack("<I", kind) + content for key, kind, content in entries)
    shapes = b"".join(
        text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + bytes(12) for name, shape in tensors
    )
    return b"GGUF" + header + fields + shapes


LLAMA = ("general.architecture", 8, text("llama"))
EMBEDDING = ("token_embd.weight", (32, 256))
LIES = {
    "empty": b"",
    "cut after the magic": b"GGUF",
    "cut after the counts": gguf([LLAMA])[:24],
    "no tensors": gguf([LLAMA]),
    "2⁶⁰ entries": gguf(of=2**60),
    "2⁶⁰ tensors": gguf([LLAMA], announced=2**60),
    "a text of 2⁶⁰ bytes": gguf(of=1) + struct.pack("<Q", 2**60),
    "an array of 2⁶⁰ bytes": gguf([("a", 9, struct.pack("<IQ", 0, 2**60))]),
    "an array of 2⁶⁰ texts": gguf([("a", 9, struct.pack("<IQ", 8, 2**60))]),
    "arrays in arrays": gguf([("a", 9, struct.pack("<IQ", 9, 1) * 10_000)]),
    "a tensor of 2⁶⁰ weights": gguf([LLAMA], [("a", (2**30, 2**30))]),
    "2³¹ dimensions": gguf([LLAMA], announced=1) + text("a") + struct.pack("<I", 2**31),
    "an unknown type": gguf([("a", 77, bytes(8))]),
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES)
def test_lies_are_refused(content, tmp_path):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.gguf is (damaged|not a GGUF file)"):
        read_contents(tmp_path / "model.gguf")


def test_what_is_there_is_counted(tmp_path):
    (tmp_path / "model.gguf").write_bytes(gguf([LLAMA], [EMBEDDING, ("b", (3,))]) + bytes(40_000))
    contents = read_contents(tmp_path / "model.gguf")
    assert (contents.tensors, contents.weights) == (2, 32 * 256 + 3)


@pytest.mark.parametrize(
    "entry", [("llama.block_count", 4, struct.pack("<I", 2**31)), ("llama.block_count", 4, struct.pack("<I", 32))]
)
def test_no_model_is_built_that_the_file_does_not_hold(entry, tmp_path):
    pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf([LLAMA, entry], [EMBEDDING]) + bytes(40_000))
    with pytest.raises(InputError, match="the files hold"):
        outline(str(path))
    with pytest.raises(InputError, match="the files hold"), local_folder(str(path)):
        pass
