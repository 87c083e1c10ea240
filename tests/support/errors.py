"""Checks the code and the values of an error or a warning, not its message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tdmr1_core.errors import RunWarning
from tdmr1_rewards.errors import Tdmr1Error

MISSING = "<missing>"


@contextmanager
def raises(code: str, **values: Any) -> Iterator[pytest.ExceptionInfo[Tdmr1Error]]:
    """Expect a Tdmr1Error with this `code` whose `values` contain these items."""
    with pytest.raises(Tdmr1Error) as caught:
        yield caught
    assert caught.value.code == code, caught.value.message
    assert {name: caught.value.values.get(name, MISSING) for name in values} == values


@contextmanager
def warns(code: str, **values: Any) -> Iterator[pytest.WarningsRecorder]:
    """Expect a RunWarning with this `code` whose `values` contain these items. Yields all recorded warnings."""
    with pytest.warns(RunWarning) as recorded:
        yield recorded
    found = [warning.message for warning in recorded if getattr(warning.message, "code", MISSING) == code]
    assert found, [str(warning.message) for warning in recorded]
    assert values in [{name: warning.values.get(name, MISSING) for name in values} for warning in found]
