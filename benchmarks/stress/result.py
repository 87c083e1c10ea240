"""The table of a stress test: a row for each part, and the faults with the commands that repeat them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST_FAULTS = 40
"""Faults that are listed."""


def write_result(path: Path, rows: Sequence[dict[str, Any]], seconds: float) -> str:
    """Write and return the table. `seconds` is the time of the last session."""
    by_part: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_part[row["part"]].append(row)
    lines = ["| part | items | attempts | exit codes | faults | seconds |", "|---|---|---|---|---|---|"]
    lines += [_row(part, found) for part, found in by_part.items()]
    lines += [_row("all", rows)]
    faulty = [row for row in rows if row["faults"]]
    seeds = ", ".join(sorted({str(row["seed"]) for row in rows}))
    lines += ["", f"Seed {seeds}; {seconds:.0f} s in this session. Seconds of a part are the sum over its items.", ""]
    notes = Counter(f"{row['part']}: {note}" for row in rows for note in row["notes"])
    lines += [f"- {note} ({count})" for note, count in sorted(notes.items())]
    lines += ["", f"{len(faulty)} items with faults", ""] if faulty else ["", "No faults.", ""]
    for row in faulty[:MOST_FAULTS]:
        item = f"{row['part']}:{row['number']}"
        lines.append(f"- `python benchmarks/stress_kit.py --output NEW --seed {row['seed']} --only {item}`")
        lines += [f"  - {' '.join(fault.split())[:400]}" for fault in row["faults"]]
    if len(faulty) > MOST_FAULTS:
        lines.append(f"- and {len(faulty) - MOST_FAULTS} more in items.jsonl")
    text = "\n".join(lines).rstrip() + "\n"
    path.write_text(text)
    return text


def _row(part: str, rows: Sequence[dict[str, Any]]) -> str:
    codes = sum((Counter(row["codes"]) for row in rows), Counter())
    shown = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items())) or "–"
    faults = sum(len(row["faults"]) for row in rows)
    seconds = sum(row["seconds"] for row in rows)
    attempts = sum(row["count"] for row in rows)
    return f"| {part} | {len(rows)} | {attempts} | {shown} | {faults} | {seconds:.0f} |"
