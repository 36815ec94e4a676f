"""Structured pruning: what is written is the dense model without what went, and what went mattered least."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DiffLlamaConfig, LlamaConfig

import secateur
from secateur import data
from secateur.checkpoint import ORDERS, Source
from secateur.data.sources import Text
from secateur.importance import METHODS
from secateur.models.blocks import blocks_of, family_of
from secateur.shrinkage import Shrinkage
from secateur.shrinking.widths import Shapes, Widths, widths_for
from tests import pico
from tests.counting import Counting

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40
SAMPLES, LENGTH = 6, 32
NARROW = [name for name in pico.KNOWN if name != "bloom"]  # whose config can say narrower blocks


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("shrinking") / "text.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture(scope="session")
def dense(tmp_path_factory):
    """The folder of a tiny model, by its name."""
    folder = tmp_path_factory.mktemp("dense")
    return lambda name: folder / name if (folder / name).exists() else pico.save(name, folder / name)


@pytest.fixture
def shrinkage(text):
    given = {"calibration": text, "samples": SAMPLES, "length": LENGTH, "dtype": "float32", "sparsity": 0.4}
    return lambda **options: Shrinkage(**given | options)


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(model):
    with torch.no_grad():
        return model(pico.tokens()).logits


def difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def linear_weights(folder):
    return sum(weight.numel() for weight in pico.linears(folder).values())


def batch(folder):
    """The calibration samples, int64 ``(SAMPLES, LENGTH)``."""
    return data.calibration_samples(Text("text", [TEXT]), Source(folder).tokenizer(), SAMPLES, LENGTH, 0)


def silence(model, kept):
    """Take what went away from what a dense model's blocks add to the residual space, and nothing else."""
    family = family_of(model)
    queries, _, width = family.heads
    for block in blocks_of(model, family):
        for linear in block.linears:
            weight = block.weight(linear)
            if linear.reads == "value" and block.prefix + "heads" in kept:
                gone = set(range(queries)) - set(kept[block.prefix + "heads"].tolist())
                for head in gone:
                    weight[:, head * width : (head + 1) * width] = 0
            elif (channels := kept.get(f"{block.prefix}{linear.reads}")) is not None:
                gone = set(range(weight.shape[1])) - set(channels.tolist())
                weight[:, sorted(gone)] = 0
    return model


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("method", ["activation", "taylor"])
@pytest.mark.parametrize("name", NARROW)
def test_a_narrower_model_is_the_dense_one_without_what_went(name, method, dense, shrinkage, tmp_path):
    manifest = secateur.shrink(dense(name), tmp_path / "out", shrinkage(method=method))
    model = loaded(tmp_path / "out")
    silenced = silence(loaded(dense(name)), load_file(tmp_path / "out" / ORDERS))
    assert difference(logits(model), logits(silenced)) < 1e-5
    assert model.generate(pico.tokens(1, 5), max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (1, 8)
    assert linear_weights(tmp_path / "out") == manifest["weights"]["kept"] < manifest["weights"]["dense"]
    assert linear_weights(dense(name)) == manifest["weights"]["dense"]
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: written[key] for key in manifest["config"]} == manifest["config"] != {}
    assert secateur.verify(tmp_path / "out", dense(name)).passed


@pytest.mark.parametrize("name", pico.KNOWN)
def test_in_place_the_shape_stays_and_what_went_is_zero(name, dense, shrinkage, tmp_path):
    manifest = secateur.shrink(dense(name), tmp_path / "out", shrinkage(in_place=True))
    kept = load_file(tmp_path / "out" / ORDERS)
    assert any(len(numbers) < 4 for key, numbers in kept.items() if key.endswith("heads"))
    assert difference(logits(loaded(tmp_path / "out")), logits(silence(loaded(dense(name)), kept))) < 1e-5
    zeros = sum((weight == 0).sum().item() for weight in pico.linears(tmp_path / "out").values())
    assert zeros == manifest["weights"]["dense"] - manifest["weights"]["kept"]
    assert abs(manifest["sparsity"] - 0.4) < 0.1
    assert secateur.verify(tmp_path / "out", dense(name)).passed


@pytest.mark.parametrize("name", ["llama-biased", "phi3", "gpt2", "mixtral", "bloom"])
@pytest.mark.parametrize("method", ["activation", "depth"])
def test_nothing_goes_at_no_sparsity(name, method, dense, shrinkage, tmp_path):
    manifest = secateur.shrink(dense(name), tmp_path / "out", shrinkage(sparsity=0, method=method))
    ours, theirs = (Source(folder) for folder in (tmp_path / "out", dense(name)))
    before, after = theirs.read(theirs.names()), ours.read(ours.names())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert (tmp_path / "out" / "config.json").read_bytes() == (dense(name) / "config.json").read_bytes()
    assert manifest["sparsity"] == 0


@pytest.mark.parametrize("name", [*pico.KNOWN, "lfm2"])
def test_a_shallower_model_is_the_dense_one_without_some_blocks(name, dense, shrinkage, tmp_path):
    secateur.shrink(dense(name), tmp_path / "out", shrinkage(method="depth", keep_first=1, sparsity=1 / 3))
    kept = load_file(tmp_path / "out" / ORDERS)["blocks"].tolist()
    assert kept in ([0, 1], [0, 2])
    model = loaded(dense(name))
    path = family_of(model).blocks
    if types := getattr(model.config, "layer_types", None):
        model.config.layer_types = [types[index] for index in kept]
        assert loaded(tmp_path / "out").config.layer_types == model.config.layer_types
    model.config.num_hidden_layers = 2
    model.set_submodule(path, torch.nn.ModuleList(model.get_submodule(path)[index] for index in kept))
    with torch.no_grad():  # a cache would be sized by numbers that the blocks still have
        expected = model(pico.tokens(), use_cache=False).logits
    assert torch.equal(logits(loaded(tmp_path / "out")), expected)
    assert secateur.verify(tmp_path / "out", dense(name)).passed


def test_blocks_at_either_end_stay_whole(dense, shrinkage, tmp_path):
    options = shrinkage(in_place=True, keep_first=1, keep_last=1, sparsity=0.2)
    manifest = secateur.shrink(dense("llama-mha"), tmp_path / "out", options)
    before, after = (pico.linears(folder) for folder in (dense("llama-mha"), tmp_path / "out"))
    changed = {key.split(".")[2] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"1"}
    assert abs(manifest["sparsity"] - 0.2) < 0.02  # of all blocks: the one between loses three times as much


def test_the_same_bytes_come_out_twice(dense, shrinkage, tmp_path):
    for out in ("one", "two"):
        secateur.shrink(dense("qwen2"), tmp_path / out, shrinkage(method="taylor"))
    one, two = (json.loads((tmp_path / out / "secateur.json").read_text())["files"] for out in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("method", METHODS)
def test_progress_comes_to_what_was_announced(method, dense, shrinkage, tmp_path):
    progress = Counting()
    secateur.shrink(dense("gpt-neox"), tmp_path / "out", shrinkage(method=method), progress=progress)
    assert progress.done == progress.total > 0


def test_what_is_in_place_can_be_packed_and_still_verified(dense, shrinkage, tmp_path):
    secateur.shrink(dense("llama-mha"), tmp_path / "out", shrinkage(in_place=True, sparsity=0.6))
    secateur.pack(tmp_path / "out", tmp_path / "packed")
    assert secateur.verify(tmp_path / "packed", dense("llama-mha")).passed
    secateur.pack(tmp_path / "out", tmp_path / "int8", int8=True)
    assert secateur.verify(tmp_path / "int8").passed
    with pytest.raises(secateur.InputError, match="packing has rounded: --dense is for the folder of before"):
        secateur.verify(tmp_path / "int8", dense("llama-mha"))


def test_what_is_smaller_can_be_pruned_and_quantized_but_not_the_other_way_round(dense, shrinkage, text, tmp_path):
    small, pruned, quantized = (tmp_path / name for name in ("small", "pruned", "quantized"))
    secateur.shrink(dense("llama-mha"), small, shrinkage(sparsity=0.25))
    rounding = secateur.QuantizationRecipe(method="rtn", group_size=8)
    secateur.quantize(small, tmp_path / "small quantized", rounding)
    assert secateur.verify(tmp_path / "small quantized", small).passed
    secateur.prune(small, pruned, secateur.Recipe(score="magnitude", pattern="2:4", permute="none"))
    secateur.quantize(pruned, quantized, rounding)
    assert secateur.verify(pruned, small).passed and secateur.verify(quantized, pruned).passed
    with pytest.raises(secateur.InputError, match="is quantized: shrink the model that it was made of"):
        secateur.shrink(quantized, tmp_path / "out", shrinkage())


def test_a_shrunk_model_is_a_model_like_any_other(dense, shrinkage, text, tmp_path):
    secateur.shrink(dense("phi3"), tmp_path / "out", shrinkage())
    assert {layer.shape for layer in secateur.inspect(tmp_path / "out").layers} == {
        (48, 32), (32, 16), (80, 32), (32, 40),
    }  # fmt: skip
    (found,) = secateur.evaluate([tmp_path / "out"], [text], window=32, limit=2)
    assert found.perplexity > 1
    assert secateur.generate(tmp_path / "out", "fox", tokens=2).tokens == 2
    pruned = tmp_path / "pruned"
    secateur.prune(tmp_path / "out", pruned, secateur.Recipe(score="magnitude"))
    assert secateur.verify(pruned, tmp_path / "out").passed


# ---------------------------------------------------------------- how much goes


@pytest.mark.parametrize(("sparsity", "queries", "keys"), [(0.25, 6, 3), (0.5, 3, 3), (0.75, 2, 1)])
def test_the_total_is_as_asked(sparsity, queries, keys):
    """SmolLM2-135M's shape: of three key-value heads with three query heads each, what comes nearest."""
    config = LlamaConfig(
        hidden_size=576, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536, num_hidden_layers=1
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = Shapes(blocks_of(model, family_of(model)), family_of(model))
    whole = shapes.weights(shapes.whole)
    assert whole == 576 * (2 * 576 + 2 * 192 + 3 * 1536)
    widths = widths_for(shapes, (1 - sparsity) * whole, lambda _: True)
    assert (widths.queries, widths.keys, widths.channels % 8) == (queries, keys, 0)
    assert abs(shapes.weights(widths) - (1 - sparsity) * whole) <= 4 * 3 * 576  # half of eight channels


def test_heads_that_a_config_refuses_are_passed_over():
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=8, num_key_value_heads=8, intermediate_size=128, num_hidden_layers=1
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = Shapes(blocks_of(model, family_of(model)), family_of(model))
    target = 0.75 * shapes.weights(shapes.whole)
    assert widths_for(shapes, target, lambda _: True) == Widths(6, 6, 96)
    divides = widths_for(shapes, target, lambda widths: 64 % widths.queries == 0)
    assert divides.queries in (4, 8)
    assert abs(shapes.weights(divides) - target) <= 4 * 3 * 64


# ---------------------------------------------------------------- what goes


def lowest(importance, count):
    return sorted(importance.sort(descending=True, stable=True).indices[:count].tolist())


def test_taylor_is_the_first_order_sum_over_what_a_channel_couples(dense, shrinkage, tmp_path):
    """One key-value head with four query heads, biases everywhere: by autograd through the whole model."""
    secateur.shrink(dense("llama-biased"), tmp_path / "out", shrinkage(method="taylor"))
    kept = load_file(tmp_path / "out" / ORDERS)
    model, tokens = loaded(dense("llama-biased")), batch(dense("llama-biased"))
    model(tokens, labels=tokens).loss.backward()

    def change(parameter, dim=0):
        each = (parameter * parameter.grad).detach().abs()
        return each.sum(1 - dim) if each.ndim > 1 else each

    for index, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        channels = change(mlp.down_proj.weight, 1)
        for linear in (mlp.gate_proj, mlp.up_proj):
            channels = channels + change(linear.weight) + change(linear.bias)
        queries = change(attention.q_proj.weight) + change(attention.q_proj.bias) + change(attention.o_proj.weight, 1)
        prefix = f"model.layers.{index}."
        assert kept[prefix + "mlp"].tolist() == lowest(channels, len(kept[prefix + "mlp"]))
        assert kept[prefix + "heads"].tolist() == lowest(queries.view(4, 8).sum(1), len(kept[prefix + "heads"]))


def test_taylor_chooses_key_value_heads_with_all_that_they_couple(dense, shrinkage, tmp_path):
    secateur.shrink(dense("llama-mha"), tmp_path / "out", shrinkage(method="taylor"))
    kept = load_file(tmp_path / "out" / ORDERS)
    model, tokens = loaded(dense("llama-mha")), batch(dense("llama-mha"))
    model(tokens, labels=tokens).loss.backward()
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        changes = [(x.weight * x.weight.grad).detach().abs() for x in attention.children()]
        q, k, v, o = (changes[[*dict(attention.named_children())].index(f"{name}_proj")] for name in "qkvo")
        heads = (q.sum(1) + k.sum(1) + v.sum(1) + o.sum(0)).view(4, 8).sum(1)
        assert kept[f"model.layers.{index}.heads"].tolist() == lowest(heads, 2)


def test_activation_is_the_norm_of_what_the_shrunk_blocks_before_make(dense, shrinkage, tmp_path):
    secateur.shrink(dense("qwen3"), tmp_path / "out", shrinkage())
    kept = load_file(tmp_path / "out" / ORDERS)
    tokens, seen = batch(dense("qwen3")), {}
    for index in range(3):
        before = {key: value for key, value in kept.items() if int(key.split(".")[2]) < index}
        model = silence(loaded(dense("qwen3")), before)
        layer = model.model.layers[index]
        for name, linear in (("heads", layer.self_attn.o_proj), ("mlp", layer.mlp.down_proj)):
            linear.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0].flatten(0, 1)}))
        with torch.no_grad():
            model(tokens)
        prefix = f"model.layers.{index}."
        assert kept[prefix + "mlp"].tolist() == lowest(seen["mlp"].norm(dim=0), len(kept[prefix + "mlp"]))
        heads = seen["heads"].unflatten(1, (4, 8)).norm(dim=(0, 2)).square()
        best = [pair.argmax().item() + 2 * group for group, pair in enumerate(heads.view(2, 2))]
        assert kept[prefix + "heads"].tolist() == best  # one query head of each key-value head stays


def test_depth_is_block_influence(dense, shrinkage, tmp_path):
    manifest = secateur.shrink(dense("llama-mha"), tmp_path / "out", shrinkage(method="depth"))
    model, states = loaded(dense("llama-mha")), []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, inputs, output: states.append((inputs[0], output)))
    with torch.no_grad():
        model(batch(dense("llama-mha")))
    influence = [1 - torch.cosine_similarity(before, after, dim=-1).mean().item() for before, after in states]
    assert manifest["influences"] == pytest.approx(influence, rel=1e-4)
    least = influence.index(min(influence))
    assert load_file(tmp_path / "out" / ORDERS)["blocks"].tolist() == [i for i in range(3) if i != least]


# ---------------------------------------------------------------- what is refused, and what is noticed


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bloom", {}, "no config of a bloom model"),
        ("opt", {"sparsity": 0.7}, "at most 43.8% of these weights can go"),
        ("lfm2", {}, "nothing is known of the channels"),
        ("llama-mha", {"method": "depth", "sparsity": 0.9}, "at most 2 can go"),
        ("llama-mha", {"method": "depth", "keep_first": 3}, "are all"),
        ("llama-mha", {"keep_first": 2, "keep_last": 1, "in_place": True}, "are all"),
        ("llama-mha", {"keep_first": 1, "in_place": True, "sparsity": 0.9}, "can go"),
        ("llama-mha", {"length": 4096}, "exceed the model's context"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(name, options, message, dense, shrinkage, tmp_path):
    with pytest.raises(secateur.InputError, match=message):
        secateur.shrink(dense(name), tmp_path / "out", shrinkage(**options))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "below 1"),
        ({"sparsity": float("nan")}, "below 1"),
        ({"method": "magic"}, "not one of activation, taylor, depth"),
        ({"keep_first": 4}, "--in-place"),
        ({"keep_last": -1, "in_place": True}, "number of blocks"),
        ({"method": "depth", "in_place": True}, "no --in-place"),
        ({"samples": 0}, "too few"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(secateur.InputError, match=message):
        Shrinkage(**options)


@pytest.fixture
def shrunk(dense, shrinkage, tmp_path):
    secateur.shrink(dense("llama-mha"), tmp_path / "out", shrinkage())
    return tmp_path / "out"


def rewrite(folder: Path, change):
    path = folder / "secateur.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_verify_sees_other_weights(shrunk, dense):
    shard = sorted(shrunk.glob("model-*.safetensors"))[1]
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    verdict = secateur.verify(shrunk, dense("llama-mha"))
    assert verdict.failures.keys() == {"bytes", "dense"}
    assert len(verdict.failures["bytes"]) == 1


def test_verify_sees_another_dense_model(shrunk, tmp_path):
    other = pico.save("llama-mha", tmp_path / "other", seed=1)
    verdict = secateur.verify(shrunk, other)
    assert verdict.failures.keys() == {"dense"}


def test_verify_sees_figures_that_are_not_those_of_the_files(shrunk):
    rewrite(shrunk, lambda manifest: manifest.update(sparsity=0.5))
    assert secateur.verify(shrunk).failures.keys() == {"weights"}


def test_verify_sees_weights_where_there_should_be_none(dense, shrinkage, tmp_path):
    secateur.shrink(dense("llama-mha"), tmp_path / "out", shrinkage(in_place=True))
    for record in (tmp_path / "out").glob(ORDERS):
        raw = bytearray(record.read_bytes())
        kept = load_file(record)
        place = raw.index(kept["model.layers.0.mlp"].numpy().tobytes())
        assert kept["model.layers.0.mlp"][0] < 63
        raw[place] = next(n for n in range(64) if n not in kept["model.layers.0.mlp"])
        record.write_bytes(raw)
    failures = secateur.verify(tmp_path / "out", dense("llama-mha")).failures
    assert {"files", "zeros", "dense"} <= failures.keys()


# ---------------------------------------------------------------- the command line


def test_the_command_line_says_what_went(dense, text, tmp_path, capsys):
    from secateur.cli import main

    words = ["shrink", str(dense("llama-mha")), "--out", str(tmp_path / "out"), "--sparsity", "0.4", "--quiet"]
    words += ["--calibration", text, "--samples", "2", "--length", "16", "--method", "taylor"]
    with pytest.raises(SystemExit) as end:
        main(words)
    said = capsys.readouterr().out
    assert not end.value.code
    assert "taylor 40%" in said and "num_attention_heads: 2" in said and "written to" in said
    with pytest.raises(SystemExit) as end:
        main([*words, "--json", "--force"])
    assert not end.value.code
    assert json.loads(capsys.readouterr().out)["method"] == "taylor 40%"
    with pytest.raises(SystemExit) as end:
        main(["verify", str(tmp_path / "out"), "--dense", str(dense("llama-mha"))])
    assert not end.value.code
    assert "bit for bit" in capsys.readouterr().out


def test_blocks_that_compute_by_their_number_keep_it(shrinkage, tmp_path):
    """DiffLlama's attention has a number that follows from the block's."""
    config = DiffLlamaConfig(
        vocab_size=pico.VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "dense")
    pico.tokenizer().save_pretrained(tmp_path / "dense")
    with pytest.raises(secateur.InputError, match="block 1 would be block 0.*lambda_init"):
        secateur.shrink(tmp_path / "dense", tmp_path / "out", shrinkage(method="depth", keep_last=2))
    assert not (tmp_path / "out").exists()
    secateur.shrink(tmp_path / "dense", tmp_path / "out", shrinkage(method="depth", keep_first=2))
    assert secateur.verify(tmp_path / "out", tmp_path / "dense").passed


def test_a_record_that_is_gone_is_missed(dense, shrinkage, tmp_path):
    secateur.shrink(dense("llama-mha"), tmp_path / "out", shrinkage())
    (tmp_path / "out" / ORDERS).unlink()
    assert secateur.verify(tmp_path / "out").failures["files"] == [ORDERS]
