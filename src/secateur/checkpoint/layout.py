"""The files that a model folder is made of."""

from pathlib import Path

MANIFEST = "secateur.json"
ORDERS = "secateur-orders.safetensors"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

# What tells people and the hub of the model; anyone may edit it, so the manifest does not list it.
CARD = "README.md"

# The terms that a model comes under: how the names of such files begin, whatever their case, and how they may end.
TERMS = ("license", "licence", "notice", "use_policy", "acceptable_use_policy", "copying")
TERMS_END = ("", ".txt", ".md", ".rst", ".pdf", ".html")
# What a model needs besides its weights: its config, its tokenizer, and what prepares images for it.
COMPANIONS = (
    "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
    "chat_template.jinja", "chat_template.json", "processor_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip
# A folder of further chat templates, which is not copied.
TEMPLATES = "additional_chat_templates"
# Weights that are added to a model's own when it is used: pruning the model alone would not be what is run.
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")

# What the config of a folder calls its model type when the model needs orders that transformers does not know.
GATHER_TYPE = "secateur-gather"
# The same of a folder whose weights are packed (docs/format.md): "base" then holds the config as it was.
PACKED_TYPE = "secateur-packed"


def terms_in(folder: Path) -> list[str]:
    """The names of the files in ``folder`` that hold the terms of its model, such as ``LICENSE`` or ``NOTICE.txt``."""
    names = (path.name for path in folder.iterdir() if path.name.lower().startswith(TERMS))
    return sorted(name for name in names if Path(name).suffix.lower() in TERMS_END)


def beside_weights(folder: Path) -> list[str]:
    """The names of the files of a model folder that go along: what a model needs, and its terms."""
    return [*COMPANIONS, *terms_in(folder)]
