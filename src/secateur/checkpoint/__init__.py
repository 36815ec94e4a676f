"""Model folders in and out, a block at a time.

A checkpoint is a plain Hugging Face folder: config, tokenizer, safetensors. :class:`Source` reads its
tensors by name without loading the rest; :class:`Writer` writes one shard per block into a hidden folder
beside the destination, which takes its final name only when everything is in it.
"""

from secateur.checkpoint.layout import INDEX, MANIFEST, ORDERS, WEIGHTS
from secateur.checkpoint.resolve import convert, load_whole, local_folder, outline
from secateur.checkpoint.source import Source, context_of, load_into
from secateur.checkpoint.writer import Writer, check_destination

__all__ = [
    "INDEX",
    "MANIFEST",
    "ORDERS",
    "WEIGHTS",
    "Source",
    "Writer",
    "check_destination",
    "context_of",
    "convert",
    "load_into",
    "load_whole",
    "local_folder",
    "outline",
]
