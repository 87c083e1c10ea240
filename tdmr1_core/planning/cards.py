"""Well-known GPUs: their memory, and the speed that a plan assumes for them.

Memory and speed are those of NVIDIA's data sheets and architecture papers. The speed is that of dense products of bf16
matrices with float32 accumulation. Data sheets often state twice that number, which is for sparse matrices.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from tdmr1_core.errors import Tdmr1Error

GB = 1e9
UNITS = {"": GB, "gb": GB, "gib": 2.0**30}
REFERENCE = "H100"
"""The card that is assumed if none is known."""
SUSTAINED = 139 / 989
"""The fraction of its dense bf16 speed that a run sustains. Measured on an H100 80GB HBM3 for SD3.5-medium, 512 px: 142
TFLOP/s (micro-batch 12, no recomputation) and 137 TFLOP/s (micro-batch 24, recomputation), which is 18 % of the 774
TFLOP/s of a product of two large matrices there (torch 2.11; docs/performance.md)."""
UNUSED = frozenset(
    {"nvidia", "geforce", "tesla", "gpu", "sxm", "sxm4", "sxm5", "hbm2", "hbm2e", "hbm3", "hbm3e"}
    | {"generation", "server", "workstation", "edition"}
)
"""Words of a name that distinguish no cards."""
HOPPER = "NVIDIA H100 Tensor Core GPU data sheet (2024)"
H200 = "NVIDIA H200 Tensor Core GPU data sheet (2024)"
ADA = "NVIDIA Ada GPU Architecture, appendix A"
GA102 = "NVIDIA Ampere GA102 GPU Architecture, appendix A"
BLACKWELL = "NVIDIA RTX Blackwell GPU Architecture, appendix A"


@dataclass(frozen=True)
class Card:
    """A GPU as it is sold."""

    name: str
    gigabytes: float
    """Memory in 10^9 bytes."""
    tflops: float
    """TFLOP/s of dense bf16 matrix products."""
    source: str
    aliases: tuple[str, ...] = ()
    """Other names, without the words in `UNUSED`."""

    @property
    def memory(self) -> float:
        """Bytes."""
        return self.gigabytes * GB

    @property
    def sustained(self) -> float:
        """TFLOP/s that a plan assumes for a run."""
        return SUSTAINED * self.tflops


CARDS = (
    Card("B200", 180, 2250, "NVIDIA Blackwell Architecture, technical overview"),
    Card("H200", 141, 989, H200, ("H200 141GB",)),
    Card("H200 NVL", 141, 835, H200),
    Card("GH200", 96, 989, "NVIDIA GH200 Grace Hopper Superchip data sheet", ("GH200 96GB", "GH200 480GB")),
    Card("H100", 80, 989, HOPPER, ("H100 80GB",)),
    Card("H100 NVL", 94, 835, HOPPER, ("H100 94GB",)),
    Card("H100 PCIe", 80, 756, "NVIDIA H100 Tensor Core GPU data sheet (2022)", ("H100 80GB PCIe",)),
    Card("H800", 80, 989, "NVIDIA H800 Tensor Core GPU data sheet", ("H800 80GB",)),
    Card("H20", 96, 148, "NVIDIA H20 GPU data sheet", ("H20 96GB",)),
    Card("A100 80GB", 80, 312, "NVIDIA A100 Tensor Core GPU data sheet", ("A100", "A100 80GB PCIe", "A100 PCIe 80GB")),
    Card("A100 40GB", 40, 312, "NVIDIA A100 Tensor Core GPU data sheet", ("A100 40GB PCIe", "A100 PCIe 40GB")),
    Card("A800", 80, 312, "NVIDIA A800 Tensor Core GPU data sheet", ("A800 80GB", "A800 80GB PCIe")),
    Card("L40S", 48, 362, "NVIDIA L40S GPU data sheet"),
    Card("L40", 48, 181, "NVIDIA L40 GPU data sheet"),
    Card("L4", 24, 121, "NVIDIA L4 Tensor Core GPU data sheet"),
    Card("A40", 48, 149.7, "NVIDIA A40 data sheet"),
    Card("A30", 24, 165, "NVIDIA A30 Tensor Core GPU data sheet"),
    Card("A10", 24, 125, "NVIDIA A10 Tensor Core GPU data sheet"),
    Card("RTX PRO 6000", 96, 503.8, "NVIDIA RTX PRO Blackwell GPU Architecture", ("RTX PRO 6000 Blackwell",)),
    Card("RTX 6000 Ada", 48, 364.2, "NVIDIA Ada GPU Architecture for professional graphics", ("6000 Ada",)),
    Card("RTX A6000", 48, 154.8, GA102, ("A6000",)),
    Card("RTX 5090", 32, 209.5, BLACKWELL, ("5090",)),
    Card("RTX 5080", 16, 112.6, BLACKWELL, ("5080",)),
    Card("RTX 4090", 24, 165.2, ADA, ("4090",)),
    Card("RTX 4080", 16, 97.5, ADA, ("4080",)),
    Card("RTX 3090 Ti", 24, 80, GA102, ("3090 Ti",)),
    Card("RTX 3090", 24, 71, GA102, ("3090",)),
)


@dataclass(frozen=True)
class Room:
    """The memory of one GPU, and the card if it is known."""

    memory: float
    """Bytes."""
    label: str
    """The card and its memory, for messages."""
    card: Card | None


def card_of(name: str) -> Card | None:
    """The card with a name as users or drivers write it, such as `h100`, `RTX4090` or `NVIDIA A100-SXM4-80GB`."""
    wanted = _key(name)
    return next((card for card in CARDS if wanted in map(_key, (card.name, *card.aliases))), None)


def parse_room(text: str) -> Room:
    """The memory of a card or of `24GB`, `24GiB` or `24`. Raises Tdmr1Error for anything else."""
    card = card_of(text)
    if card is not None:
        return Room(card.memory, f"{card.name} ({card.gigabytes:g} GB)", card)
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in UNITS:
        near, known = _near(text), ", ".join(each.name for each in CARDS)
        named = f"did you mean {' or '.join(near)}?" if near else f"known cards: {known}"
        raise Tdmr1Error(
            f"--gpu {text!r} is neither a known card nor a size in GB or GiB",
            f"{named}; for any other card, give its memory as `--gpu 24GB`, and its speed with --tflops",
            code="argument-invalid",
            values={"gpu": text, "near": near},
        )
    return Room(float(match[1]) * UNITS[match[2]], text.strip(), None)


def _near(text: str) -> list[str]:
    """The names of cards that share a word with a digit, or else the most similar names."""
    words = {word for word in _words(text) if any(character.isdigit() for character in word)}
    sharing = [card.name for card in CARDS if words & set(_words(card.name))]
    names = {_key(card.name): card.name for card in CARDS}
    return sharing or [names[key] for key in difflib.get_close_matches(_key(text), names)]


def _words(name: str) -> list[str]:
    return [word for word in re.findall(r"[a-z0-9]+", name.lower()) if word not in UNUSED]


def _key(name: str) -> str:
    """The name without blanks and unused words."""
    return "".join(_words(name))
