"""The files that a model folder is made of."""

MANIFEST = "secateur.json"
ORDERS = "secateur-orders.safetensors"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

# What a model folder is made of besides weights; anything else (pickles, code) stays behind.
COMPANIONS = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*")

# What the config of a folder calls its model type when the model needs orders that transformers does not know.
GATHER_TYPE = "secateur-gather"
# The same of a folder whose weights are packed (docs/format.md): "base" then holds the config as it was.
PACKED_TYPE = "secateur-packed"
