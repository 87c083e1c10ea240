"""The paper as pure functions: only torch is imported here, and no model is known."""
