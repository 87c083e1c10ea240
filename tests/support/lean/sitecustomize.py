"""Hides bitsandbytes from interpreters that tests start: few users have it, and it takes three seconds to import."""

import sys

sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
