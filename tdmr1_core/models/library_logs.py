"""Hides what libraries print for their developers: progress bars of loading, log lines below errors, and warnings."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = r"(diffusers|transformers|peft|huggingface_hub|accelerate|torch|tensorboard)\b"
"""Modules whose warnings are for developers, not for users."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the context, these libraries print errors only."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    former = [(each, each.get_verbosity(), each.is_progress_bar_enabled()) for each in libraries]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=LIBRARIES)
        for library in libraries:
            library.set_verbosity(logging.ERROR)
            library.disable_progress_bar()
        try:
            yield
        finally:
            for library, verbosity, has_bars in former:
                library.set_verbosity(verbosity)
                if has_bars:
                    library.enable_progress_bar()
