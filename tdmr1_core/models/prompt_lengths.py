"""How much of a prompt the text encoders of a model read. Pipelines of diffusers truncate longer prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import FAMILIES, Family
from tdmr1_core.models.pipeline_files import COPY_AGAIN, absent_parts, is_hub_id, parts_of
from tdmr1_core.models.registry import ModelEntry
from tdmr1_rewards.builtin.optional import first_line

NO_LIMIT = 2**31
"""The limit of a tokenizer without a limit."""
DESCRIPTION = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
"""What Qwen-Image and Krea 2 put before a prompt."""
DESCRIPTION_TOKENS = 34
"""Tokens of DESCRIPTION, which are not limited and are dropped after encoding."""
SPECIAL_TOKENS = 8
"""At most this many tokens are added to a text."""


@dataclass(frozen=True)
class Reader:
    """A tokenizer of a model, and the number of tokens that its text encoder reads, with special tokens."""

    name: str
    tokenizer: Any
    limit: int
    template: str = "none"
    """What surrounds the prompt (`Reads.template`)."""

    def characters(self, text: str) -> int:
        """How many characters at the start of a prompt the encoder reads: 0 to len(text)."""
        whole, start = self._input(text)
        if len(whole.encode()) + SPECIAL_TOKENS <= self.limit:  # a token has at least one byte
            return len(text)
        if len(self.tokenizer(whole, verbose=False)["input_ids"]) <= self.limit:
            return len(text)
        arguments = {"truncation": True, "max_length": self.limit}
        if self.tokenizer.is_fast:
            offsets = self.tokenizer(whole, return_offsets_mapping=True, **arguments)["offset_mapping"]
            end = max((end for _, end in offsets), default=0)
        else:
            kept = self.tokenizer(whole, **arguments)["input_ids"]
            end = len(self.tokenizer.decode(kept, skip_special_tokens=True))
        return min(max(end - start, 0), len(text))

    def _input(self, text: str) -> tuple[str, int]:
        """What is tokenized for a prompt, and where the prompt starts in it."""
        if self.template == "none":
            return text, 0
        if self.template == "description":
            return DESCRIPTION + text, len(DESCRIPTION)
        whole = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self.template == "chat",
        )
        return whole, max(whole.find(text), 0)


def readers_of(family: Family, tokenizers: dict[str, Any], max_sequence_length: int) -> tuple[Reader, ...]:
    """The readers of a pipeline, from its tokenizers by part name."""
    found = []
    for part, tokenizer in tokenizers.items():
        reads = family.readers[part]
        limit = max_sequence_length - reads.reserved if reads.limit == "length" else _tokenizer_limit(tokenizer)
        if reads.template == "description":
            limit += DESCRIPTION_TOKENS
        found.append(Reader(reads.name, tokenizer, limit, reads.template))
    return tuple(found)


def _tokenizer_limit(tokenizer: Any) -> int:
    """The tokens that a tokenizer reads; transformers has a huge number for a tokenizer without limit."""
    return int(min(tokenizer.model_max_length, NO_LIMIT))


def load_readers(entry: ModelEntry) -> tuple[Reader, ...]:
    """The readers of a model whose base is a local directory, without its weights; none for a model on the hub.

    Raises Tdmr1Error for a tokenizer that cannot be loaded.
    """
    if is_hub_id(entry.base):
        return ()
    from transformers import AutoTokenizer

    family = FAMILIES[entry.family]
    absent = absent_parts(entry.base, family, with_t5=entry.with_t5)
    names = [name for name in parts_of(entry.base, absent) if name.startswith("tokenizer")]
    try:
        found = {name: AutoTokenizer.from_pretrained(Path(entry.base) / name) for name in names}
    except Exception as error:  # the library of tokenizers raises errors of any type
        reason = first_line(error)
        raise Tdmr1Error(
            f"transformers cannot load a tokenizer of {entry.base}: {reason}",
            COPY_AGAIN,
            code="model-incomplete",
            values={"source": entry.base, "reason": reason},
        ) from error
    return readers_of(family, found, entry.max_sequence_length)


def characters_read(readers: Sequence[Reader], text: str) -> int:
    """How many characters at the start of a prompt at least one encoder reads: 0 to len(text)."""
    return max((reader.characters(text) for reader in readers), default=len(text))
