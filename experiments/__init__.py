"""The tables and figures of the paper, and what goes beyond it: one module each."""

import os

# As on the command line, before anybody imports them: bars of transformers, datasets, lm-eval and others.
for _name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
    os.environ.setdefault(_name, "1")
