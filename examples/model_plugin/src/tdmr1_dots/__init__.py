"""The model family `dots` and its model. Commands that only list models import this file, so it must be light."""

from pathlib import Path

from tdmr1_core.models.families import Family, Reads
from tdmr1_core.models.registry import ModelEntry
from tdmr1_rewards import hookimpl

FAMILY = Family(
    name="dots",
    pipeline="DotsPipeline",
    transformer="DotsTransformer",
    module="tdmr1_dots.pipeline",
    backbone="tdmr1_dots.backbone:DotsBackbone",
    targets=("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out"),
    max_sequence_length=8,
    takes_length=False,
    no_guidance=1.0,
    comfy_prefix=None,
    readers={"tokenizer": Reads("the text encoder", limit="tokenizer")},
)


@hookimpl
def tdmr1_register_families(register) -> None:  # noqa: ANN001
    """Register the family. Any directory with a DotsPipeline can then be trained."""
    register(FAMILY)


@hookimpl
def tdmr1_register_models(register) -> None:  # noqa: ANN001
    """Register the model, whose weights are in this package."""
    register(
        ModelEntry(
            name="dots",
            summary="bright and dim dots, 32 px, for trying the plugin",
            family="dots",
            base=str(Path(__file__).parent / "weights"),
            lora=None,
            domain="photo",
            height=32,
            width=32,
            targets=FAMILY.targets,
            max_sequence_length=FAMILY.max_sequence_length,
            rank=8,
            alpha=16.0,
            licence="Apache-2.0",
            weights_gb=0.0005,
        )
    )
