"""What the documents list is what there is."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from secateur.citations import RIA
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


def test_the_citation_file_is_one_and_of_this_version():
    root = DOCS.parent
    cited = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= cited.keys() and cited["cff-version"] == "1.2.0"
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    paper = cited["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys()
    title = re.search(r"title += \{(.*)\}", RIA)
    authors = " ".join(re.search(r"author += \{(.*?)\}", RIA, re.DOTALL)[1].split())  # type: ignore[index]
    assert title and paper["title"] == title[1] and str(paper["year"]) in RIA
    assert " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"]) == authors
