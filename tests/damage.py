"""Ways to damage a valid file: its bytes, or what it says in JSON, YAML and the headers of safetensors.

Each takes the bytes of a file and a source of chance, and gives other bytes.
"""

import gzip
import json
import random
import struct
from collections.abc import Iterator
from typing import Any

import yaml

WORDS: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**40, 2**70, -(2**63), 0.5, -0.0, 1e308, float("inf"), float("nan"),
    "", "x", "../x", "/etc/hostname", "\x1b[31mred", "a\x00b", "é\ud800", "2:4", "float16", "int4", "x" * 5000,
    [], {}, [[]], [None], [1, 2], {"a": 1},
]  # fmt: skip


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON tree, with each key or index."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in list(keys):
        yield tree, key
        yield from _places(tree[key])


def in_tree(tree: Any, draw: random.Random) -> Any:
    """One to three nodes replaced, removed, copied or renamed."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        places = list(_places(tree))
        if not places or draw.random() < 0.02:
            return draw.choice(WORDS)
        container, key = draw.choice(places)
        match draw.randrange(6):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[draw.choice([*container, "new", "", "a.b"])] = container.pop(key)
            case 2:
                other, there = draw.choice(places)
                container[key] = json.loads(json.dumps(other[there])) if there in _keys(other) else None
            case 3 if isinstance(container[key], int | float) and not isinstance(container[key], bool):
                factor = draw.choice([0, -1, 2, 0.5, 10**6, 2**33])
                container[key] = (
                    container[key] * factor if draw.random() < 0.7 else container[key] + draw.choice([-1, 1])
                )
            case _:
                container[key] = draw.choice(WORDS)
    return tree


def _keys(container: Any) -> Any:
    return container if isinstance(container, dict) else range(len(container))


def in_bytes(raw: bytes, draw: random.Random) -> bytes:
    """Bytes changed, cut, repeated or put in."""
    changed, place = bytearray(raw), draw.randrange(len(raw) + 1)
    length = draw.choice([1, 1, 2, 8, 100])
    match draw.randrange(7):
        case 0:
            return bytes(changed[:place])
        case 1:
            del changed[place : place + length]
        case 2:
            changed[place:place] = draw.randbytes(length)
        case 3:
            changed[place:place] = changed[place : place + 50 * length]
        case 4:
            changed[place:place] = draw.choice(
                [b"[" * 100_000, b"9" * 5000, b"\x00", b"\xff\xfe", b"\r", b"\n\n", b'"', b"{", b"-"]
            )
        case _:
            for _ in range(length):
                if changed:
                    changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def in_head(raw: bytes, draw: random.Random) -> bytes:
    """Bytes of its beginning, where a file says what is in it."""
    return in_bytes(raw[:8000], draw) + raw[8000:]


def in_json(raw: bytes, draw: random.Random) -> bytes:
    """Its tree, mostly, and else its bytes."""
    if draw.random() < 0.2:
        return in_bytes(raw, draw)
    if draw.random() < 0.03:
        return json.dumps(_nested(900)).replace("1", "[" * 50_000 + "]" * 50_000).encode()
    return json.dumps(in_tree(json.loads(raw), draw)).encode("utf-8", "surrogatepass")


def in_lines(raw: bytes, draw: random.Random) -> bytes:
    """One of its lines, each of which is JSON."""
    lines = raw.split(b"\n")
    number = draw.randrange(len(lines) - 1)
    lines[number] = in_json(lines[number], draw)
    return b"\n".join(lines)


def in_yaml(raw: bytes, draw: random.Random) -> bytes:
    """JSON is YAML; and what only YAML has."""
    if draw.random() < 0.2:
        extra = [
            b"a: &a [*a]",
            b"b: !!python/object/apply:os.system ['true']",
            b"? [1]\n: 2",
            b"pattern: 2:4:4",
            b"\t- x",
            b"<<: 1",
        ]
        return raw + b"\n" + draw.choice(extra)
    return in_json(json.dumps(yaml.safe_load(raw)).encode(), draw)


def in_safetensors(raw: bytes, draw: random.Random) -> bytes:
    """Its header's tree, its header's length, or any bytes."""
    (length,) = struct.unpack("<Q", raw[:8])
    header, tensors = raw[8 : 8 + length], raw[8 + length :]
    kind = draw.random()
    if kind < 0.1:
        return (
            struct.pack("<Q", draw.choice([0, 1, length - 1, length + 1, 2**31, 2**62, 2**64 - 1])) + header + tensors
        )
    if kind < 0.3:
        return in_bytes(raw, draw)
    tree = json.loads(header)
    if kind < 0.5 and "secateur" in tree.get("__metadata__", {}):
        tree["__metadata__"]["secateur"] = in_json(tree["__metadata__"]["secateur"].encode(), draw).decode(
            "utf-8", "replace"
        )
    else:
        tree = in_tree(tree, draw)
    header = json.dumps(tree).encode("utf-8", "replace")
    return struct.pack("<Q", len(header)) + header + tensors


def in_gzip(raw: bytes, draw: random.Random) -> bytes:
    """What is inside, or the file itself."""
    if draw.random() < 0.6:
        return in_bytes(raw, draw)
    return gzip.compress(in_lines(gzip.decompress(raw), draw))
