"""Write a random model of the shape of a real one, a block at a time, with a tokenizer of bytes and a text.

    python benchmarks/random_models.py SHAPE FOLDER [--blocks N] [--dtype bfloat16] [--seed 0]

Weights are normal, with rows and columns of log-normal size, so that scores have tails as real ones have and orders of
channels matter. One block is in memory. FOLDER/text.txt calibrates: random words.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast, Qwen3MoeConfig


def llama(width: int, wide: int, heads: int, kv_heads: int, blocks: int, vocabulary: int) -> PreTrainedConfig:
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=wide,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        num_hidden_layers=blocks,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
    )


def qwen3_moe(width: int, wide: int, heads: int, kv_heads: int, experts: int, blocks: int) -> PreTrainedConfig:
    return Qwen3MoeConfig(
        hidden_size=width,
        moe_intermediate_size=wide,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=128,
        num_experts=experts,
        num_experts_per_tok=8,
        num_hidden_layers=blocks,
        vocab_size=32_000,
        max_position_embeddings=4096,
    )


SHAPES = {
    "tiny": lambda: llama(256, 688, 4, 2, 4, 1024),
    "small": lambda: llama(1024, 2752, 16, 8, 8, 1024),
    "1b": lambda: llama(2048, 5632, 32, 4, 22, 32_000),
    "7b": lambda: llama(4096, 11008, 32, 32, 32, 32_000),
    "70b": lambda: llama(8192, 28672, 64, 8, 80, 32_000),
    "moe": lambda: qwen3_moe(2048, 768, 32, 4, 64, 4),  # Qwen3-30B-A3B's width
}


def write(config: PreTrainedConfig, folder: Path, dtype: str = "bfloat16", seed: int = 0) -> Path:
    """Write a random model of this config to ``folder``, with its tokenizer and a text."""
    config.dtype = dtype
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    shards: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, parameter in skeleton.named_parameters():
        block = re.match(r"model\.layers\.(\d+)\.", name)
        shards.setdefault(f"model-{block[1] if block else 'outer'}.safetensors", []).append((name, parameter.shape))
    draw = torch.Generator().manual_seed(seed)
    places: dict[str, str] = {}
    for file, parameters in shards.items():
        tensors = dict(_stored(parameters, draw, getattr(torch, dtype)))
        save_file(tensors, folder / file, {"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config.architectures = [type(skeleton).__name__]
    config.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(folder)
    words = random.Random(seed)
    letters = ("".join(words.choices("abcdefghijklmnopqrstuvwxyz", k=words.randint(1, 9))) for _ in range(100_000))
    (folder / "text.txt").write_text(" ".join(letters))
    return folder


def _stored(
    parameters: list[tuple[str, tuple[int, ...]]], draw: torch.Generator, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor as files hold it: experts one by one."""
    for name, shape in parameters:
        if len(shape) == 1:
            yield name, torch.ones(shape, dtype=dtype)
        elif len(shape) == 2:
            yield name, _weight(*shape, draw).to(dtype)
        else:
            path, _, stack = name.rpartition(".")
            parts = ("gate_proj", "up_proj") if stack == "gate_up_proj" else ("down_proj",)
            for expert in range(shape[0]):
                for part in parts:
                    rows = shape[1] // len(parts)
                    yield f"{path}.{expert}.{part}.weight", _weight(rows, shape[2], draw).to(dtype)


def _weight(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    weight = torch.randn(rows, columns, generator=draw)
    weight *= 0.02 * (0.3 * torch.randn(rows, 1, generator=draw)).exp()
    weight *= (0.4 * torch.randn(1, columns, generator=draw)).exp()
    return weight


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chosen = SHAPES[args.shape]()
    chosen.num_hidden_layers = args.blocks or chosen.num_hidden_layers
    write(chosen, args.folder, args.dtype, args.seed)
