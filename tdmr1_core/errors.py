"""The one exception that a user is meant to read."""

from tdmr1_rewards.errors import Tdmr1Error, close_match_hint

__all__ = ["Tdmr1Error", "close_match_hint"]
