"""Checks the code and the values of an error, not its sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tdmr1_rewards.errors import Tdmr1Error

MISSING = "<missing>"


@contextmanager
def raises(code: str, **values: Any) -> Iterator[pytest.ExceptionInfo[Tdmr1Error]]:
    """Expect a Tdmr1Error with this `code` whose `values` contain these items."""
    with pytest.raises(Tdmr1Error) as caught:
        yield caught
    assert caught.value.code == code, caught.value.message
    assert {name: caught.value.values.get(name, MISSING) for name in values} == values
