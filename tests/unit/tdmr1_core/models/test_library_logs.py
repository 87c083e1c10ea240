"""Libraries are quiet within the context only."""

from __future__ import annotations

import logging
import warnings

import pytest

from tdmr1_core.models.library_logs import quiet_libraries

pytestmark = pytest.mark.unit


def test_verbosity_bars_and_warnings_are_restored():
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    def state() -> list[tuple[int, bool]]:
        return [
            (each.get_verbosity(), each.is_progress_bar_enabled()) for each in (diffusers_logging, transformers_logging)
        ]

    former = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.INFO)
    diffusers_logging.enable_progress_bar()
    before = state()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with quiet_libraries():
                assert state() == [(logging.ERROR, False)] * 2
                warnings.warn_explicit("of a library", FutureWarning, "file.py", 1, module="diffusers.utils.x")
                warnings.warn_explicit("of a user", FutureWarning, "file.py", 1, module="own")
            warnings.warn_explicit("afterwards", FutureWarning, "file.py", 1, module="diffusers.utils.x")
        assert state() == before
    finally:
        diffusers_logging.set_verbosity(former)
    assert [str(each.message) for each in caught] == ["of a user", "afterwards"]
