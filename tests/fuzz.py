"""Damaged files for everything that reads files.

    python -m tests.fuzz [--seconds 30] [--seed 0] [--only NAME …]     look for findings
    python -m tests.fuzz --seed 0 --case 123                           one of them again, with its traceback

Each case is a small valid folder or file in which one thing is damaged, and one public function that reads it. It may
succeed, or raise InputError. All else is a finding: another exception, a crash, a hang, memory without bounds. Cases
follow from seed and number alone. They run in forked processes, so that none takes the others along.
"""

import argparse
import importlib.util
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import torch

import secateur
from secateur import data
from secateur.checkpoint import Source
from secateur.checkpoint.resolve import outline
from secateur.errors import InputError
from secateur.recipe import QuantizationRecipe, Recipe
from secateur.sweeps.grid import Grid
from tests import damage, pico, specimens
from tests.specimens import PLAIN

# What a case may take: tiny models need a fraction of a second and a few MB.
SECONDS, MEGABYTES = 30, 400
# What a process may allocate beyond what it has, so that a finding cannot take the machine down.
CEILING = 6 << 30
# Cases that a forked process runs before the next one takes over.
TURN = 25


# ---------------------------------------------------------------- what is damaged, and who reads it


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        folder: the valid folder that it lies in, by name.
        file: its name there, or a pattern.
        change: turns its bytes into others.
        readers: public functions of the folder, or of the file, that read it.
    """

    folder: str
    file: str
    change: Callable[[bytes, random.Random], bytes]
    readers: tuple[Callable[[Path], Any], ...]
    of_file: bool = False


def prune(folder: Path) -> None:
    """By magnitude, which needs no text."""
    secateur.prune(folder, folder.parent / "out", PLAIN, force=True)


def calibrate(folder: Path) -> None:
    """With its tokenizer."""
    recipe = Recipe(
        score="wanda", sparsity=0.5, calibration=str(folder.parent.parent / "text.txt"), samples=2, length=16
    )
    secateur.prune(folder, folder.parent / "out", recipe, force=True)


def unpack(folder: Path) -> None:
    """To beside it."""
    secateur.unpack(folder, folder.parent / "out", force=True)


def pack(folder: Path) -> None:
    """To beside it."""
    secateur.pack(folder, folder.parent / "out", force=True)


def measure(folder: Path) -> None:
    """A window, whose perplexity goes into the card."""
    text = str(folder.parent.parent / "text.txt")
    secateur.evaluate(folder, text, window=16, limit=1, device="cpu", card=True)


def generate(folder: Path) -> None:
    """Two tokens."""
    secateur.generate(folder, "a law", tokens=2, device="cpu")


def verify_weights(folder: Path, written: str = "pruned") -> None:
    """It must find whatever is not as it was written."""
    passed = secateur.verify(folder).passed
    now, then = (source.read(source.names()) for source in map(Source, (folder, folder.parent.parent / written)))
    same = now.keys() == then.keys() and all(torch.equal(now[name], then[name]) for name in now)
    assert same or not passed, "verify passed, and weights differ"


def verify_quantized(folder: Path) -> None:
    """The same of what quantized weights stand for."""
    verify_weights(folder, "quantized")


def quantize(folder: Path) -> None:
    """Without samples."""
    secateur.quantize(folder, folder.parent / "out", QuantizationRecipe(method="rtn", group_size=16), force=True)


def export(folder: Path) -> None:
    """As far as its tokenizer, which has no merges."""
    secateur.export(folder, folder.parent / "out.gguf")


def plan(folder: Path) -> None:
    """From its config alone."""
    outline(str(folder))


def apply(path: Path) -> None:
    """To the model that the mask was taken of."""
    secateur.apply(path.parents[2] / "pruned", path, path.parents[1] / "out", force=True)


def read_text(path: Path, prefix: str = "") -> None:
    """As calibration and evaluation do."""
    purposes: tuple[data.Purpose, ...] = ("calibration", "evaluation")
    for purpose in purposes:
        text = data.load_text(f"{prefix}{path}", purpose)
        data.evaluation_windows(text, pico.tokenizer(), 16)


def read_chats(path: Path) -> None:
    """As a model with a chat template does."""
    tokenizer = pico.tokenizer("~")
    tokenizer.chat_template = "{% for message in messages %}{{ message.role + message.content }}{% endfor %}"
    data.evaluation_windows(data.load_text(str(path), "calibration"), tokenizer, 16, bos="each")


def read_corpus(path: Path) -> None:
    """The same by the protocol of a corpus."""
    read_text(path, "c4:")
    read_text(path, "wikitext2:")


TARGETS: dict[str, Target] = {
    "config": Target("dense", "config.json", damage.in_json, (secateur.inspect, secateur.load, prune, plan, export)),
    "index": Target("sharded", "*.index.json", damage.in_json, (secateur.inspect, secateur.load, prune)),
    "safetensors": Target("dense", "*.safetensors", damage.in_safetensors, (secateur.inspect, secateur.load, prune)),
    "tokenizer": Target("dense", "tokenizer*.json", damage.in_json, (calibrate, generate, export)),
    "generation config": Target("dense", "generation_config.json", damage.in_json, (generate, prune)),
    "card": Target("dense", "README.md", damage.in_bytes, (prune,)),
    "card with results": Target("pruned", "README.md", damage.in_bytes, (measure, pack)),
    "manifest": Target("pruned", "secateur.json", damage.in_json, (secateur.verify, prune, pack, quantize)),
    "weights": Target("pruned", "model-*.safetensors", damage.in_safetensors, (verify_weights,)),
    "orders": Target("pruned", "secateur-orders.safetensors", damage.in_safetensors, (secateur.verify,)),
    "gather config": Target("gather", "config.json", damage.in_json, (secateur.load, secateur.verify)),
    "packed config": Target("packed", "config.json", damage.in_json, (secateur.load, unpack, secateur.inspect)),
    "packed": Target("packed", "model-*.safetensors", damage.in_safetensors, (secateur.load, unpack, secateur.verify)),
    "int8": Target("int8", "model-*.safetensors", damage.in_safetensors, (secateur.load, unpack, secateur.inspect)),
    "quantized config": Target("quantized", "config.json", damage.in_json, (secateur.load, prune, plan)),
    "quantized": Target("quantized", "model-*.safetensors", damage.in_safetensors, (verify_quantized, secateur.load)),
    "quantized manifest": Target("quantized", "secateur.json", damage.in_json, (secateur.verify, prune)),
    "int4": Target("int4", "model-*.safetensors", damage.in_safetensors, (secateur.load, unpack, secateur.inspect)),
    "mask": Target("files", "mask.safetensors", damage.in_safetensors, (apply,), of_file=True),
    "fp8 config": Target("fp8", "config.json", damage.in_json, (secateur.load, prune, plan)),
    "fp8": Target("fp8", "model.safetensors", damage.in_safetensors, (secateur.load, prune)),
    "mxfp4": Target("mxfp4", "model.safetensors", damage.in_safetensors, (secateur.load, prune)),
    "recipe": Target("files", "recipe.yaml", damage.in_yaml, (Recipe.load,), of_file=True),
    "grid": Target("files", "grid.yaml", damage.in_yaml, (Grid.load,), of_file=True),
    "text": Target("files", "text.txt", damage.in_bytes, (read_text, read_corpus), of_file=True),
    "jsonl": Target("files", "text.jsonl", damage.in_lines, (read_text, read_corpus), of_file=True),
    "chats": Target("files", "chats.json", damage.in_json, (read_chats,), of_file=True),
    "gzip": Target("files", "text.jsonl.gz", damage.in_gzip, (read_text, read_corpus), of_file=True),
    "parquet": Target("files", "text.parquet", damage.in_bytes, (read_text, read_corpus), of_file=True),
}  # fmt: skip
if importlib.util.find_spec("gguf"):
    TARGETS["gguf"] = Target("files", "model.gguf", damage.in_head, (secateur.inspect, prune, plan), of_file=True)


# ---------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """One damaged file and one reader of it."""

    seed: int
    number: int
    only: tuple[str, ...]

    def run(self, root: Path) -> tuple[str, str | None]:
        """Its name, and its finding if there is one."""
        draw = random.Random(f"{self.seed}/{self.number}")
        name = draw.choice(self.only)
        target = TARGETS[name]
        scratch = root / "case"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(root / target.folder, scratch / "model")
        path = draw.choice(sorted((scratch / "model").glob(target.file)))
        path.write_bytes(target.change(path.read_bytes(), draw))
        reader = draw.choice(target.readers)
        name = f"{name} · {reader.__name__}"
        before = peak()
        try:
            reader(path if target.of_file else scratch / "model")
        except InputError:
            pass
        except Exception as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "secateur" in f.filename]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
            return name, f"{type(error).__name__} at {where}: {str(error)[:200]!r}"
        return name, f"takes {peak() - before} MB" if peak() - before > MEGABYTES else None


def peak() -> int:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def run_turn(root: Path, seed: int, numbers: range, only: tuple[str, ...], to: int) -> None:
    """Run some cases in this process, and write a line of JSON before and after each to a pipe. Does not return."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + CEILING, resource.RLIM_INFINITY))
    for number in numbers:
        os.write(to, json.dumps([number, "began", None]).encode() + b"\n")
        name, finding = Case(seed, number, only).run(root)
        os.write(to, json.dumps([number, name, finding]).encode() + b"\n")
    os._exit(0)


def watch_turn(root: Path, seed: int, numbers: range, only: tuple[str, ...]) -> Iterator[tuple[int, str, str | None]]:
    """Number, name and finding of each case; those after a crash or a hang are left out."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            run_turn(root, seed, numbers, only, writing)
        finally:
            os._exit(70)
    os.close(writing)
    current, rest = numbers.start, b""
    try:
        while True:
            ready, _, _ = select.select([reading], [], [], SECONDS)
            if not ready:
                yield current, "?", f"takes more than {SECONDS} s"
                return
            if not (received := os.read(reading, 1 << 16)):
                break
            *lines, rest = (rest + received).split(b"\n")
            for number, name, finding in map(json.loads, lines):
                current = number
                if name != "began":
                    yield number, name, finding
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if os.WEXITSTATUS(status) or (os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL):
        yield current, "?", f"ends the process ({status})"


def main(words: list[str] | None = None) -> int:
    """How many different findings there were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--cases", type=int, default=10**9, help="at most so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--case", type=int, help="run this one alone, here")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    only = tuple(options.only)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        specimens.make(root)
        if options.case is not None:
            print(*Case(options.seed, options.case, only).run(root), sep="\n")
            return 0
        return look(root, options.seed, only, options.cases, time.monotonic() + options.seconds)


def look(root: Path, seed: int, only: tuple[str, ...], cases: int, until: float) -> int:
    """Run cases until the time is over; print what was found, each kind once."""
    found: dict[str, list[int]] = {}
    counts: dict[str, int] = {}
    number = 0
    while number < cases and time.monotonic() < until:
        for number, name, finding in watch_turn(root, seed, range(number, min(number + TURN, cases)), only):  # noqa: B020
            counts[name.split(" · ")[0]] = counts.get(name.split(" · ")[0], 0) + 1
            if finding:
                kind = finding.split(": ")[0]
                if kind not in found:
                    print(f"case {number}: {name}: {finding}", flush=True)
                found.setdefault(kind, []).append(number)
        number += 1
    print(f"{sum(counts.values())} cases ({', '.join(f'{name} {n}' for name, n in sorted(counts.items()))})")
    print(f"{sum(map(len, found.values()))} findings of {len(found)} kinds, seed {seed}")
    return len(found)


if __name__ == "__main__":
    sys.exit(min(1, main()))
