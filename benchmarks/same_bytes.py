"""Whether two versions of Secateur write the same bytes.

    python benchmarks/same_bytes.py CHECKOUT CHECKOUT [--model FOLDER_OR_GGUF] [--recipes NAME …]

Prunes tiny random models of four families by every recipe below, and with ``--model`` that model by two, in one
process per checkout on this machine; then compares the SHA-256 of every file that was written, and of every weight that
``prune_module`` left. Of ``secateur.json`` the seconds are left out, where the model lay, and the digests of what is
compared anyway. A change that is said to change no result can be held to that. Text comes from the demo's wheels.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ONE_ID = {"bos_token_id": 0, "eos_token_id": 0}  # GPT-2's own lie outside so small a vocabulary
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "opt": ("OPTConfig", {"ffn_dim": 128, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 128, **_ONE_ID}),
    "mixtral": ("MixtralConfig", {"num_key_value_heads": 2, "num_experts_per_tok": 2, "num_local_experts": 4}),
}
SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
SAMPLES = {"calibration": "demo", "samples": 8, "length": 64}
RECIPES: dict[str, dict[str, Any]] = {
    "ria 50 %": {},
    "wanda 60 %, one shot": {"score": "wanda", "sparsity": 0.6, "one_shot": True},
    "ri 2:4, published search": {"score": "ri", "pattern": "2:4", "permute": "lsa-published"},
    "ria 2:4, folds compared": {"pattern": "2:4", "compare_folds": True},
    "ria 2:4, gather": {"pattern": "2:4", "fold": "gather"},
    "ria 2:4, own orders": {"pattern": "2:4", "fold": "none"},
    "magnitude 1:4, greedy": {"score": "magnitude", "pattern": "1:4", "permute": "greedy"},
    "ria 4:8, communities": {"pattern": "4:8", "communities": 2, "skip": ["*.o_proj"]},
    "sparsegpt 2:4, its own mask": {"score": "sparsegpt", "reconstruct": "sparsegpt", "pattern": "2:4"},
    "ria 50 % + cg + refine": {"reconstruct": "cg", "refine": True},
    "ria 2:4 + sparsegpt, no guard": {"reconstruct": "sparsegpt", "pattern": "2:4", "guard": False},
    "sparsegpt 2:4 + admm": {"score": "sparsegpt", "reconstruct": "admm", "pattern": "2:4"},
}
# Of the manifest: times, where the model lay, and the digests of what is compared anyway.
LEFT_OUT = ("seconds", "model", "files", "unpruned_sha256")
OF_A_REAL_MODEL = {
    "ria 2:4": {"pattern": "2:4", "samples": 8, "length": 256},
    "sparsegpt 2:4 + admm": {
        "score": "sparsegpt", "reconstruct": "admm", "pattern": "2:4", "samples": 8, "length": 256
    },
}  # fmt: skip


def tiny(name: str, folder: Path) -> Path:
    """A random model with a tokenizer of bytes."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.manual_seed(0)
    config, more = TINY[name]
    sizes = {"vocab_size": 256} if name == "gpt2" else SIZES
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**sizes | more))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    model.save_pretrained(folder)
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=letters, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(folder)
    return folder


def digests(folder: Path) -> Iterator[tuple[str, str]]:
    """Of every file in ``folder``."""
    for file in sorted(folder.iterdir()):
        raw = file.read_bytes()
        if file.name == "secateur.json":
            manifest = json.loads(raw)
            manifest = {key: value for key, value in manifest.items() if key not in LEFT_OUT}
            raw = json.dumps(manifest, sort_keys=True).encode()
        yield file.name, hashlib.sha256(raw).hexdigest()


def work(model: str | None, wanted: list[str]) -> dict[str, str]:
    """What the version of Secateur that is imported here writes, by recipe, model and file."""
    import torch
    from transformers import AutoModelForCausalLM

    import secateur

    torch.set_num_threads(1)
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as home:
        jobs = [(tiny(name, Path(home) / name), name, recipe) for name in TINY for recipe in RECIPES.items()]
        if model:
            jobs += [(Path(model), Path(model).name, recipe) for recipe in OF_A_REAL_MODEL.items()]
        for source, name, (title, setting) in jobs:
            if wanted and title not in wanted:
                continue
            setting = {"skip": []} | SAMPLES | setting
            if name in ("gpt2", "opt") and setting["skip"]:
                setting["skip"] = ["*.out_proj" if name == "opt" else "*.attn.c_proj"]
            out = Path(home) / "out"
            try:
                secateur.prune(source, out, secateur.Recipe.from_dict(setting), force=True)
                found |= {f"{title} · {name} · {file}": digest for file, digest in digests(out)}
            except secateur.InputError as error:
                found[f"{title} · {name}"] = f"refused: {error}"
        module = AutoModelForCausalLM.from_pretrained(Path(home) / "llama")
        batches = [torch.arange(48).reshape(2, 24) + i for i in range(8)]
        secateur.prune_module(module, batches, secateur.Recipe(pattern="2:4", reconstruct="cg"))
        for key, tensor in module.state_dict().items():
            found[f"prune_module · llama · {key}"] = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    return found


def in_checkout(checkout: str, arguments: list[str]) -> dict[str, str]:
    """What :func:`work` finds with the sources of ``checkout``."""
    source = str(Path(checkout).resolve() / "src")
    start = (  # an editable installation would come before the path
        "import runpy, sys; "
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in type(f).__module__]; "
        f"sys.path.insert(0, {source!r}); "
        f"sys.argv = sys.argv[:1] + {arguments!r}; "
        f"runpy.run_path({__file__!r}, run_name='__main__')"
    )
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    line = [sys.executable, "-W", "ignore", "-c", start]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*")
    parser.add_argument("--model", help="a folder or .gguf file, for two more recipes")
    parser.add_argument("--recipes", nargs="*", default=[], help="only these")
    args = parser.parse_args()
    if not args.checkouts:  # a worker
        import secateur

        found = work(args.model, args.recipes)
        print(json.dumps({"": str(Path(secateur.__file__).parent)} | found))
        return
    arguments = [
        *(["--model", args.model] if args.model else []),
        *(["--recipes", *args.recipes] if args.recipes else []),
    ]
    first, second = (in_checkout(checkout, arguments) for checkout in args.checkouts)
    print(f"{first.pop('')} against {second.pop('')}")
    different = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
    for key in different:
        print(f"DIFFERENT {key}: {first.get(key)} {second.get(key)}")
    refused = sum(value.startswith("refused") for value in first.values())
    print(f"{len(first)} compared, {refused} of them refusals, {len(different)} different")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
