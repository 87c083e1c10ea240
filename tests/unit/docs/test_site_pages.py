"""The pages of the documentation site: the navigation has all of them, and generated files are up to date."""

from __future__ import annotations

import ast
import hashlib
import posixpath
import re
from pathlib import PurePosixPath
from pkgutil import resolve_name

import pytest
import yaml
from builder.api_pages import api_pages, page_of_module
from builder.curves import axis, figure, measured
from builder.repository import PAGES as REPOSITORY_PAGES
from builder.repository import repository_pages, site_markdown
from generate import generated_files
from support.paths import ROOT
from troubleshooting_curves import RUNS

from tdmr1_core.config import RewardConfig
from tdmr1_core.config_loading import describe
from tdmr1_core.settings.origins import ORIGINS
from tdmr1_core.settings.reference import REWARD_ENTRY, setting_references
from tdmr1_rewards.builtin import SPECS

pytestmark = pytest.mark.unit

DOCS = ROOT / "docs"
CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
CONCEPTS = (DOCS / "concepts.md").read_text(encoding="utf-8")
FUNCTION = re.compile(r"\[`[\w.]+`\]\((\.\./tdmr1_core/[\w/]+\.py)#([\w.]+)\)")


def navigation() -> list[str]:
    """The pages in the navigation of mkdocs.yml."""
    nav = yaml.safe_load(CONFIG[CONFIG.index("\nnav:") :])["nav"]

    def pages(entry) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for each in (entry if isinstance(entry, list) else entry.values()) for page in pages(each)]

    return pages(nav)


def test_the_navigation_has_every_page_once():
    found = navigation()
    assert len(found) == len(set(found))
    expected = {path.name for path in DOCS.glob("*.md")} | set(api_pages()) | set(REPOSITORY_PAGES.values())
    assert set(found) == expected, "add new pages to the navigation in mkdocs.yml"


@pytest.mark.parametrize("name", generated_files())
def test_generated_files_are_up_to_date(name):
    assert (DOCS / name).read_text(encoding="utf-8") == generated_files()[name], "run: make docs"


def test_every_setting_has_a_unit_or_is_no_number_and_a_source():
    names = [name for name, *_ in describe()] + [name for name, *_ in describe(RewardConfig, REWARD_ENTRY)]
    assert set(ORIGINS) == set(names)
    for setting in setting_references():
        assert setting.meaning, setting.name
        assert setting.source, setting.name
        is_number = re.search(r"\b(?:number|integer)\b", setting.values)
        assert bool(setting.unit) == bool(is_number), setting.name
        assert not is_number or re.search(r"at least|above|below|at most", setting.values), setting.name


def test_a_published_value_names_its_presets_if_they_differ():
    found = {setting.name: setting.published for setting in setting_references()}
    assert found["surrogate.beta_dpo"] == {"ocr": 10, "geneval": 1, "imagereward": 1, "hps": 10}
    assert set(found["rollout.steps"].values()) == {4}
    assert found["guard.threshold"] is None
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert "| `10` (`ocr`, `hps`); `1` (`geneval`, `imagereward`) |" in page


def test_every_equation_stands_beside_functions_that_exist_and_are_in_the_reference():
    links = FUNCTION.findall(CONCEPTS)
    assert len(links) >= 35
    for path, name in links:
        file = PurePosixPath(posixpath.normpath(f"docs/{path}"))
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        for part in name.split("."):
            (tree,) = [each for each in tree.body if getattr(each, "name", None) == part]
        assert page_of_module(file) is not None, path
    for section in re.split(r"^## ", CONCEPTS, flags=re.MULTILINE)[1:]:
        assert "$$" not in section or FUNCTION.search(section), section[:40]


def test_every_pure_function_of_the_algorithm_is_on_the_page_of_the_algorithm():
    linked = {name for _, name in FUNCTION.findall(CONCEPTS)}
    for module in ("flow", "objectives", "advantages", "averages"):
        tree = ast.parse((ROOT / "tdmr1_core" / "algorithm" / f"{module}.py").read_text(encoding="utf-8"))
        public = {each.name for each in tree.body if isinstance(each, ast.FunctionDef) and each.name[0] != "_"}
        assert public - linked <= {"expand", "sample_mse", "stretch", "group_spreads"}, module


def test_links_lead_to_pages_of_the_site():
    text = (
        "[a](faults.md#resume) [b](../README.md) [c](../examples/configs/README.md#several-machines) "
        "[d](../examples/train_tiny.py) [e](../tdmr1_core/algorithm/flow.py#renoise) [f](https://x.y/z.md) [g](#here)\n"
        "```json info\n[h](../README.md)\n```\n"
    )
    assert site_markdown(text, "usage.md") == (
        "[a](faults.md#resume) [b](index.md) [c](processes.md#several-machines) "
        "[d](sources/examples/train_tiny.py.md) [e](api/algorithm.md#tdmr1_core.algorithm.flow.renoise) "
        "[f](https://x.y/z.md) [g](#here)\n```json\n[h](../README.md)\n```\n"
    )
    assert site_markdown("[a](docs/faults.md) ![b](docs/curves.png)", "index.md") == "[a](faults.md) ![b](curves.png)"


def test_bars_in_code_are_escaped_only_in_the_repository():
    assert site_markdown("| `a \\| b` | c \\| d |\n`e \\| f`", "usage.md") == "| `a | b` | c \\| d |\n`e \\| f`"


def test_linked_source_files_have_a_page():
    pages = repository_pages()
    assert "class Dots" not in pages["index.md"]
    assert "class RedShare" in pages["sources/examples/reward_plugin.md"]
    assert set(REPOSITORY_PAGES.values()) <= set(pages)


def test_every_measured_curve_is_shown_and_has_a_run():
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    curves = measured()
    assert re.findall(r"!\[[^\]]{20,}\]\(curves/(\w+)\.svg\)", page) == list(curves) == list(RUNS)
    for name, shown in curves.items():
        assert list(shown) == list(RUNS[name].curves)
        assert all(len(points) >= 2 for points in shown.values()), name


def test_a_figure_has_the_range_of_each_curve_in_its_legend():
    curves = {"reward": [(0, 0.0), (10, 0.5)], "norm": [(0, 2.0), (5, 31.0)], "size": [(0, -2.5), (10, -1.0)]}
    drawn = figure(curves)
    for text in ("reward (0 to 1)", "norm (0 to 40)", "size (-3 to -1)", "iteration 10"):
        assert f">{text}</text>" in drawn
    assert 'd="M14.0 144.0 L348.0 79.0"' in drawn


@pytest.mark.parametrize(
    ("values", "ends"),
    [((0.1, 0.5), (0, 1)), ((2, 31), (0, 40)), ((18.8, 27.1), (18, 28)), ((3.0, 3.0), (0, 3)), ((0.0, 0.0), (0, 0))],
)
def test_the_axis_of_a_curve_has_round_ends(values, ends):
    assert axis(values) == ends


def test_every_option_of_a_reward_has_a_meaning():
    page = (DOCS / "settings.md").read_text(encoding="utf-8").partition("## Options of rewards")[2]
    for spec in SPECS:
        section = page.partition(f"### Options of `{spec.name}`\n")[2].partition("###")[0]
        names = list(resolve_name(spec.options).model_fields) if spec.options else []
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == names
        assert "| – |" not in section


def test_the_vendored_script_is_the_named_one():
    (name,) = re.findall(r"polyfills: \[(.*)\]", CONFIG)
    digest = hashlib.sha256((DOCS / name).read_bytes()).hexdigest()
    assert f"SHA-256: {digest}" in CONFIG
    assert "Permission is hereby granted" in (DOCS / "vendored" / "iframe-worker-LICENSE.txt").read_text()
