"""Whether a run that is killed at any moment can be resumed to the bytes of one that was not.

    python benchmarks/kills.py [--kills 30] [--seed 0] [--layers 12] [--recipes NAME …]

Prunes a small random model with the command line in a process of its own, kills that at a random moment by SIGKILL,
SIGTERM or SIGINT in turn, and repeats the command with ``--resume``: up to three kills, and then to the end. Every file
must have the bytes of an undisturbed run, the times in ``secateur.json`` excepted. In half of the rounds an older model
lies at the destination (``--force``): after every kill the old or the new one must be there, whole.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from same_bytes import RECIPES, SAMPLES, SIZES, digests, tiny

import secateur
from secateur.cli import main as command_line
from secateur.pruning.journal import command_of

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
OURS = ("ria 50 %", "wanda 60 %, one shot", "ria 2:4, folds compared", "ria 2:4, gather", "sparsegpt 2:4 + admm")


def started(words: list[str], log: Path) -> int:
    """The number of a process that runs the command line. It shares what is imported here: it starts at once."""
    if process := os.fork():
        return process
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        command_line(words)
    except SystemExit as stop:
        sys.stdout.flush()
        os._exit(stop.code if isinstance(stop.code, int) else 1)
    os._exit(70)


def ended(process: int) -> int:
    """Wait for a process; its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def identity(folder: Path) -> str:
    """One digest for all files, or the empty string where there is no folder."""
    return hashlib.sha256(json.dumps(sorted(digests(folder))).encode()).hexdigest() if folder.exists() else ""


def is_whole(folder: Path) -> bool:
    """Whether every file has the bytes that the manifest says, and there is no other."""
    listed = json.loads((folder / "secateur.json").read_text())["files"]
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    return found.pop("secateur.json") is not None and found == listed


def finished_files(home: Path) -> int:
    """How many files are finished in the workspace."""
    journal = home / ".out.partial" / "journal.json"
    return len(json.loads(journal.read_text())["files"]) if journal.exists() else 0


def trial(
    model: Path, home: Path, recipe: secateur.Recipe, force: bool, numbers: Sequence[int], draw: random.Random
) -> int:
    """Kill one run by the signals of these ``numbers``, and resume it to its end; how many there was time for."""
    out, log = home / "out", home / "log"
    words = command_of(model, out, recipe, force)[1:]
    began = time.perf_counter()
    assert ended(started([*words, "--quiet"], log)) == 0, log.read_text()[-2000:]
    seconds = time.perf_counter() - began
    wanted = identity(out)
    shutil.rmtree(out)
    if force:
        secateur.prune(model, out, secateur.Recipe(score="magnitude"))
    kills = 0
    while kills < len(numbers) and identity(out) != wanted:
        number = numbers[kills]
        process = started([*words, *(["--resume"] if kills else [])], log)
        time.sleep(draw.uniform(0.05, 1.05) * seconds)
        os.kill(process, number)
        code = ended(process)
        assert code in (0, -9, 128 + number), log.read_text()[-2000:]
        assert is_whole(out) if out.exists() else not force
        state = {"": "nothing", wanted: "the new model"}.get(identity(out), "the old model")
        kept = f"{finished_files(home)} files kept"
        print(f"  {signal.Signals(number).name}, exit code {code}: {state} in place, {kept}", flush=True)
        kills += 1
    if identity(out) != wanted:
        assert ended(started([*words, "--resume"], log)) == 0, log.read_text()[-2000:]
    assert identity(out) == wanted, "other bytes"
    print(f"  resumed to the bytes of an undisturbed run of {seconds:.1f} s", flush=True)
    for left in (out, *home.glob(".out.partial")):
        shutil.rmtree(left)
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--recipes", nargs="*", default=list(OURS))
    args = parser.parse_args()
    torch.set_num_threads(1)  # a process that is forked has no other threads
    with tempfile.TemporaryDirectory() as home:
        SIZES["num_hidden_layers"] = args.layers
        model = tiny("llama", Path(home) / "model")
        secateur.prune(model, Path(home) / "warm", secateur.Recipe.from_dict({**RECIPES[OURS[0]], **SAMPLES}))
        draw, done = random.Random(args.seed), 0
        for name, force in itertools.cycle(itertools.product(args.recipes, (False, True))):
            print(f"{name}{', --force' if force else ''}", flush=True)
            recipe = secateur.Recipe.from_dict({**RECIPES[name], **SAMPLES})
            numbers = [SIGNALS[i % len(SIGNALS)] for i in range(done, min(done + 3, args.kills))]
            done += trial(model, Path(home), recipe, force, numbers, draw)
            if done >= args.kills:
                break
        print(f"{done} kills")


if __name__ == "__main__":
    main()
