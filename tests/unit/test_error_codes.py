"""Checks in the source code that each error and warning has a code of `CODES`, and that each code is used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from support.paths import ROOT

from tdmr1_rewards.errors import CODES

pytestmark = pytest.mark.unit

PACKAGES = ("tdmr1_core", "tdmr1_rewards", "tdmr1_cli")
BASES = {"Tdmr1Error", "RunWarning", "RewardWarning", "CallFailed"}
"""The classes that have a code. Their subclasses have one too, and the function `warn` takes one."""


@dataclass(frozen=True)
class Raise:
    """A call that makes an error or a warning. `code` is None if the call has no argument of this name."""

    place: str
    called: str
    code: ast.expr | None
    function: ast.AST
    """The function or module around the call."""


@cache
def trees() -> dict[Path, ast.Module]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def name_of(node: ast.AST) -> str | None:
    """`f` for the expressions f and a.f."""
    return getattr(node, "id", None) or getattr(node, "attr", None)


@cache
def classes() -> dict[str, ast.ClassDef]:
    """The classes that have a code, by name."""
    defined = [node for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = {node.name: node for node in defined if node.name in BASES}
    while new := [n for n in defined if n.name not in found and any(name_of(base) in found for base in n.bases)]:
        found |= {node.name: node for node in new}
    return found


@cache
def default_codes() -> dict[str, str]:
    """The default of the argument `code` of each class that has one in CODES."""
    found = {}
    for name, definition in classes().items():
        for node in ast.walk(definition):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                defaults = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                for key, value in defaults:
                    if key.arg == "code" and is_code(value):
                        found[name] = value.value
    return found


def is_code(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and node.value in CODES


def raises_in(tree: ast.Module, path: Path) -> Iterator[Raise]:
    """All calls that make an error or a warning, with the innermost function around each."""

    def visit(node: ast.AST, function: ast.AST) -> Iterator[Raise]:
        inside = node if isinstance(node, ast.FunctionDef) else function
        if isinstance(node, ast.Call) and (called := name_of(node.func)) in {*classes(), "warn"}:
            code = next((keyword.value for keyword in node.keywords if keyword.arg == "code"), None)
            if code is not None or not is_python_warning(node):
                yield Raise(f"{path.relative_to(ROOT)}:{node.lineno}", called, code, function)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(tree, tree)


def is_python_warning(call: ast.Call) -> bool:
    """Whether this is a call of `warnings.warn`, whose argument is a warning that has a code itself."""
    return isinstance(call.func, ast.Attribute) and name_of(call.func.value) == "warnings"


@cache
def all_raises() -> list[Raise]:
    return [each for path, tree in trees().items() for each in raises_in(tree, path)]


def codes_of(each: Raise) -> set[str] | None:
    """The literal codes of a call; empty if it forwards the code of another error; None if it has no known code."""
    if each.code is None:
        return {default_codes()[each.called]} if each.called in default_codes() else None
    return literals(each.code, each.function)


def literals(code: ast.expr, function: ast.AST) -> set[str] | None:
    """The codes that an expression can have, as in `codes_of`."""
    if isinstance(code, ast.Constant):
        return {code.value} if is_code(code) else None
    if isinstance(code, ast.IfExp):
        parts = [literals(code.body, function), literals(code.orelse, function)]
        return None if None in parts else parts[0] | parts[1]
    if isinstance(code, ast.Attribute) and code.attr == "code":
        return set()
    if isinstance(code, ast.Subscript) and getattr(code.slice, "value", None) == "code":
        return set()
    if isinstance(code, ast.Name):
        if is_parameter(code.id, function):
            return set()
        parts = [literals(value, function) for value in assigned(code.id, function)]
        return None if None in parts or not parts else set().union(*parts)
    return None


def is_parameter(name: str, function: ast.AST) -> bool:
    """Whether the code is an argument of `warn` or of a constructor. Their calls are checked."""
    if not isinstance(function, ast.FunctionDef) or function.name not in ("warn", "__init__"):
        return False
    return name in [each.arg for each in function.args.kwonlyargs]


def assigned(name: str, function: ast.AST) -> Iterator[ast.expr]:
    """The values that a function assigns to a name, also in `a, b = 1, 2`."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = zip(target.elts, node.value.elts, strict=True)
                    yield from (value for key, value in pairs if getattr(key, "id", None) == name)
                elif getattr(target, "id", None) == name:
                    yield node.value


def test_each_error_and_warning_has_a_code():
    assert len(all_raises()) > 200
    assert [f"{each.place} {each.called}" for each in all_raises() if codes_of(each) is None] == []


def test_each_code_is_used():
    used = set().union(*(codes_of(each) or () for each in all_raises()), default_codes().values())
    assert CODES.keys() - used == set()


def test_the_number_of_codes_is_small():
    assert 60 <= len(CODES) <= 100


def test_codes_and_their_meanings_have_one_form():
    for code, meaning in CODES.items():
        assert code == code.lower().replace("_", "-").replace(" ", "-")
        assert meaning.endswith("."), code


@pytest.mark.parametrize(
    ("source", "codes"),
    [
        ("warn('m', code='usage')", {"usage"}),
        ("def f():\n  raise RewardFailed('m')", {"reward-failed"}),
        ("def f(error):\n  raise Tdmr1Error('m', code=error.code)", set()),
        ("def warn(*, code):\n  raise Tdmr1Error('m', code=code)", set()),
        ("def f(*, code):\n  raise Tdmr1Error('m', code=code)", None),
        ("def f():\n  a, code = 1, 'usage'\n  code = 'unexpected'\n  warn('m', code=code)", {"usage", "unexpected"}),
        ("warn('m', code='usage' if x else 'unexpected')", {"usage", "unexpected"}),
        ("warn('m')", None),
        ("warn('m', code='no-such-code')", None),
        ("raise Tdmr1Error('m', 'hint')", None),
        ("raise GuardStopped('m')", None),
        ("def f():\n  code = compute()\n  warn('m', code=code)", None),
    ],
)
def test_the_check_itself(source, codes):
    (found,) = raises_in(ast.parse(source), ROOT / "example.py")
    assert codes_of(found) == codes


def test_the_call_of_python_warnings_is_not_checked():
    assert list(raises_in(ast.parse("warnings.warn(error)"), ROOT / "example.py")) == []
