"""The files of a release: the table of extras, the citation, and pages for contributors and reporters."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml
from support.paths import ROOT

pytestmark = pytest.mark.unit

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def names_of(requirements: list[str]) -> set[str]:
    """The packages of requirements, and the extras of tdmr1 among them in backquotes."""
    found = set()
    for requirement in requirements:
        name, extras = re.match(r"([\w.-]+)(?:\[([^]]*)\])?", requirement).groups()
        found |= {f"`{extra}`" for extra in extras.split(",")} if name == "tdmr1" else {name}
    return found


def test_the_table_of_extras_is_complete():
    """Also the packages of each extra: a row that lacks one is out of date."""
    section = (ROOT / "docs" / "usage.md").read_text().partition("### Extras\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
    assert {name: set(packages.split(", ")) for name, packages, _ in rows} == {
        name: names_of(requirements) for name, requirements in EXTRAS.items()
    }
    assert all(purpose.strip() for _, _, purpose in rows)


def test_each_extra_that_code_names_exists():
    texts = [
        path.read_text()
        for folder in ("tdmr1_core", "tdmr1_rewards", "tdmr1_cli")
        for path in ROOT.glob(f"{folder}/**/*.py")
    ]
    named = {extra for text in texts for each in re.findall(r"tdmr1\[([\w,-]+)\]", text) for extra in each.split(",")}
    assert {"ocr", "aesthetic", "human"} <= named
    assert named <= EXTRAS.keys()


def test_the_citation_is_valid():
    """The keys that the format requires, and those whose value must agree with the package."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["title"] == PROJECT["name"]
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["type"] == "software"
    for entry in (citation, *citation["references"]):
        assert entry["title"]
        assert all(author.get("name") or author.get("family-names") for author in entry["authors"])
    known = {"cff-version", "message", "type", "title", "abstract", "version", "license", "authors", "keywords"}
    assert set(citation) <= known | {"references"}
    assert all(set(each) <= {"type", "title", "authors", "year", "identifiers"} for each in citation["references"])


def test_the_folders_of_the_page_for_contributors_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (`[^|]+) \|", text.partition("## Layout")[2].partition("## Words")[0], re.MULTILINE)
    assert len(rows) > 10
    for row in rows:
        base = ""
        for name in re.findall(r"`([^`]+)`", row):
            base = base or name.rpartition("/")[0]
            assert (ROOT / name).exists() or (ROOT / base / name).exists(), name
