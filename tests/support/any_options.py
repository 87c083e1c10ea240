"""An options model that accepts everything, for registered rewards that no test builds."""

from pydantic import ConfigDict

from tdmr1_rewards import RewardOptions


class AnyOptions(RewardOptions):
    """Accepts any option."""

    model_config = ConfigDict(extra="allow")
