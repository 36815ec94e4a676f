"""The demo's texts: news to calibrate on and Wikipedia pages to evaluate on, out of the gensim wheel."""

import bz2
import importlib.util
import re
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

from secateur.errors import InputError

# Of each Wikipedia page only the beginning is read: many subjects rather than a few long ones.
MARKUP_READ, CHARACTERS_PER_PAGE = 12_000, 2_000


def _file(pattern: str) -> Path:
    spec = importlib.util.find_spec("gensim")
    folder = Path(spec.origin).parent / "test" / "test_data" if spec and spec.origin else None
    files = sorted(folder.glob(pattern)) if folder else []
    if not files:
        raise InputError("the demo's texts come with the gensim wheel: pip install --no-deps gensim")
    return files[0]


def news() -> list[str]:
    """299 news articles, one per line."""
    return _file("lee_background.cor").read_text(encoding="utf-8").splitlines()


@cache
def wikipedia() -> list[str]:
    """The beginnings of the articles of a small Wikipedia dump, as plain text, one row each."""
    import mwparserfromhell

    rows = []
    with bz2.open(_file("enwiki-*-shortened.bz2")) as file:
        for _, element in ElementTree.iterparse(file):
            if element.tag.endswith("}text") and element.text and not element.text.startswith("#REDIRECT"):
                markup = re.sub(r"<ref[^>/]*/>|<ref.*?</ref>", "", element.text[:MARKUP_READ], flags=re.DOTALL)
                plain = mwparserfromhell.parse(markup).strip_code(normalize=True, collapse=True)
                rows.append(re.sub(r"\n{2,}", "\n", plain).strip()[:CHARACTERS_PER_PAGE])
            element.clear()
    return rows
