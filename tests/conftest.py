import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

# Where there is no GPU, Triton's kernels run in its interpreter, which has to be asked for before they are imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from tests.cuda import cusparselt_stand_in  # noqa: F401 (a fixture)

# Processes that share a machine's cores (make test) have one thread each, and so have those that they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# What is drawn for properties is the same in every run, but with --hypothesis-profile=long.
settings.register_profile("short", derandomize=True, deadline=None, max_examples=60, database=None)
settings.register_profile("long", deadline=None, max_examples=2000)
settings.load_profile("short")


def pytest_addoption(parser):
    parser.addoption("--families-table", metavar="FILE", help="write what test_families.py finds as a table")


@pytest.fixture
def no_waiting_for_disks(monkeypatch):
    """Nothing is flushed: the machine goes on when a process dies."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="session")
def families_table(request):
    """Rows of the table of families; written at the end of the run if it is asked for."""
    rows: list[list[object]] = []
    yield rows
    if file := request.config.getoption("--families-table"):
        head: list[object] = [
            "model",
            "family",
            "linears",
            "pruned",
            "logits differ, float32",
            "bfloat16",
            "loads plainly",
        ]
        table: list[list[object]] = [head, ["---"] * len(head), *rows]
        lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in table]
        Path(file).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def plain_transformers(monkeypatch):
    """transformers without what secateur.transformers, which another test may have imported, has let it know."""
    for mapping in (CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        monkeypatch.setattr(mapping, "_extra_content", {})


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """No test sees, or changes, what this user's cache holds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def no_fast_bfloat16(monkeypatch):
    """Compute alike on every processor, but where a test wants its processor's own way."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
