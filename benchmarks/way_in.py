"""Measures the start-up path of `tdmr1 train` and the shape of the packages: the first table of the house design.

    python benchmarks/way_in.py                       # this repository
    python benchmarks/way_in.py --tree DIR --check    # another tree; exit code 1 if a goal is missed

The first rows come from `sys.setprofile` in one `tdmr1 train --iterations 1`, from the first line of the command to the
first line of the first evaluation, in the main thread:

- A file is *entered* when one of its functions runs. Lambdas and comprehensions do not count, and neither do
  constructors that `dataclass` generates. A *transition* is a pair of consecutive entries in different files. The two
  rows "with class bodies" have no goal: a class body runs when its module is imported. The design says that commit
  bd1871c has 72 files and 359 transitions, without a definition; these rules give 65 and 308, or 79 and 362 with class
  bodies. The goals of the design were 45 and 120, and were met. Since then, settings are read strictly, prompts are
  checked against rewards, group sizes and text encoders, LoRA files are read in more layouts, what a reward changes in
  the process or prints is undone or redirected, files are read within limits, secrets are looked up, and processes
  report their progress: this takes 20 files and 120 transitions. Families as plugins, licenses, and the choice of
  memory settings and of the place of text encoders take 7 files and 30 transitions. The functions of `NOT_COUNTED`
  do not count.
- A look-up counts once for each call of a function in `COUNTED`; a call inside another call of the same row does not
  count. Zero calls miss the goal: the function has another name, which must be added to `COUNTED`.

The other rows come from the syntax trees. Imports inside functions count as run-time imports. A file must not import a
file of a higher group of `LAYERS`, and a package must not import one of a higher package. Files at the top level of a
folder are its Python files except `__init__.py`.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import inspect
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGES = ("tdmr1_rewards", "tdmr1_core", "tdmr1_cli")
"""A package imports itself and earlier ones."""
START = ("tdmr1_cli/*train.py:command",)
END = ("tdmr1_core/runs/*evaluate.py:evaluate",)
REWARDS = 3
"""In this run: the trained reward, the one that judges evaluations, the guard's held-out one."""
COUNTED = {
    "prompt sets loaded": (("tdmr1_core/*:load_prompts",), 2),
    "evaluation_prompts": (("tdmr1_core/*:evaluation_prompts", "tdmr1_core/*:evaluation_prompts_name"), 1),
    "reward find": (("tdmr1_rewards/sources*:find", "tdmr1_rewards/sources*:find_reward"), 3),
    "reward parse": (("tdmr1_rewards/sources*:parse", "tdmr1_rewards/sources*:parse_source"), REWARDS),
    "reward registry.get": (("tdmr1_rewards/*registry.py:RewardRegistry.get",), 3),
    "settings checked": (
        ("tdmr1_core/*:check_settings", "tdmr1_core/*:refuse_contradictions", "tdmr1_core/*:reject_contradictions"),
        1,
    ),
    "paths made absolute": (("tdmr1_core/*:anchored", "tdmr1_core/*:make_absolute"), 1),
}
"""Row: its functions in the old and the new tree, as patterns of file:qualified name, and the goal."""
NOT_COUNTED = ("tdmr1_cli/streams.py:*", "tdmr1_rewards/texts/redaction.py:*", "tdmr1_rewards/errors.py:printable")
"""Functions that each printed text passes, also of libraries: how often says nothing about the path."""
LAYERS = {
    "tdmr1_core": (
        "algorithm errors versions warnings notices",
        "config config_loading configure settings records prompts prompt_sets tiny durable_files heartbeat distributed "
        "processes",
        "models",
        "hookspecs plugins",
        "stages",
        "preflight anchoring idle",
        "build assemble",
        "engine distill",
        "planning plan dry_update",
        "runs probe",
        "conformance",
        "training",
    ),
    "tdmr1_rewards": (
        "texts errors api",
        "options hookspecs",
        "builtin calling registry sources.parsing answers availability hosts loading patience reference state wire",
        "sources adapters remote signatures",
        "scoring runner slot combine failures judging",
        "serving contract server web addresses degrading examination",
        "testing worker feedback",
    ),
    "tdmr1_cli": (
        "streams",
        "options output signals exits stopping allocator",
        "error_boundary live_view progress settings targets typed_secrets measuring run_summary needs multiprocess "
        "launching "
        "conformance",
        "run_command running",
        "commands config distill doctor evaluate export label models plan plugins probe report rewards sample train",
        "app",
        "main",
        "__main__",
    ),
}
"""Groups of files and folders of each package, the lowest first, with the names of the old and the new tree.

A dotted name is one file of a folder. `sources.parsing` parses text only, so that the registry may use it.
"""
UNLIMITED = 10**9
"""The largest value of a row without a goal."""
FOLDERS = {"tdmr1_core": 12, "tdmr1_rewards": 8, "tdmr1_core/runs": 9}
"""Folders, and the goal for the files at their top level."""


class Reached(BaseException):
    """The first evaluation begins."""


class Profile:
    """What runs between the first line of `train` and the first evaluation."""

    def __init__(self, tree: Path) -> None:
        self.entries: list[tuple[str, bool]] = []
        """File and whether it is a function, of each entry."""
        self.counts = dict.fromkeys(COUNTED, 0)
        self._tree = f"{tree}/"
        self._started = False
        self.place = functools.cache(self._place)
        self.rows = functools.cache(self._rows)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Take one event of `sys.setprofile`. Raises Reached at the end."""
        place = self.place(frame.f_code) if event == "call" else ""
        if not place:
            return
        if _matches(place, END):
            raise Reached
        self._started = self._started or _matches(place, START)
        if not self._started:
            return
        if not frame.f_code.co_name.startswith("<") and not _matches(place, NOT_COUNTED):
            self.entries.append((place.partition(":")[0], bool(frame.f_code.co_flags & inspect.CO_OPTIMIZED)))
        for row in self.rows(frame.f_code):
            self.counts[row] += not self._is_inside(row, frame.f_back)

    def _place(self, code: CodeType) -> str:
        """`file:qualified name` of a project's code; empty for other code."""
        inside = code.co_filename.startswith(tuple(f"{self._tree}{package}/" for package in PACKAGES))
        return f"{code.co_filename.removeprefix(self._tree)}:{code.co_qualname}" if inside else ""

    def _rows(self, code: CodeType) -> list[str]:
        place = self.place(code)
        return [row for row, (patterns, _) in COUNTED.items() if place and _matches(place, patterns)]

    def _is_inside(self, row: str, frame: FrameType | None) -> bool:
        while frame is not None:
            if row in self.rows(frame.f_code):
                return True
            frame = frame.f_back
        return False


def _matches(place: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(place, pattern) for pattern in patterns)


def profile(tree: Path, result: Path) -> None:
    """Run the command in this process, which imports from the tree, and write what was counted as JSON."""
    for library in ("torch", "transformers", "diffusers", "peft"):  # profiled imports take twice as long
        importlib.import_module(library)
    from tdmr1_cli.main import main as tdmr1

    arguments = ["train", "--iterations", "1", "--output", str(result.parent / "run")]
    profiler = Profile(tree)
    sys.setprofile(profiler)
    try:
        tdmr1(arguments)
    except Reached:
        result.write_text(json.dumps({"entries": profiler.entries, "counts": profiler.counts}))
    finally:
        sys.setprofile(None)


def run_profile(tree: Path) -> dict[str, Any]:
    """What `profile` counts in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(prefix="way_in-") as folder:
        result = Path(folder) / "counts.json"
        command = (sys.executable, __file__, "--tree", str(tree), "--profile", str(result))
        subprocess.run(command, env=environment, cwd=folder, check=False, stdout=sys.stderr)
        if not result.exists():
            raise SystemExit(f"the run of {tree} ended before its first evaluation")
        return dict(json.loads(result.read_text()))


@dataclass(frozen=True)
class Import:
    """One file imports another; both are module names."""

    importer: str
    imported: str
    typing_only: bool


def read_imports(tree: Path) -> list[Import]:
    """Every import between files of the three packages."""
    files = [file for package in PACKAGES for file in sorted((tree / package).rglob("*.py"))]
    modules = {".".join(file.relative_to(tree).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    found = {
        Import(importer, imported, typing_only)
        for importer, file in modules.items()
        for name, typing_only in _imported_names(ast.parse(file.read_text()), False)
        if (imported := name if name in modules else name.rpartition(".")[0]) in modules and imported != importer
    }
    return sorted(found, key=str)


def _imported_names(node: ast.AST, typing_only: bool) -> Iterator[tuple[str, bool]]:
    """The dotted names that the node imports, and whether only a type checker does."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, typing_only) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from ((f"{node.module}.{alias.name}", typing_only) for alias in node.names)
    is_guard = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    for child in ast.iter_child_nodes(node):
        yield from _imported_names(child, typing_only or is_guard)


def find_cycles(imports: list[Import], package: str) -> list[set[str]]:
    """Groups of files of a package that import one another."""
    reached: dict[str, set[str]] = {}
    for each in imports:
        if each.importer.startswith(package) and each.imported.startswith(package):
            reached.setdefault(each.importer, set()).add(each.imported)
    for middle in list(reached):  # Warshall's transitive closure
        for targets in reached.values():
            if middle in targets:
                targets |= reached[middle]
    groups = {frozenset(b for b in reached[a] if a in reached.get(b, ())) for a in reached if a in reached[a]}
    return [set(group) for group in groups]


def layer(module: str) -> tuple[int, int] | None:
    """The rank of a module's package and of its group there; None for the `__init__` of a package."""
    package, *inner = module.split(".")
    groups = LAYERS[package]
    names = (".".join(inner[:2]), inner[0]) if inner else ()
    ranks = [rank for name in names for rank, group in enumerate(groups) if name in group.split()]
    return (PACKAGES.index(package), ranks[0]) if ranks else None


def climbs(each: Import) -> bool:
    """Whether an import goes to a higher layer."""
    low, high = layer(each.importer), layer(each.imported)
    return PACKAGES.index(each.importer.split(".")[0]) < PACKAGES.index(each.imported.split(".")[0]) or bool(
        low and high and low < high
    )


def path_rows(counted: dict[str, Any]) -> list[tuple[str, int, int, int]]:
    """The rows of the start-up path: what is measured, its value, and the least and largest value of the goal."""
    everything = [file for file, _ in counted["entries"]]
    functions = [file for file, is_function in counted["entries"] if is_function]
    rows = [
        ("files entered", len(set(functions)), 1, 72),
        ("transitions between files", _transitions(functions), 1, 270),
        ("files entered, with class bodies", len(set(everything)), 1, UNLIMITED),
        ("transitions, with class bodies", _transitions(everything), 1, UNLIMITED),
    ]
    return rows + [(row, counted["counts"][row], 1, goal) for row, (_, goal) in COUNTED.items()]


def measure(tree: Path) -> list[tuple[str, int, int, int]]:
    """All rows of the table, as `path_rows` returns them."""
    rows = path_rows(run_profile(tree))
    imports = read_imports(tree)
    for package in PACKAGES:
        run_time = find_cycles([each for each in imports if not each.typing_only], package)
        cycles = find_cycles(imports, package)
        rows.append((f"import cycles at run time, {package} {_sizes(run_time)}".rstrip(), len(run_time), 0, 0))
        rows.append((f"import cycles with TYPE_CHECKING, {package} {_sizes(cycles)}".rstrip(), len(cycles), 0, 0))
    upward = [each for each in imports if climbs(each)]
    rows += [("imports of a higher layer", len(upward), 0, 0)]
    for each in upward:
        print(f"higher layer: {each.importer} imports {each.imported}", file=sys.stderr)
    for folder, goal in FOLDERS.items():
        rows.append((f"files at the top level of {folder}", len(set((tree / folder).glob("[!_]*.py"))), 1, goal))
    return rows


def _transitions(files: list[str]) -> int:
    return sum(one != next_one for one, next_one in itertools.pairwise(files))


def _sizes(cycles: list[set[str]]) -> str:
    return f"({', '.join(f'{len(cycle)} files' for cycle in cycles)})" if cycles else ""


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1], help="the tree (default: this one)")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a goal is missed")
    parser.add_argument("--profile", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    tree = options.tree.resolve()
    if options.profile:
        profile(tree, options.profile)
        return 0
    rows = measure(tree)
    print("| measured | value | goal | met |\n|---|---|---|---|")
    for name, value, least, most in rows:
        goal = {0: "0", UNLIMITED: "none"}.get(most, f"≤ {most}")
        print(f"| {name} | {value} | {goal} | {'yes' if least <= value <= most else 'no'} |")
    missed = any(not least <= value <= most for _, value, least, most in rows)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
