"""What the documents list is what there is."""

import re
from pathlib import Path

import pytest

from secateur.importance import METHODS
from secateur.models.families import FAMILIES
from secateur.permute.searches import SEARCHES
from secateur.quantization.methods import QUANTIZATIONS
from secateur.reconstruct.methods import RECONSTRUCTIONS
from secateur.scores import SCORES

DOCS = Path(__file__).parents[1] / "docs"


def listed(file: str, option: str) -> list[str]:
    """The names in the first column of the table in ``file`` that is headed by ``option``, a cell of its own."""
    text = (DOCS / file).read_text(encoding="utf-8")
    rows = text.split(f"| `{option}` |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [re.match(r"\| `([\w-]+)`", row)[1] for row in rows]  # type: ignore[index]


@pytest.mark.parametrize(
    ("file", "option", "names"),
    [
        ("scores.md", "--score", list(SCORES)),
        ("permutation.md", "--permute", ["none", *SEARCHES]),
        ("reconstruction.md", "--reconstruct", ["none", *RECONSTRUCTIONS]),
        ("structured.md", "--method", list(METHODS)),
        ("quantization.md", "--method", list(QUANTIZATIONS)),
    ],
)
def test_a_table_of_methods_lists_them_all(file, option, names):
    assert sorted(listed(file, option)) == sorted(names)


def test_every_family_is_in_the_documents():
    text = (DOCS / "families.md").read_text(encoding="utf-8")
    absent = {function.__name__ for function in FAMILIES.values() if f"| {function.__name__} |" not in text}
    assert not absent
