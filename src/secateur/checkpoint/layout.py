"""The files that a model folder is made of."""

MANIFEST = "secateur.json"
ORDERS = "secateur-orders.safetensors"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

# The terms that a model comes under.
TERMS = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "NOTICE", "NOTICE.txt", "NOTICE.md")
# What a model needs besides its weights: its config, its tokenizer, and the terms that it comes under.
COMPANIONS = (
    "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
    "chat_template.jinja", "chat_template.json", "processor_config.json", "preprocessor_config.json",
    *TERMS,
)  # fmt: skip
# A folder of further chat templates, which is not copied.
TEMPLATES = "additional_chat_templates"
# Weights that are added to a model's own when it is used: pruning the model alone would not be what is run.
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")

# What the config of a folder calls its model type when the model needs orders that transformers does not know.
GATHER_TYPE = "secateur-gather"
# The same of a folder whose weights are packed (docs/format.md): "base" then holds the config as it was.
PACKED_TYPE = "secateur-packed"
