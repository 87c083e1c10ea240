"""The conformance table: for one pipeline or all families, what every check found."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tdmr1_core.conformance.checks import CHECKS, Result, run_checks
from tdmr1_core.conformance.subject import Subject
from tdmr1_core.conformance.tiny_pipelines import MAKERS, make_tiny_pipeline
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.hub import cached_snapshot
from tdmr1_core.models.library_logs import quiet_libraries
from tdmr1_core.models.pipeline_files import INDEX, absent_parts, is_hub_id, parts_of
from tdmr1_core.models.registry import ModelEntry


def check_families(names: Sequence[str] = tuple(MAKERS)) -> Iterator[tuple[str, Result]]:
    """Check the tiny pipelines of families. Yields the family and one result after the other."""
    with TemporaryDirectory() as made, _quiet():
        for name in names:
            subject = Subject.tiny(make_tiny_pipeline(name, Path(made) / name))
            for result in run_checks(subject):
                yield name, result


def check_directory(entry: ModelEntry, folder: Path, *, training: bool) -> Iterator[Result]:
    """Check the pipeline in a directory, at the size of its entry and at half of its width."""
    height, width = entry.height, entry.width
    subject = Subject(folder, replace(entry, base=str(folder)), ((height, width), (height, width // 2)))
    with _quiet():
        yield from run_checks(subject, training=training)


def local_folder(entry: ModelEntry) -> Path | None:
    """The directory of the base of an entry, if all of it is on this machine; None if it would be downloaded.

    Raises Tdmr1Error for a directory that is incomplete.
    """
    if not is_hub_id(entry.base):
        return Path(entry.base)
    folder = cached_snapshot(entry.base, [INDEX])
    if folder is None or not (folder / INDEX).is_file():
        return None
    family = FAMILIES[entry.family]
    parts = parts_of(str(folder), absent_parts(str(folder), family, with_t5=entry.with_t5))
    return folder if all((folder / part).is_dir() for part in parts) else None


def markdown(found: Iterable[tuple[str, Result]]) -> str:
    """The table for docs/models.md: a line per family, a column per check."""
    marks = {True: "✓", False: "✗", None: "–"}
    by_family: dict[str, dict[str, str]] = {}
    for family, result in found:
        by_family.setdefault(family, {})[result.check] = marks[result.passed]
    rows = [["family", *CHECKS], ["---"] * (len(CHECKS) + 1)]
    rows += [[family, *(results[name] for name in CHECKS)] for family, results in by_family.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def require_family(name: str) -> None:
    """Raise Tdmr1Error for a family without a tiny pipeline."""
    if name not in MAKERS:
        raise Tdmr1Error(
            f"the family {name} has no tiny pipeline, and no weights of a model of it are on this machine",
            "name a directory with a pipeline of the family",
            code="model-unknown",
            values={"family": name},
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings of diffusers and transformers about tiny random networks."""
    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
