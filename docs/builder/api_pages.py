"""The pages of the API reference: names for mkdocstrings, which reads the docstrings."""

from __future__ import annotations

from pathlib import Path

import tdmr1_core
import tdmr1_rewards

PUBLIC = """# `{package}`

{summary} These names are public: they keep their meaning, and a change is named in the [changelog](../changelog.md).

"""
MODULES = {
    "algorithm": (
        "The algorithm",
        "The equations of the paper as pure functions of tensors. [Concepts](../concepts.md) explains them.",
        ("flow", "advantages", "objectives", "averages", "teaching", "seeds"),
    ),
    "stages": (
        "The stages",
        "The stages of an iteration. Each is a method of [`Engine`](tdmr1_core.md).",
        ("rollout", "sampling", "scoring", "fake_score", "surrogate", "generator", "draws"),
    ),
}
"""Title, introduction and modules of each page about a folder of tdmr1_core."""
HOOKS = """# Hooks

The hooks that a plugin may implement. [Writing a reward](../writing_rewards.md#observing-the-engine) explains them.

"""
MODELS = """# Models

What a plugin needs to add a model family. [Adding a model family](../adding_a_model.md) explains it.

"""
TESTING = "\n## Testing\n\n::: tdmr1_rewards.testing.check_reward\n    options: {heading_level: 3}\n"


def api_pages() -> dict[str, str]:
    """The Markdown of each page by its path."""
    pages = {
        "api/tdmr1_core.md": _package(tdmr1_core, "The engine, its settings and its records."),
        "api/tdmr1_rewards.md": _package(tdmr1_rewards, "What the author of a reward needs.") + TESTING,
        "api/hooks.md": HOOKS + "".join(_module(name) for name in ("tdmr1_rewards.hookspecs", "tdmr1_core.hookspecs")),
        "api/models.md": MODELS + "".join(f"::: tdmr1_core.models.{name}\n\n" for name in _MODEL_NAMES),
    }
    for folder, (title, introduction, modules) in MODULES.items():
        parts = "".join(_module(f"tdmr1_core.{folder}.{module}") for module in modules)
        pages[f"api/{folder}.md"] = f"# {title}\n\n{introduction}\n\n{parts}"
    return pages


_MODEL_NAMES = (
    "backbone.Backbone",
    "families.Family",
    "families.Layout",
    "families.Reads",
    "pipeline.PipelineBackbone",
)


def page_of_module(path: Path) -> tuple[str, str] | None:
    """The page with the entries of a Python file, and the prefix of their names; None if there is no such page."""
    module = ".".join(path.with_suffix("").parts)
    for folder, (_, _, modules) in MODULES.items():
        if module in {f"tdmr1_core.{folder}.{name}" for name in modules}:
            return f"api/{folder}.md", module
    return ("api/tdmr1_core.md", "tdmr1_core") if module in ("tdmr1_core.engine", "tdmr1_core.records") else None


def _package(package: object, summary: str) -> str:
    name, public = package.__name__, sorted(package.__all__)  # type: ignore[attr-defined]
    entries = "".join(f"::: {name}.{each}\n\n" for each in public)
    return PUBLIC.format(package=name, summary=summary) + entries


def _module(name: str) -> str:
    """A module with all of its public members."""
    return f"## `{name}`\n\n::: {name}\n    options: {{show_root_heading: false, heading_level: 3}}\n\n"
