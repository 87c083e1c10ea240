"""Checks the length of prompts before a model is loaded, where its tokenizers are in a local directory."""

from __future__ import annotations

from tdmr1_core.errors import RunWarning
from tdmr1_core.models.prompt_lengths import load_readers
from tdmr1_core.preflight.prompts import check_lengths
from tdmr1_core.preflight.resolved import ResolvedRun
from tdmr1_core.prompts.sets import PROMPT_SETS


def check_file_lengths(resolved: ResolvedRun) -> list[RunWarning]:
    """The warnings of `check_lengths` for the prompt files of a run; none for a model on the hub."""
    named = PROMPT_SETS.get(resolved.entry.domain, {})
    files = [each for each in resolved.evaluation_prompts if each.name not in named]
    readers = load_readers(resolved.entry) if files else ()
    found = [check_lengths(each, readers, resolved.rewards) for each in files] if readers else []
    return [warning for warning in found if warning is not None]
