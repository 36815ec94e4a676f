"""What ``secateur quantize`` writes: the zeros of before, in a folder that others read as well."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import secateur
from secateur.checkpoint import Source
from secateur.cli import main
from secateur.digests import file_digest
from secateur.errors import InputError
from secateur.pruning.journal import command_of
from secateur.quantization.methods import QUANTIZATIONS
from secateur.recipe import QuantizationRecipe, Recipe
from tests import pico
from tests.stopping import stopped

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A dense model, the same pruned to 2:4, and quantized to 4 bits; a text."""
    root = tmp_path_factory.mktemp("models")
    (root / "text.txt").write_text(TEXT)
    dense = pico.save("llama-gqa-tied", root / "dense", torch.bfloat16)
    secateur.prune(dense, root / "pruned", Recipe(score="magnitude", pattern="2:4", skip=("*.o_proj",)))
    secateur.quantize(root / "pruned", root / "quantized", recipe_of(root))
    return root


def recipe_of(root, **more):
    plain = QuantizationRecipe(method="rtn", group_size=16, calibration=str(root / "text.txt"), samples=4, length=32)
    return replace(plain, **more)


def tensors(folder):
    source = Source(folder)
    return source.read(source.names())


def content(folder):
    """The digest of every file, without the times in the manifest."""
    manifest = json.loads((folder / "secateur.json").read_text())
    manifest["quantization"].pop("seconds")
    return {path.name: file_digest(path) for path in folder.iterdir() if path.name != "secateur.json"} | {"": manifest}


def change(folder, name, by):
    """Let ``by`` change the stored tensor of this ``name``."""
    for path in folder.glob("model*.safetensors"):
        if name in (held := load_file(path)):
            held[name] = by(held[name])
            save_file(held, path, metadata={"format": "pt"})


def copied(root, name, tmp_path):
    for path in (root / name).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


# ---------------------------------------------------------------- what is zero stays zero


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", QUANTIZATIONS)
def test_what_is_zero_stays_zero_and_verify_proves_it(method, bits, symmetric, root, tmp_path):
    pruned, out = root / "pruned", tmp_path / "out"
    manifest = secateur.quantize(pruned, out, recipe_of(root, method=method, bits=bits, symmetric=symmetric))
    before, after = tensors(pruned), tensors(out)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert not after[name][tensor == 0].any(), name
    verdict = secateur.verify(out, pruned)
    assert verdict.passed, verdict
    said = manifest["quantization"]
    assert len(said["layers"]) == 21 and said["zeros"] >= said["zeros_before"] > 0.4
    assert manifest["recipe"]["pattern"] == "2:4", "what was said of the pruning is kept"
    parts = [one.nbytes for name, one in Source(out).held.items() if name in Source(out).quantized]
    assert said["bytes"]["linears"][1] == sum(parts)
    assert (said["calibration"] is None) == (not QUANTIZATIONS[method].needs_inputs)


def test_a_zero_that_is_lost_is_found(root, tmp_path):
    folder = copied(root, "quantized", tmp_path)
    secateur.load(folder)
    change(folder, f"{Q}_packed", lambda packed: packed ^ 1)
    failures = secateur.verify(folder).failures
    assert failures["zeros"] == failures["bytes"] == [Q.removesuffix(".weight")] and "pattern" in failures
    assert secateur.verify(folder, root / "pruned").failures["weights"] == [Q]


@pytest.mark.parametrize(
    ("tamper", "failed"),
    [
        (lambda said: said["layers"].pop(), "quantized"),
        (lambda said: said["layers"][0].update(zeros_before=said["layers"][0]["zeros"] + 1), "zeros"),
        (lambda said: said["layers"][0].update(zeros_before=0), "zeros"),
        (lambda said: said["layers"][0].update(weight_sha256="0"), "bytes"),
        (lambda said: said["layers"][0].update(shape=[32, 33]), "shape"),
    ],
)
def test_a_manifest_that_does_not_tell_the_truth_fails(tamper, failed, root, tmp_path):
    folder = copied(root, "quantized", tmp_path)
    manifest = json.loads((folder / "secateur.json").read_text())
    tamper(manifest["quantization"])
    (folder / "secateur.json").write_text(json.dumps(manifest))
    assert failed in secateur.verify(folder).failures


def test_what_was_not_quantized_is_compared_with_what_it_was_made_of(root):
    assert secateur.verify(root / "quantized", root / "dense").failures.keys() == {"weights"}


def test_a_model_that_was_never_pruned(root, tmp_path):
    dense, out = root / "dense", tmp_path / "out"
    secateur.quantize(dense, out, recipe_of(root, skip=("*.o_proj", "*.down_proj")))
    verdict = secateur.verify(out, dense)
    assert verdict.passed and "15 linears are quantized" in verdict.checked[0]
    change(out, "model.norm.weight", lambda weight: weight + 1)
    assert secateur.verify(out).failures == {"unpruned": ["model.norm.weight"]}


# ---------------------------------------------------------------- who reads it


@pytest.mark.parametrize("name", ["llama-gqa-tied", "qwen2", "gemma3", "opt-350m", "gpt-neox", "falcon-40b", "lfm2"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_plain_transformers_computes_the_same(name, symmetric, tmp_path):
    pytest.importorskip("compressed_tensors")
    dense = pico.save(name, tmp_path / "dense", torch.bfloat16)
    secateur.quantize(dense, tmp_path / "out", QuantizationRecipe(method="rtn", group_size=16, symmetric=symmetric))
    ours, theirs = secateur.load(tmp_path / "out"), AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(ours(pico.tokens()).logits, theirs(pico.tokens()).logits)


def test_a_folder_that_the_library_writes_is_read(root, tmp_path):
    """In whole rows, as nothing here is written."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    folder, dense = copied(root, "dense", tmp_path), tensors(root / "dense")
    arguments = QuantizationArgs(num_bits=4, symmetric=True, strategy="channel")
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments, format="pack-quantized")
    library, held, wanted = BaseCompressor.get_value_from_registry("pack-quantized"), {}, {}
    for name, weight in dense.items():
        if not name.endswith("_proj.weight"):
            held[name] = wanted[name] = weight
            continue
        scale = weight.abs().amax(1, keepdim=True) / 7
        module = {"weight": weight, "weight_scale": scale, "weight_zero_point": torch.zeros_like(scale).to(torch.int8)}
        parts = library.compress(module, scheme)
        held |= {name.removesuffix("weight") + part: tensor for part, tensor in parts.items()}
        wanted[name] = library.decompress(parts, scheme)["weight"]
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    groups = {"group_0": scheme.model_dump(mode="json")}
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    found = tensors(folder)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_perplexity_is_that_of_the_weights_as_they_decode(root, tmp_path):
    folder = copied(root, "dense", tmp_path)
    save_file(tensors(root / "quantized"), folder / "model.safetensors", metadata={"format": "pt"})
    plain, quantized = secateur.evaluate([folder, root / "quantized"], str(root / "text.txt"), window=32, limit=4)
    assert plain.perplexity == quantized.perplexity


def test_what_else_reads_a_model_reads_this(root, tmp_path, capsys):
    quantized = root / "quantized"
    assert all(layer.bits == 4 for layer in secateur.inspect(quantized).layers)
    assert secateur.generate(quantized, "a law", tokens=2, device="cpu").text
    with pytest.raises(SystemExit):
        main(["inspect", str(quantized)])
    assert "bits" in capsys.readouterr().out


def test_pruning_what_is_quantized_gives_a_plain_model(root, tmp_path):
    out = tmp_path / "out"
    secateur.prune(root / "quantized", out, Recipe(score="magnitude", sparsity=0.75))
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert secateur.verify(out, root / "quantized").passed
    with torch.no_grad():
        AutoModelForCausalLM.from_pretrained(out)(pico.tokens())


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize("method", QUANTIZATIONS)
def test_a_killed_run_ends_in_the_bytes_of_one_that_was_not(method, root, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    pruned, recipe = root / "pruned", recipe_of(root, method=method)
    secateur.quantize(pruned, tmp_path / "whole", recipe)
    out = tmp_path / "out"
    for stop in (28, 12):
        assert stopped(lambda: secateur.quantize(pruned, out, recipe, resume=True), stop)
    journal = json.loads((tmp_path / ".out.partial" / "journal.json").read_text())
    assert any(name.endswith(".results") for name in journal["files"])
    assert journal["command"] == command_of(pruned, out, recipe, False, "quantize")
    with pytest.raises(SystemExit) as end:
        main([*journal["command"][1:], "--resume", "--quiet"])
    assert end.value.code == 0
    assert content(out) == content(tmp_path / "whole")


# ---------------------------------------------------------------- what is refused


def test_groups_that_do_not_fit_are_refused_with_those_that_would(root, tmp_path):
    with pytest.raises(InputError, match=r"q_proj: groups of 24 .* 32; 32, 16 would.*--skip '\*.self_attn.q_proj'"):
        secateur.quantize(root / "dense", tmp_path / "out", recipe_of(root, group_size=24))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "message"), [("gpt2", "transposed"), ("mixtral", "experts")])
def test_linears_that_the_format_does_not_hold(name, message, tmp_path):
    dense = pico.save(name, tmp_path / "dense")
    with pytest.raises(InputError, match=message):
        secateur.quantize(dense, tmp_path / "out", QuantizationRecipe(method="rtn", group_size=16))


def test_folders_that_are_packed_gathered_or_quantized(root, tmp_path):
    secateur.pack(root / "pruned", tmp_path / "packed")
    secateur.prune(root / "dense", tmp_path / "gather", Recipe(score="magnitude", pattern="2:4", fold="gather"))
    for folder, message in (
        (tmp_path / "packed", "is packed"),
        (tmp_path / "gather", "--fold gather"),
        (root / "quantized", "quantized already"),
    ):
        with pytest.raises(InputError, match=message):
            secateur.quantize(folder, tmp_path / "out", recipe_of(root))


def test_several_processes_are_refused(root, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="without torchrun"):
        secateur.quantize(root / "dense", tmp_path / "out", recipe_of(root))


@pytest.mark.parametrize("options", [{"method": "best"}, {"bits": 3}, {"group_size": 0}, {"samples": 0}, {"seed": -1}])
def test_options_that_make_no_sense(options):
    with pytest.raises(InputError):
        QuantizationRecipe(**options)


def quantization(**more):
    def damage(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        scheme = config["quantization_config"]["config_groups"]["group_0"]
        for key, value in more.items():
            (scheme["weights"] if key in scheme["weights"] else scheme)[key] = value
        path.write_text(json.dumps(config))

    return damage


def part(kind, by):
    return lambda folder: change(folder, f"{Q}_{kind}", by)


def first(value):
    def changed(tensor):
        tensor.view(-1)[0] = value
        return tensor

    return changed


DAMAGES = {
    "three bits": (quantization(num_bits=3), "codes of 3 bits"),
    "bits of another number": (quantization(num_bits=8), "weight_packed is I32"),
    "groups of another size": (quantization(group_size=8), "weight_scale is BF16"),
    "groups that do not divide": (quantization(group_size=24), "cannot be .* in groups of 24"),
    "tensors": (quantization(strategy="tensor", group_size=None), "grids by tensor"),
    "floats": (quantization(type="float"), "codes of the type float"),
    "inputs": (quantization(input_activations={"num_bits": 8}), "inputs that are quantized"),
    "a group of another kind": (quantization(weights=3), "is none"),
    "short codes": (part("packed", lambda packed: packed[:, 1:].contiguous()), "weight_packed is I32 32 × 3"),
    "codes of another type": (part("packed", torch.Tensor.float), "weight_packed is F32"),
    "no zero-points": (part("zero_point", lambda zeros: zeros[:, :0]), "weight_zero_point is I32 4 × 0"),
    "scales that are integers": (part("scale", torch.Tensor.int), "must be floats"),
    "a scale that is none": (part("scale", first(float("nan"))), "1 of the 64 scales of .* are no positive numbers"),
    "a negative scale": (part("scale", first(-1.0)), "are no positive numbers"),
    "another shape": (part("shape", first(2**40)), "weight_packed is I32"),
    "a negative shape": (part("shape", first(-32)), "cannot be -32"),
    "a shape that is none": (part("shape", lambda shape: shape[:1]), "is no shape of a matrix"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_every_kind_of_damage_is_refused(damage, message, root, tmp_path):
    folder = copied(root, "quantized", tmp_path)
    damage(folder)
    for read in (secateur.inspect, secateur.load):
        with pytest.raises(InputError, match=message):
            read(folder)


def test_a_part_that_is_missing(root, tmp_path):
    folder = copied(root, "quantized", tmp_path)
    for path in folder.glob("model-*.safetensors"):
        held = load_file(path)
        if held.pop(f"{Q}_zero_point", None) is not None:
            save_file(held, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks"):
        secateur.inspect(folder)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_folder_is_packed_without_loss(bits, root, tmp_path):
    """Codes, scales and zero-points as they are, of pruned linears with a mask."""
    secateur.quantize(root / "pruned", tmp_path / "quantized", recipe_of(root, group_size=32, bits=bits))
    packing = secateur.pack(tmp_path / "quantized", tmp_path / "packed")
    assert packing.linears == 21 and packing.packed_bytes < packing.dense_bytes * (bits * 0.65 + 2) / 16
    source, before = (Source(tmp_path / folder) for folder in ("packed", "quantized"))
    assert {entry.bits for entry in source.sparse.values()} == {bits}
    assert sum(not entry.masked for entry in source.sparse.values()) == 3  # which were skipped
    ours, theirs = (x.read(x.names()) for x in (source, before))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    for dense in (None, root / "pruned"):
        assert secateur.verify(tmp_path / "packed", dense).passed
    assert not (tmp_path / "packed" / "config.json").read_text().count("quantization_config")
    secateur.unpack(tmp_path / "packed", tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").state_dict()
    assert all(torch.equal(again[name], ours[name]) for name in ours)
    assert secateur.verify(tmp_path / "plain", root / "pruned").passed
    with pytest.raises(InputError, match="is quantized: pack takes its weights as they are, without --int4"):
        secateur.pack(tmp_path / "quantized", tmp_path / "twice", int4=True)
