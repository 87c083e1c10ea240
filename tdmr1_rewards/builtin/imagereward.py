"""ImageReward (arXiv 2304.05977): which image users prefer for a prompt, by a BLIP trained on their rankings.

The score is the published one, standardized to mean 0 and standard deviation 1 on the images of its authors. A prompt
is truncated to 35 tokens. The authors' package is not needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tdmr1_rewards.api import RewardBatch, RewardResult
from tdmr1_rewards.builtin.clip_models import PRECISION_HELP, Precision
from tdmr1_rewards.builtin.optional import find_file, import_optional
from tdmr1_rewards.options import RewardOptions

if TYPE_CHECKING:
    from tdmr1_rewards.builtin.imagereward_model import ImageRewardModel


class ImageRewardOptions(RewardOptions):
    """The checkpoint and its tokenizer."""

    checkpoint: str = Field(
        "THUDM/ImageReward/ImageReward.pt",
        description="a file (.pt or .safetensors), or a file on the hub as ORG/REPO/FILE",
    )
    tokenizer: str = Field("bert-base-uncased", description="hub name or folder of its BERT tokenizer")
    precision: Precision = Field("fp32", description=PRECISION_HELP)


class ImageReward:
    """Scores N images by the published reward of image and prompt."""

    def __init__(self, options: ImageRewardOptions) -> None:
        self._options = options
        self._model: ImageRewardModel | None = None

    def setup(self, device: str) -> None:
        """Load the model. Raises Tdmr1Error if it cannot be loaded."""
        import_optional("transformers", "transformers")
        from tdmr1_rewards.builtin.imagereward_model import ImageRewardModel

        options = self._options
        checkpoint = find_file(options.checkpoint)
        self._model = ImageRewardModel(checkpoint, options.tokenizer, device=device, precision=options.precision)

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score N RGB images of any size."""
        if self._model is None:
            self.setup("cpu")
        assert self._model is not None
        return RewardResult(self._model.score(batch.images, batch.prompts))
