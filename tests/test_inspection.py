from dataclasses import replace

import secateur
from secateur.recipe import Recipe
from tests import pico


def test_it_sees_what_pruning_did(tmp_path):
    dense = pico.save("llama-mha", tmp_path / "dense")
    secateur.prune(dense, tmp_path / "out", Recipe(score="magnitude", pattern="2:4", skip=("*.q_proj",)))
    found = {layer.name: layer for layer in secateur.inspect(tmp_path / "out").layers}
    assert len(found) == 21
    v = found["model.layers.1.self_attn.v_proj"]
    assert (v.pattern, v.sparsity, v.reads, v.writes, v.shape) == ("2:4", 0.5, "residual", "value", (32, 32))
    q = found["model.layers.1.self_attn.q_proj"]
    assert (q.pattern, q.sparsity) == (None, 0)
    assert replace(q, name="") == replace(
        {x.name: x for x in secateur.inspect(dense).layers}["model.layers.1.self_attn.q_proj"], name=""
    )


def test_the_tightest_pattern_is_named(tmp_path):
    dense = pico.save("llama-mha", tmp_path / "dense")
    for pattern in ("1:4", "2:8", "2:4", "4:8", "8:16", "3:4"):
        secateur.prune(dense, tmp_path / "out", Recipe(score="magnitude", pattern=pattern), force=True)
        assert {layer.pattern for layer in secateur.inspect(tmp_path / "out").layers} == {pattern}
