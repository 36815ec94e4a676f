"""The command line under torchrun itself."""

import json
import os
import subprocess
import sys

import pytest

from tests import pico


def torchrun(*words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "secateur"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *map(str, words)], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_one_process_speaks_for_all(tmp_path):
    dense = pico.save("llama-mha", tmp_path / "dense")
    done = torchrun("prune", dense, "--out", tmp_path / "out", "--score", "magnitude", "--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "secateur.json").read_text())
    assert manifest.items() <= json.loads(done.stdout).items()
    assert json.loads(done.stdout)["processes"] == 2
    again = torchrun("prune", dense, "--out", tmp_path / "out", "--score", "magnitude")
    assert again.returncode != 0 and again.stdout == ""
    assert again.stderr.count("error: ") == again.stderr.count("give another --out, or --force") == 1
    assert "Traceback" not in again.stderr.split("torch/distributed")[0]
