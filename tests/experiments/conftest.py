"""A setting on a tiny model, whose rows are computed in this process."""

import json
from functools import partial

import pytest
import torch

import secateur
from experiments.common import Setting, Texts
from secateur.sweeps.work import work
from tests import pico

WORDS = ["channels", "weights", "rows", "inputs", "tokens", "blocks", "norms", "layers", "scores", "masks"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A tiny model, two calibration sets that differ, and one text to measure on."""
    home = tmp_path_factory.mktemp("figures")
    texts = home / "texts"
    texts.mkdir()
    draw = torch.Generator().manual_seed(0)

    def text(words, number):
        return " ".join(words[i] for i in torch.randint(len(words), (number,), generator=draw))

    (texts / "c4-train.jsonl").write_text("".join(json.dumps({"text": text(WORDS, 40)}) + "\n" for _ in range(20)))
    (texts / "wikitext2-train.txt").write_text("\n".join(text(WORDS[:3], 40) for _ in range(20)))
    (texts / "wikitext2-test.txt").write_text("\n".join(text(WORDS, 40) for _ in range(20)))
    return Setting(
        models={"pico": str(pico.save("llama-gqa-tied", home / "pico"))},
        texts=Texts(texts, demo=False),
        recipe={"samples": 4, "length": 16},
        protocol={"window": 32, "limit": 8, "dtype": "float32"},
        seeds=(0,),
        out=home / "out",
        jobs=1,
        small=True,
    )


@pytest.fixture(autouse=True)
def rows_in_this_process(monkeypatch, no_waiting_for_disks):
    def here(jobs):
        for place, job in enumerate(jobs):
            yield place, work(job)

    monkeypatch.setattr(secateur, "sweep", partial(secateur.sweep, executor=here))
