"""A GGUF file is the model: what transformers reads from it has the same weights and makes the same tokens."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

import secateur
from secateur.checkpoint import Source, local_folder
from secateur.cli import main
from secateur.errors import InputError, Notice
from secateur.exporting.architecture import architecture_of, frequency_divisors, sizes_of
from secateur.exporting.vocabulary import CONTROL, SPLITS, UNUSED, USER_DEFINED, vocabulary_of
from secateur.recipe import Recipe
from tests import pico
from tests.exporting.vocabularies import TEXTS, of_bytes, of_pieces
from tests.specimens import PLAIN, TEXT

gguf = pytest.importorskip("gguf")


def save(folder, config, tokenizer, dtype=torch.float32, **changes):
    """A random model of one of pico's configs, with some entries changed, as a folder."""
    config = pico.ALL[config]()
    for key, value in {"vocab_size": len(tokenizer) + 3, **changes}.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read(folder):
    source = Source(folder)
    return source.read(source.names())


def read_back(file):
    """The tensors and the tokenizer that transformers reads from a GGUF file."""
    with local_folder(str(file)) as folder:
        return read(folder), Source(folder).tokenizer()


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name].float(), other[name].float()), name


# transformers takes qwen3's heads for 128 channels wide, whatever the file says.
@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("llama-gqa-tied", {}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 128}),
    ],
)
def test_what_is_read_back_is_the_model(config, changes, tmp_path):
    tokenizer = of_bytes("qwen2" if config.startswith("qwen") else "gpt-2")
    folder = save(tmp_path / "model", config, tokenizer, **changes)
    secateur.export(folder, tmp_path / "model.gguf")
    found, tokens = read_back(tmp_path / "model.gguf")
    same(read(folder), found)
    assert [tokens(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]


def stored(file):
    """The tensors of a GGUF file as its own library reads them: their types, and their values."""
    found = gguf.GGUFReader(file).tensors
    return (
        {one.name: one.tensor_type.name for one in found},
        {one.name: torch.from_numpy(gguf.dequantize(one.data, one.tensor_type).copy()) for one in found},
    )


def test_a_model_is_written_in_the_type_that_it_has_or_in_any_other(tmp_path):
    folder = save(tmp_path / "model", "qwen2", of_bytes("qwen2"), torch.bfloat16, intermediate_size=72)
    secateur.prune(folder, tmp_path / "pruned", replace(PLAIN, sparsity=0.5))
    secateur.export(tmp_path / "pruned", tmp_path / "own.gguf")
    types, exact = stored(tmp_path / "own.gguf")
    assert {types[name] for name, values in exact.items() if values.ndim == 2} == {"BF16"}
    assert {types[name] for name, values in exact.items() if values.ndim == 1} == {"F32"}
    for kind, error in (("f32", 0), ("f16", 2**-11), ("bf16", 0)):
        secateur.export(tmp_path / "pruned", tmp_path / f"{kind}.gguf", type=kind)
        for name, values in stored(tmp_path / f"{kind}.gguf")[1].items():
            assert torch.allclose(values, exact[name], rtol=error, atol=1e-7 * bool(error)), name
    with pytest.warns(Notice, match="3 matrices are written as bf16"):  # whose rows have 72 weights
        secateur.export(tmp_path / "pruned", tmp_path / "few.gguf", type="q8_0")
    types, rounded = stored(tmp_path / "few.gguf")
    assert {types[f"blk.0.ffn_{part}.weight"] for part in ("up", "down")} == {"Q8_0", "BF16"}
    for name, values in rounded.items():
        # Half a step, and what rounding the scale to float16 adds.
        largest = exact[name].abs().amax(-1, keepdim=True) if types[name] == "Q8_0" else torch.zeros(1)
        assert ((values - exact[name]).abs() <= largest / 127 * 0.6).all(), name
        assert (values == 0)[exact[name] == 0].all(), name
    assert (exact["blk.0.ffn_up.weight"] == 0).float().mean() == 0.5


def test_a_packed_folder_is_the_model_that_it_stands_for(tmp_path):
    folder = save(tmp_path / "model", "llama-gqa-tied", of_bytes("gpt-2"))
    secateur.prune(folder, tmp_path / "pruned", PLAIN)
    secateur.pack(tmp_path / "pruned", tmp_path / "packed")
    for name in ("pruned", "packed"):
        secateur.export(tmp_path / name, tmp_path / f"{name}.gguf")
    same(stored(tmp_path / "pruned.gguf")[1], stored(tmp_path / "packed.gguf")[1])


def test_frequencies_are_divided_as_llama_3_does():
    config = pico.ALL["llama-mha"]()
    assert frequency_divisors(config) is None
    config.rope_parameters = {
        **config.rope_parameters,
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    divisors = frequency_divisors(config)
    assert divisors is not None and divisors.shape == (config.head_dim // 2,)
    torch.testing.assert_close(divisors[[0, -1]], torch.tensor([1.0, 8.0]))  # short waves stay, long ones are longer
    assert (divisors.diff() > -1e-5).all()


def test_a_sliding_window_bounds_the_context():
    config = pico.ALL["mistral"]()
    with pytest.warns(Notice, match="context is 16 tokens"):
        assert sizes_of(config)["context_length"] == 16
    config.sliding_window = None
    assert sizes_of(config)["context_length"] == 128


def described(tokenizer, **config):
    """What a GGUF file says of a tokenizer."""
    return vocabulary_of(tokenizer, LlamaConfig(vocab_size=len(tokenizer) + 3, **config))


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_is_known_by_what_it_does(name):
    said = described(of_bytes(name, begins=name == "tekken"), pad_token_id=1)
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == ("gpt2", name)
    assert (said["tokenizer.ggml.add_bos_token"], said["tokenizer.ggml.add_eos_token"]) == (name == "tekken", False)
    kinds = said["tokenizer.ggml.token_type"]
    assert (kinds[:2], kinds[-4:]) == ([CONTROL] * 2, [USER_DEFINED, *[UNUSED] * 3])
    assert said["tokenizer.ggml.tokens"][-4:-1] == ["<think>", f"[PAD{len(kinds) - 3}]", f"[PAD{len(kinds) - 2}]"]
    ids = [said[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos", "padding")]
    assert ids == [0, 1, 1]  # the last by the config


def test_pieces_are_read_back_as_the_same_tokens(tmp_path):
    tokenizer = of_pieces()
    tokenizer.chat_template = "{{ messages }}"
    folder = save(tmp_path / "model", "llama-gqa-tied", tokenizer)
    secateur.export(folder, tmp_path / "model.gguf")
    tokens = read_back(tmp_path / "model.gguf")[1]
    assert [tokens(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]
    assert tokens.chat_template == tokenizer.chat_template


def changed(tokenizer, change):
    """A tokenizer of which ``change`` has changed the description."""
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    change(said)
    core = Tokenizer.from_str(json.dumps(said))
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)


@pytest.mark.parametrize(
    ("tokenizer", "change", "said"),
    [
        (of_bytes("gpt-2"), lambda x: x["model"].update(ignore_merges=True), "none of the ways"),
        (of_bytes("llama-bpe"), lambda x: x["model"].update(ignore_merges=False), "none of the ways"),
        (of_bytes("gpt-2"), lambda x: x["pre_tokenizer"]["pretokenizers"].reverse(), "none of the ways"),
        (of_bytes("qwen2"), lambda x: x.update(pre_tokenizer=None), "none of the ways"),
        (of_bytes("gpt-2"), lambda x: x.update(normalizer={"type": "Lowercase"}), "before it is split"),
        (of_bytes("gpt-2"), lambda x: x["added_tokens"][0].update(lstrip=True), "spaces around it"),
        (of_pieces(), lambda x: x["model"]["merges"].pop(), "other pairs"),
        (of_pieces(), lambda x: x["model"]["merges"].append(x["model"]["merges"].pop(3)), "other pairs"),
        (of_pieces(), lambda x: x.update(normalizer=None), "sentencepiece"),
        (of_pieces(), lambda x: x["model"]["vocab"].pop("<0x41>"), "single bytes"),
    ],
)
def test_other_tokenizers_are_refused(tokenizer, change, said):
    assert described(tokenizer)
    with pytest.raises(InputError, match=said):
        described(changed(tokenizer, change))


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path):
    folder = save(tmp_path / "model", "llama-gqa-tied", of_bytes("gpt-2"))
    gathers = Recipe(
        score="ria", pattern="2:4", fold="gather", calibration=str(tmp_path / "t.txt"), samples=2, length=16
    )
    (tmp_path / "t.txt").write_text(TEXT)
    secateur.prune(folder, tmp_path / "gather", gathers)
    for model, said in (
        (pico.save("gpt2", tmp_path / "gpt2"), "gpt2 are not exported"),
        (tmp_path / "gather", "gather"),
    ):
        with pytest.raises(InputError, match=said):
            secateur.export(model, tmp_path / "new.gguf")
    for out, to, kind, said in (
        ("new.bin", "gguf", None, "must end in .gguf"),
        ("missing/new.gguf", "gguf", None, "no folder"),
        ("new.gguf", "gguf", "q4_0", "give f32, f16, bf16, q8_0"),
        ("new.gguf", "onnx", None, "no format"),
        ("new.gguf", "compressed-tensors", None, "pack-quantized"),
    ):
        with pytest.raises(InputError, match=said):
            secateur.export(folder, tmp_path / out, to=to, type=kind)
    assert not list(tmp_path.glob("*new*"))
    (tmp_path / "new.gguf").touch()
    with pytest.raises(InputError, match="delete it"):
        secateur.export(folder, tmp_path / "new.gguf")


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}},
    ],
)
def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused(change):
    assert architecture_of(LlamaConfig()).name == "llama"
    with pytest.raises(InputError, match="which llama.cpp's llama does not have"):
        architecture_of(LlamaConfig(**change))


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    folder, out = save(tmp_path / "model", "qwen3", of_bytes("qwen2")), tmp_path / "model.gguf"
    with pytest.raises(SystemExit) as stop:
        main(["export", str(folder), "--out", str(out), "--type", "f16", "--quiet", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert (stop.value.code, said["type"], said["bytes_on_disk"]) == (0, "f16", out.stat().st_size)
    assert said["tensors"] == len(read(folder))
    with pytest.raises(SystemExit) as stop:
        main(["export", str(folder), "--out", str(out)])
    assert stop.value.code == 2 and "delete it" in " ".join(capsys.readouterr().err.split())


def test_an_export_that_fails_leaves_nothing(tmp_path):
    folder = save(tmp_path / "model", "llama-gqa-tied", of_bytes("gpt-2"))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.mlp.up_proj.weight"][3, 5] = 1e6
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"blk\.2\.ffn_up\.weight has weights that float16 does not hold"):
        secateur.export(folder, tmp_path / "new.gguf", type="f16")
    assert not [path for path in tmp_path.iterdir() if path != folder]
