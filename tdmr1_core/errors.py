"""The one exception that a user is meant to read, and the one that a user is not."""

from tdmr1_rewards.errors import Tdmr1Error, close_match_hint

__all__ = ["Tdmr1Error", "ToldElsewhere", "close_match_hint"]


class ToldElsewhere(Exception):
    """This process ends for a reason that another process of the same run tells."""
