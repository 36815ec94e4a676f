"""Text in, tokens out: for calibration and for perplexity."""

from secateur.data.bos import settle_bos, start_of
from secateur.data.mixtures import SELF, Part, interleave, parts_of, share_out
from secateur.data.sources import Purpose, Text, check_choice, hub_dataset, load_text, local_file, public_name
from secateur.data.tokens import calibration_samples, check_ids, evaluation_windows
from secateur.digests import digest

__all__ = [
    "SELF",
    "Part",
    "Purpose",
    "Text",
    "calibration_samples",
    "check_choice",
    "check_ids",
    "digest",
    "evaluation_windows",
    "hub_dataset",
    "interleave",
    "load_text",
    "local_file",
    "parts_of",
    "public_name",
    "settle_bos",
    "share_out",
    "start_of",
]
