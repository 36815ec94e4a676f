"""One valid folder or file of every kind that Secateur reads, tiny."""

import gzip
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import torch
from safetensors.torch import load_file, save_file

import secateur
from secateur.recipe import QuantizationRecipe, Recipe
from tests import pico

TEXT = "Laws that cannot fail say nothing; the quick brown fox jumps over the lazy dog. " * 30
PLAIN = Recipe(score="magnitude", sparsity=0.5)
FP8 = {"quant_method": "fp8", "weight_block_size": [16, 24], "activation_scheme": "dynamic", "fmt": "e4m3"}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}


def make(root: Path) -> None:
    """In ``root``: model folders as they come and as Secateur writes them, a folder of other files, and a text."""
    dense = pico.save("llama-gqa-tied", root / "dense", torch.bfloat16)
    (root / "text.txt").write_text(TEXT)
    (dense / "README.md").write_text(
        "---\nlicense: mit\nlanguage: [en]\ntags:\n- a\nbase_model: org/name\n---\n# A model\n"
    )
    secateur.prune(dense, root / "sharded", PLAIN)
    recipe = Recipe(pattern="2:4", score="ria", calibration=str(root / "text.txt"), samples=2, length=16)
    secateur.prune(dense, root / "pruned", recipe)
    secateur.prune(dense, root / "gather", Recipe.from_dict(recipe.to_dict() | {"fold": "gather"}))
    secateur.pack(root / "pruned", root / "packed")
    secateur.pack(root / "pruned", root / "int8", int8=True)
    secateur.quantize(root / "pruned", root / "quantized", QuantizationRecipe(method="rtn", group_size=16))
    secateur.pack(dense, root / "int4", int4=True)
    rewrite(pico.save("llama-gqa-tied", root / "fp8", torch.bfloat16), FP8, as_fp8)
    rewrite(pico.save("gpt-oss", root / "mxfp4", torch.bfloat16), MXFP4, as_mxfp4)
    files = root / "files"
    files.mkdir()
    (files / "recipe.yaml").write_text("score: ria\npattern: '2:4'\nskip: ['*.o_proj']\nsamples: 4\nguard: false\n")
    (files / "grid.yaml").write_text(
        "models: [a]\nrecipes: {ria: {score: ria}, best: {preset: best}}\n"
        "grid: {pattern: ['2:4', '4:8'], alpha: [0.5, 1]}\n"
        "seeds: [0, 1]\nevaluate: {data: [demo], window: 16}\nbaseline: {recipe: ria}\n"
    )
    (files / "text.txt").write_text(TEXT)
    secateur.mask(root / "pruned", files / "mask.safetensors")
    rows = [{"text": TEXT[i : i + 300], "id": i, "meta": {"a": [i]}} for i in range(8)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (files / "text.jsonl").write_bytes(lines)
    (files / "text.jsonl.gz").write_bytes(gzip.compress(lines))
    chat = [{"role": "user", "content": TEXT[:40]}, {"role": "assistant", "content": TEXT[40:200]}]
    (files / "chats.json").write_text(json.dumps([{"id": i, "messages": chat} for i in range(4)]))
    parquet.write_table(arrow.table({"text": [row["text"] for row in rows], "id": [0] * 8}), files / "text.parquet")
    if importlib.util.find_spec("gguf"):
        write_gguf(files / "model.gguf")


def rewrite(folder: Path, quantization: dict[str, Any], change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Let ``change`` have the tensors of a folder, and its config say how they are stored."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return folder


def as_fp8(tensors: dict[str, torch.Tensor]) -> None:
    """Every weight of a linear in the blocks, as DeepSeek-V3 stores them."""
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight = tensors[name].float()
        rows, columns = -(-weight.shape[0] // 16), -(-weight.shape[1] // 24)
        tensors[f"{name}_scale_inv"] = 0.001 * torch.arange(1, 1 + rows * columns).reshape(rows, columns)
        tensors[name] = (100 * weight).to(torch.float8_e4m3fn)


def as_mxfp4(tensors: dict[str, torch.Tensor]) -> None:
    """Random codes in place of the experts of GPT-OSS."""
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.randint(256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(120, 128, (experts, rows, columns // 32), dtype=torch.uint8)


def write_gguf(path: Path) -> None:
    """A llama as llama.cpp stores it, with a tokenizer of bytes."""
    import gguf

    model, words = pico.build("llama-gqa-tied"), [*list(pico.tokenizer().get_vocab())[:-1], "ab"]
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(["a b"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if (stored := names.get_name(name, try_suffixes=(".weight",))) and name != "lm_head.weight":
            writer.add_tensor(stored, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
