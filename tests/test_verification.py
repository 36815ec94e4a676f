"""``verify`` fails where the manifest and the files do not agree, and never passes on nothing."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
from secateur.checkpoint import Source
from secateur.errors import InputError
from secateur.models.blocks import Block
from secateur.pruning import prepare as tasks
from secateur.recipe import Recipe
from secateur.verification import verify
from tests import pico, reads

Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def pruned(tmp_path):
    dense = pico.save("llama-mha", tmp_path / "dense", torch.bfloat16)
    secateur.prune(dense, tmp_path / "pruned", Recipe(score="magnitude", pattern="2:4"))
    return tmp_path / "pruned"


def tamper(folder, change):
    path = folder / "secateur.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def first(**values):
    return lambda manifest: manifest["layers"][0].update(values)


def test_what_was_written_passes_and_says_what_was_not_checked(pruned, tmp_path):
    verdict = secateur.verify(pruned)
    assert verdict.passed
    assert "21 linears" in verdict.checked[0]
    assert any("--dense" in what for what in verdict.unchecked)
    assert not any("--dense" in what for what in secateur.verify(pruned, tmp_path / "dense").unchecked)
    tamper(pruned, lambda manifest: [manifest.pop(key) for key in ("unpruned_sha256", "files")])
    unchecked = " ".join(secateur.verify(pruned).unchecked)
    assert "all other tensors" in unchecked and "the config and the tokenizer" in unchecked


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (lambda manifest: manifest.update(layers=[]), "layers"),
        (lambda manifest: manifest.update(layers=manifest["layers"][:1]), "layers"),
        (lambda manifest: manifest["layers"].append(manifest["layers"][0]), "layers"),
        (first(name="model.layers.0.mlp.other"), "layers"),
        (lambda manifest: manifest.update(sparsity=0.0), "sparsity"),
        (first(sparsity=0.25), "sparsity"),
        (first(shape=[32, 33]), "shape"),
        (first(weight_sha256="0"), "bytes"),
        (first(nonzeros_sha256="0"), "zeros"),
        (lambda manifest: manifest["recipe"].update(pattern="1:4"), "pattern"),
        (lambda manifest: manifest["recipe"].update(skip=["*.q_proj"]), "unpruned"),
        (lambda manifest: manifest["unpruned_sha256"].update({"model.norm.weight": "0"}), "unpruned"),
        (lambda manifest: manifest["unpruned_sha256"].update({"more": "0"}), "unpruned"),
    ],
)
def test_a_manifest_that_does_not_tell_the_truth_fails(pruned, change, failed):
    tamper(pruned, change)
    verdict = secateur.verify(pruned)
    assert not verdict.passed
    assert failed in verdict.failures


@pytest.mark.parametrize(
    "change",
    [
        first(name=3),
        first(name=["a"]),
        first(shape="x"),
        first(shape=[1, 2, 3]),
        first(retained="x"),
        first(tokens=[]),
        first(folds=3),
        first(nonzeros_sha256=None),
        lambda manifest: manifest["layers"][0].pop("weight_sha256"),
        lambda manifest: manifest.update(layers={}),
        lambda manifest: manifest.update(recipe=[]),
        lambda manifest: manifest.update(recipe={"pattern": 3}),
        lambda manifest: manifest.pop("sparsity"),
        lambda manifest: manifest.update(unpruned_sha256=[1]),
    ],
)
def test_a_manifest_of_other_types_gives_one_error(pruned, change):
    tamper(pruned, change)
    with pytest.raises(InputError, match=r"secateur\.json"):
        secateur.verify(pruned)


@pytest.mark.parametrize("name", ["model.embed_tokens", "model.norm", "model.layers.1.input_layernorm"])
def test_a_changed_tensor_that_was_not_pruned_fails(pruned, name):
    for path in pruned.glob("model*.safetensors"):
        state = load_file(path)
        if (weight := f"{name}.weight") in state:
            state[weight].view(-1)[0] += 1
            save_file(state, path, metadata={"format": "pt"})
    assert secateur.verify(pruned).failures == {"unpruned": [f"{name}.weight"]}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_changed_file_beside_the_weights_fails(pruned, name):
    path = pruned / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.5}))
    assert secateur.verify(pruned).failures == {"files": [name]}
    path.unlink()
    if name != "config.json":
        assert secateur.verify(pruned).failures == {"files": [name]}


@pytest.mark.parametrize("name", ["chat_template.jinja", "added_tokens.json", "model.safetensors", "x.safetensors"])
def test_an_added_file_that_loaders_read_fails(pruned, name):
    if name == "model.safetensors":
        save_file(secateur.load(pruned).state_dict(), pruned / name, metadata={"format": "pt"})
    else:
        (pruned / name).write_text("{}")
    assert secateur.verify(pruned).failures == {"files": [name]}


def test_an_added_file_that_nothing_reads_is_named_as_not_checked(pruned):
    (pruned / "notes.txt").write_text("mine")
    verdict = secateur.verify(pruned)
    assert verdict.passed and any("notes.txt" in what for what in verdict.unchecked)


@pytest.mark.parametrize("packed", [False, True])
def test_packing_does_not_vouch_for_what_was_changed(pruned, tmp_path, packed):
    if packed:
        secateur.pack(pruned, tmp_path / "packed")
    step, folder = (secateur.unpack, tmp_path / "packed") if packed else (secateur.pack, pruned)
    name = min(path.name for path in folder.glob("model-*.safetensors")) if packed else "tokenizer_config.json"
    path, out = folder / name, tmp_path / "out"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if packed else whole + b"\n")
    with pytest.raises(InputError, match=f"{name} is no longer as it was written"):
        step(folder, out)
    assert not out.exists()
    tamper(folder, lambda manifest: manifest.pop("files"))
    step(folder, out)


@pytest.mark.parametrize("name", ["mixtral", "gpt2", "opt-350m"])
def test_packing_changes_nothing_that_is_verified(name, tmp_path):
    dense = pico.save(name, tmp_path / "dense", torch.bfloat16)
    skip = ("*.experts.1.*",) if name == "mixtral" else ()
    secateur.prune(dense, tmp_path / "pruned", Recipe(score="magnitude", skip=skip))
    secateur.pack(tmp_path / "pruned", tmp_path / "packed")
    for folder in ("pruned", "packed"):
        verdict = secateur.verify(tmp_path / folder)
        assert verdict.passed, verdict


@pytest.mark.parametrize("name", ["mixtral", "gpt2", "llama-gqa-tied"])
@pytest.mark.parametrize("values", ["int8", "int4"])
def test_what_packing_rounds_is_verified(name, values, tmp_path):
    """With masks, without, and with masks for some parts of a stack of experts."""
    dense = pico.save(name, tmp_path / "dense", torch.bfloat16)
    for sparsity in (0.5, 0.25, 0.05):
        pruned, packed, again = (tmp_path / f"{sparsity} {which}" for which in ("pruned", "packed", "again"))
        skip = ("*.experts.1.*", "*.v_proj") if name == "mixtral" else ()
        secateur.prune(dense, pruned, Recipe(score="magnitude", skip=skip, sparsity=sparsity))
        secateur.pack(pruned, packed, int8=values == "int8", int4=values == "int4")
        secateur.unpack(packed, again)
        for folder in (packed, again):
            assert secateur.verify(folder).passed and secateur.verify(folder, pruned).passed
        shard = max(again.glob("model-*.safetensors"))
        save_file({key: -weight for key, weight in load_file(shard).items()}, shard, metadata={"format": "pt"})
        assert "bytes" in secateur.verify(again).failures


def test_a_dense_model_that_packing_rounds_is_verified(tmp_path):
    dense = pico.save("llama-mha", tmp_path / "dense", torch.bfloat16)
    secateur.pack(dense, tmp_path / "packed", int4=True)
    verdict = secateur.verify(tmp_path / "packed")
    assert verdict.passed and "21 tensors hold what packing has rounded them to" in verdict.checked[0]
    tamper(tmp_path / "packed", lambda manifest: manifest["rounded"]["sha256"].update({"lm_head.weight": "0" * 64}))
    assert secateur.verify(tmp_path / "packed").failures == {"bytes": ["lm_head.weight"]}


@pytest.mark.parametrize("name", ["llama-gqa-tied", "gpt2", "qwen3-moe", "mixtral"])
@pytest.mark.parametrize("packed", [False, True])
def test_each_tensor_is_read_once(name, packed, tmp_path, monkeypatch):
    dense, pruned = pico.save(name, tmp_path / "dense"), tmp_path / "pruned"
    secateur.prune(dense, pruned, Recipe(score="magnitude"))
    if packed:
        secateur.pack(pruned, pruned := tmp_path / "packed")
    with reads.counted(monkeypatch) as read:
        assert secateur.verify(pruned, dense).passed
    for folder in (dense, pruned):
        assert 0.8 * reads.size_of(folder) < read[folder] <= reads.size_of(folder)
    with reads.counted(monkeypatch) as read:
        assert secateur.verify(pruned).passed
        assert read[pruned] <= reads.size_of(pruned)
        read.clear()
        secateur.inspect(pruned)
        assert read[pruned] <= reads.size_of(pruned)


@pytest.mark.parametrize("name", ["llama-gqa-tied", "opt-350m", "mixtral"])
def test_one_block_is_in_memory_at_a_time(name, tmp_path, monkeypatch):
    dense, pruned = pico.save(name, tmp_path / "dense"), tmp_path / "pruned"
    secateur.prune(dense, pruned, Recipe(score="magnitude"))
    most, genuine = [], Source.read

    def alive(source, names):
        most.append(sum(block.device.type != "meta" for block in blocks))
        return genuine(source, names)

    blocks: list[Block] = []

    def prepare(skeleton, recipe):
        task = tasks.prepare(skeleton, recipe)
        blocks.extend(task.blocks)
        return task

    monkeypatch.setattr(verify, "prepare", prepare)
    monkeypatch.setattr(Source, "read", alive)
    assert secateur.verify(pruned, dense).passed
    assert len(blocks) == 3 and set(most) == {0}
    assert {block.device.type for block in blocks} == {"meta"}


def test_what_was_only_packed_is_said_to_be(tmp_path):
    model = pico.build("llama-mha", dtype=torch.bfloat16)
    for block in model.model.layers:
        block.mlp.up_proj.weight.data[:, ::2] = 0
    model.save_pretrained(tmp_path / "foreign")
    pico.tokenizer().save_pretrained(tmp_path / "foreign")
    secateur.pack(tmp_path / "foreign", tmp_path / "packed")
    with pytest.raises(InputError, match="packed was not pruned by secateur, only packed or unpacked"):
        secateur.verify(tmp_path / "packed")


def test_a_field_that_is_missing_is_named(pruned):
    tamper(pruned, lambda manifest: manifest["layers"][1].pop("weight_sha256"))
    with pytest.raises(InputError, match=r"required field `weight_sha256` - at `\$\.layers\[1\]`"):
        secateur.verify(pruned)
    tamper(pruned, lambda manifest: [manifest.pop(key) for key in ("layers", "recipe")])
    with pytest.raises(InputError, match="required field `recipe`"):
        secateur.verify(pruned)


@pytest.mark.parametrize("other", ["llama-gqa-tied", "gpt2"])
def test_another_model_is_no_dense_one(pruned, tmp_path, other):
    with pytest.raises(InputError, match="is another model than"):
        secateur.verify(pruned, pico.save(other, tmp_path / "other"))
