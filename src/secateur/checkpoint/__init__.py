"""Model folders in and out, a block at a time.

A checkpoint is a plain Hugging Face folder: config, tokenizer, safetensors. :class:`Source` reads its
tensors by name without loading the rest; :class:`Writer` writes one shard per block in a :class:`Workspace`, a hidden
folder beside the destination, from which the model takes its final name only when everything is in it.
"""

from secateur.checkpoint.card import MEASURED, MEASURED_END
from secateur.checkpoint.checks import check, check_finite, opened, read_orders
from secateur.checkpoint.config import context_of, load_into
from secateur.checkpoint.destination import check_apart
from secateur.checkpoint.layout import CARD, INDEX, MANIFEST, ORDERS, WEIGHTS
from secateur.checkpoint.recorded import changed_files, check_unchanged, manifest_of, unlisted_files
from secateur.checkpoint.residence import resident
from secateur.checkpoint.resolve import check_there, convert, folder_of, load_whole, local_folder, outline
from secateur.checkpoint.source import Source
from secateur.checkpoint.workspace import Workspace
from secateur.checkpoint.writer import Writer

__all__ = [
    "CARD",
    "INDEX",
    "MANIFEST",
    "MEASURED",
    "MEASURED_END",
    "ORDERS",
    "WEIGHTS",
    "Source",
    "Workspace",
    "Writer",
    "changed_files",
    "check",
    "check_apart",
    "check_finite",
    "check_there",
    "check_unchanged",
    "context_of",
    "convert",
    "folder_of",
    "load_into",
    "load_whole",
    "local_folder",
    "manifest_of",
    "opened",
    "outline",
    "read_orders",
    "resident",
    "unlisted_files",
]
