"""A reward for red images. A complete plugin needs this file and the entry point in pyproject.toml."""

from tdmr1_rewards import RewardBatch, RewardResult, RewardSpec, hookimpl


class RedShare:
    """The fraction of red in the light of an image, 0 to 1."""

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score a batch; images are uint8 (N, height, width, 3)."""
        pixels = batch.images.astype(float)
        red = pixels[..., 0].sum((1, 2)) / pixels.sum((1, 2, 3)).clip(1)
        return RewardResult(scores=[float(fraction) for fraction in red])


@hookimpl
def tdmr1_register_rewards(register) -> None:  # noqa: ANN001
    """Register the reward; the class is imported only when the reward is used."""
    register(
        RewardSpec(
            name="red_share",
            summary="how red the image is",
            score_range="0 to 1",
            factory="tdmr1_red_share:RedShare",
            examples="tdmr1_red_share.examples:examples",
            default_prompts="count",
            image_format="array",
        )
    )
