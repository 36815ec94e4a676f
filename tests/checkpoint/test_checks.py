"""The one check of a model folder: each kind of damage, and every command that must see it."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
from secateur.checkpoint import INDEX, Source, check, check_finite, local_folder, read_orders
from secateur.checkpoint.shards import reading
from secateur.errors import InputError
from secateur.recipe import Recipe
from tests import pico

UP = "model.layers.1.mlp.up_proj.weight"
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    return pico.save("llama-mha", tmp_path / "model")


def refused(folder, message):
    with pytest.raises(InputError, match=message), local_folder(str(folder)):
        pass


def tensors(change):
    """Damage that changes the tensors of a folder."""

    def damage(folder):
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def says(**values):
    """Damage that changes what the config says."""

    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return damage


def holds(name, content):
    """Damage that puts a file there."""

    def damage(folder):
        (folder / name).write_text(content)

    return damage


def token(**values):
    def damage(folder):
        path = folder / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        if "content" in values:
            tokenizer["added_tokens"] = [values]
        else:
            tokenizer["model"]["vocab"] |= values
        path.write_text(json.dumps(tokenizer))

    return damage


DAMAGES = {
    "no head": (tensors(lambda s: s.pop("lm_head.weight")), r"lacks weights of its model: lm_head\.weight"),
    "no norm": (tensors(lambda s: s.pop("model.norm.weight")), "lacks weights"),
    "a layer more than it says": (says(num_hidden_layers=2), r"does not have: model\.layers\.2.* and 6 others"),
    "a layer fewer than it says": (says(num_hidden_layers=4), r"lacks weights of its model: model\.layers\.3"),
    "a stray tensor": (tensors(lambda s: s.update(stray=torch.ones(2))), "does not have: stray"),
    "another name": (tensors(lambda s: s.update(stray=s.pop(UP))), "lacks weights"),
    "another width": (says(hidden_size=128), r"\.weight is .*, and config.json says"),
    "a wide linear": (tensors(lambda s: s.update({UP: torch.ones(64, 96)})), "64 × 96, and config.json says 64 × 32"),
    "integers": (
        tensors(lambda s: s.update({UP: s[UP].to(torch.int16)})),
        "up_proj.weight is of type I16; weights",
    ),
    "booleans": (tensors(lambda s: s.update({UP: s[UP] > 0})), "is of type BOOL"),
    "fp8": (tensors(lambda s: s.update({UP: s[UP].to(torch.float8_e4m3fn)})), "is of type F8_E4M3"),
    "an adapter": (holds("adapter_config.json", "{}"), "holds an adapter"),
    "bos beyond": (says(bos_token_id=256), "bos_token_id is 256, and the vocabulary has 256"),
    "eos in a list": (says(eos_token_id=[2, 999]), r"eos_token_id is \[2, 999\]"),
    "generation eos": (
        holds("generation_config.json", '{"eos_token_id": "2"}'),
        "config.json: eos_token_id is '2'",
    ),
    "a large vocabulary": (token(more=256), "token 'more' has the id 256, and the embedding has 256 rows"),
    "an added token": (token(id=300, content="more"), "token 'more' has the id 300"),
    "a list for the tokenizer": (holds("tokenizer_config.json", "[1]"), "it is not a JSON object"),
    "text for a number": (says(hidden_size="64"), "config.json cannot be read.*hidden_size"),
    "no heads": (says(num_attention_heads=0), "config.json cannot be read"),
    "negative": (says(num_attention_heads=-64), "config.json"),
    "an unknown activation": (says(hidden_act="nope"), "config.json cannot be loaded.*nope"),
    "no context": (says(max_position_embeddings=0), "max_position_embeddings is 0"),
    "an astronomical width": (says(hidden_size=2**40), "and config.json says"),
    "an impossible width": (says(hidden_size=2**62), "config.json cannot be loaded"),
    "endless depth": (says(num_hidden_layers=2**40), r"asks for 1099511627776 blocks .*the files hold 30 tensors"),
    "endless experts": (says(head_dim=2**40), "GB besides the weights"),
    "endless labels": (says(num_labels=2**40), "num_labels of 1099511627776 makes no sense"),
    "endless repeats": (says(attention_types=[[["global"], 2**40]]), "attention_types of 1099511627776"),
    "floats of 8 bits": (says(dtype="float8_e4m3fn"), "dtype is float8_e4m3fn; weights must be float64, float32"),
    "integers by its config": (says(dtype="int8"), "dtype is int8"),
    "truth values": (says(dtype="bool"), "dtype is bool"),
    "complex": (says(dtype="complex64"), "dtype is complex64"),
    "quantized, but not how": (says(quantization_config={}), r"is quantized \(unknown\)"),
    "a kernel from the hub": (says(attn_implementation="org/kernel"), "asks for code from elsewhere"),
    "a kernel of a part": (says(_experts_implementation={"": "org/kernel"}), "asks for code from elsewhere"),
    "other weights": (says(transformers_weights="other.safetensors"), "names other files of weights"),
    "remote code": (says(model_type="mine", auto_map={"AutoConfig": "x.C"}), "needs Python from its folder"),
    "no such model": (says(model_type="mine"), "has no model type 'mine'"),
    "no language model": (says(model_type="clip"), "no language model of that type"),
    "deep nesting": (holds("config.json", "[" * 100_000), "is damaged: maximum recursion"),
    "many digits": (holds("config.json", '{"a": ' + "1" * 5000 + "}"), "is damaged: Exceeds the limit"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_every_kind_of_damage_is_refused(folder, damage, message):
    damage(folder)
    refused(folder, message)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_an_expert_that_lacks_a_part_is_refused(name, tmp_path):
    folder = pico.save(name, tmp_path)
    tensors(lambda s: s.pop(next(key for key in s if re.search(r"experts\.1\.(w1|up_proj)", key))))(folder)
    refused(folder, "experts of .* differ in shape, or one of them lacks a part")


def test_a_gap_among_the_experts_is_refused(tmp_path):
    folder = pico.save("mixtral", tmp_path)
    tensors(lambda s: [s.update({key.replace("experts.1.", "experts.9."): s.pop(key)}) for key in list(s)])(folder)
    refused(folder, r"hold experts 0, 2, 3, 9 of model\.layers\.0\.mlp\.experts\.\w+: some are missing")


COMMANDS = {
    "prune": lambda model, out: secateur.prune(model, out, Recipe(score="magnitude")),
    "pack": lambda model, out: secateur.pack(model, out),
    "unpack": lambda model, out: secateur.unpack(model, out),
    "inspect": lambda model, out: secateur.inspect(model),
    "evaluate": lambda model, out: secateur.evaluate(model, "missing.txt"),  # the model is looked at first
    "generate": lambda model, out: secateur.generate(model, "a", device="cpu"),
    "bench": lambda model, out: secateur.bench(model, device="cpu"),
    "load": lambda model, out: secateur.load(model),
    "verify": lambda model, out: secateur.verify(model),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_checks(command, tmp_path):
    secateur.prune(pico.save("llama-mha", tmp_path / "model"), tmp_path / "pruned", Recipe(score="magnitude"))
    secateur.pack(tmp_path / "pruned", tmp_path / "packed")
    model = tmp_path / ("packed" if command in ("unpack", "verify") else "model")
    path = model / "config.json"
    config = json.loads(path.read_text())
    config.get("base", config)["intermediate_size"] = 128
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="config.json says 128 × 32|config.json says 32 × 128"):
        COMMANDS[command](model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight", "lm_head.weight", UP])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_pruning_names_what_is_not_finite(folder, tmp_path, name, value):
    tensors(lambda s: s[name].view(-1)[3].fill_(value))(folder)
    with pytest.raises(InputError, match=rf"1 of the \d+ values of {name} are NaN or infinite"):
        secateur.prune(folder, tmp_path / "out", Recipe(score="magnitude"))
    assert not (tmp_path / "out").exists()


def test_large_values_are_finite():
    check_finite({"a": torch.full((9,), 3e38), "b": torch.full((9,), 6e4, dtype=torch.float16)}, Path("model"))


@pytest.mark.parametrize("weight_map", [1, None, [1], {}, {"a": 1}, {"lm_head.weight": "model-1.safetensors", "b": 2}])
def test_a_damaged_index_is_refused(folder, weight_map):
    (folder / WEIGHTS).rename(folder / "model-1.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, "damaged|lacks weights")


def test_a_tensor_that_no_file_holds_is_refused(folder):
    (folder / WEIGHTS).rename(folder / "model-1.safetensors")
    names = [*load_file(folder / "model-1.safetensors"), "more"]
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-1.safetensors")}))
    refused(folder, "lacks more, which its index names")


def test_tables_that_older_files_hold_are_passed_over(folder):
    tensors(lambda s: s.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))(folder)
    assert check(Source(folder))


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_masks_that_older_files_of_gpt2_hold_are_passed_over(tmp_path, prefix):
    folder = pico.save("gpt2", tmp_path / "model")
    state = {prefix + name.removeprefix("transformer."): x for name, x in load_file(folder / WEIGHTS).items()}
    masks = {f"{prefix}h.0.attn.bias": torch.ones(1, 1, 64, 64), f"{prefix}h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(state | masks, folder / WEIGHTS, metadata={"format": "pt"})
    with local_folder(str(folder)) as whole:
        assert check(Source(whole))


def test_a_file_that_may_not_be_read_is_not_called_absent(folder, monkeypatch):
    def denied(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    with (
        pytest.raises(InputError, match=r"model\.safetensors cannot be read: permission denied"),
        reading(folder / WEIGHTS),
    ):
        pass


def test_files_of_weights_have_the_mode_of_the_others(folder, tmp_path):
    secateur.prune(folder, tmp_path / "out", Recipe(score="magnitude"))
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1


def test_a_special_token_for_other_models_of_the_family_is_passed_over(folder):
    token(id=256, content="<image>", special=True)(folder)
    assert check(Source(folder))


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", "LICENSE"])
def test_links_lead_nowhere_else(folder, tmp_path, name):
    path = folder / name
    path.touch()
    path.rename(tmp_path / name)
    path.symlink_to(tmp_path / name)
    refused(folder, "is a link to .*, outside of its folder")
    path.unlink()
    path.symlink_to(path.name)
    refused(folder, "is a link that leads nowhere")


def test_the_hubs_cache_is_made_of_links(folder, tmp_path):
    blobs, snapshot = tmp_path / "models--org--name" / "blobs", tmp_path / "models--org--name" / "snapshots" / "main"
    folder.rename(blobs.parent.mkdir() or blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", file.name))
    assert check(Source(snapshot))


def test_what_a_model_does_not_need_stays_behind(folder, tmp_path):
    (tmp_path / "secret").write_text("secret")
    for name in ("notes.txt", "x.json"):
        (folder / name).symlink_to(tmp_path / "secret")
    secateur.prune(folder, tmp_path / "out", Recipe(score="magnitude"))
    assert not {"notes.txt", "x.json"} & {path.name for path in (tmp_path / "out").iterdir()}


def test_orders_that_are_none_are_refused(folder, tmp_path):
    secateur.prune(folder, tmp_path / "out", Recipe(score="magnitude", pattern="2:4", fold="gather"))
    for path in (tmp_path / "out").glob("model-00002*"):
        state = load_file(path)
        state["model.layers.0.input_layernorm.order"] *= 0
        save_file(state, path, metadata={"format": "pt"})
    refused(tmp_path / "out", r"input_layernorm\.order does not name each of 32 channels once")
    save_file({"value": torch.tensor([0, 0])}, folder / "secateur-orders.safetensors")
    with pytest.raises(InputError, match="value is no order"):
        read_orders(folder)
