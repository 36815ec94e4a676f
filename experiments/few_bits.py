"""Beyond the paper: prune, quantize, or both? Quality, size and speed of what one model can be packed to.

    python experiments/few_bits.py MODEL --calibration c4 --data wikitext2 [--group-size 128] [--keep DIR]
        [--pruned 'best 2:4' 'best 16:32' best]

The dense model and pruned ones, each packed with bfloat16 values, with int8 values (rounded) and with int4 values
(GPTQ). Per row: perplexity on every text, of what was packed; bits that a weight of the blocks' linears takes, masks,
scales and zero-points included; tokens per second that are generated one by one after a short prompt, the median over
rounds in which all models take turns (a quiet machine is wanted). Rows of about the same bits are to be compared.
"""

import json
import statistics
import tempfile
import time
from contextlib import nullcontext
from math import prod
from pathlib import Path

import torch
from common import parser, show
from table12 import RECIPES, Models, Row, measured

import secateur
from secateur.checkpoint import Source, local_folder
from secateur.models.blocks import blocks_of, family_of
from secateur.runtime.decoding import Continuation

DENSE = "dense"
PROMPT = 64


def packed(models: Models, name: str, values: str) -> Path | str:
    """The folder of a model that is called ``name``, packed with such values; the dense one as it is in bfloat16."""
    plain = models.model if name == DENSE else models.pruned(name)
    if name == DENSE and values == "bfloat16":
        return plain
    out = models.home / f"{name} {values} packed".replace(" ", "_").replace(":", "")
    if not out.exists():
        source = models.quantized("gptq", plain, name) if values == "int4" else plain
        secateur.pack(source, out, int8=values == "int8")
    return out


def bits(folder: Path | str) -> float:
    """Bits of a weight of the linears in the blocks."""
    source = Source(Path(folder))
    model = source.skeleton(torch.float32)
    names = [block.prefix + x.tensor for block in blocks_of(model, family_of(model)) for x in block.linears]
    stored = sum(source.held[part].nbytes for name in names for part in source.stacks.parts(name))
    return 8 * stored / sum(prod(source.shape(name)) for name in names)


def speeds(folders: list[Path | str], tokens: int, rounds: int) -> list[float]:
    """Tokens per second of each, the median over rounds in which they take turns; one more round does not count."""
    loaded = [secateur.load(folder, torch.bfloat16) for folder in folders]
    words = torch.randint(1000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    found: list[list[float]] = [[] for _ in folders]
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for model, rates in zip(loaded, found, strict=True):
                run = Continuation(model, words, tokens + 1)
                run.prefill()
                run.prepare()
                began = time.perf_counter()
                for _ in range(tokens):
                    run.step()
                rates.append(tokens / (time.perf_counter() - began))
    return [statistics.median(rates[1:]) for rates in found]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--dtype", default="auto", help="precision to evaluate in; auto is float32 on a CPU")
    arguments.add_argument("--quantize-samples", type=int, help="calibration samples of the quantization, if others")
    arguments.add_argument("--group-size", type=int, default=128)
    arguments.add_argument("--pruned", nargs="*", default=["best 2:4", "best 16:32", "best"], choices=list(RECIPES))
    arguments.add_argument("--tokens", type=int, default=32)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--no-speed", action="store_true")
    args = arguments.parse_args()
    args.bits = 4
    kept = nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory()
    with kept as home, local_folder(args.model) as folder:
        models = Models(Path(home), str(folder), args)
        models.home.mkdir(parents=True, exist_ok=True)
        file = models.home / "few_bits.json"
        known: dict[str, Row] = json.loads(file.read_text()) if file.exists() else {}
        rows: dict[str, Path | str] = {}
        for name in (DENSE, *args.pruned):
            for values in ("bfloat16", "int8", "int4"):
                key = f"{name} {values}"
                rows[key] = packed(models, name, values)
                if key not in known:
                    known[key] = {"model": key, "bits": round(bits(rows[key]), 3)} | measured(rows[key], args)
                    file.write_text(json.dumps(known, indent=1))
                if args.no_speed:
                    show(known[key])
        if not args.no_speed:
            for key, rate in zip(rows, speeds(list(rows.values()), args.tokens, args.rounds), strict=True):
                show(known[key] | {"tokens per second": round(rate, 1)})


if __name__ == "__main__":
    main()
