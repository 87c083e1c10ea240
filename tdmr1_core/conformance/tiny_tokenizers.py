"""Tokenizers of the classes that the pipelines load, trained on a small built-in text.

The vocabularies are small, but every text can be encoded: the BPE tokenizers contain all 256 bytes, T5's has an unknown
token, as the published one has. The words of the system prompt of Qwen-Image and Krea 2 are one token each, so that
its length is that of the published tokenizer: 34 tokens, which both pipelines drop.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer, T5TokenizerFast

from tdmr1_rewards.texts.documents import parse_json

Pair = tuple[str, str]

TEMPLATE_TEXT = (
    "system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:\nuser\nassistant\n"
)
"""The words of the chat templates, without the special tokens."""
PROMPT_TEXT = (
    "A photo of a red circle and two green squares on a white table. Three small blue birds, one large yellow cat; "
    "a sign that says hello in a city at night. "
    "A watercolor painting of an old house near the sea, in soft morning light.\n"
)
REPEATS = 8
"""How often a word of the text counts in training: enough that every word becomes one token."""
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
MISTRAL_SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[IMG]")
QWEN_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
"""Qwen3's template for plain messages: an empty thought follows if thinking is off."""
MISTRAL_CHAT_TEMPLATE = "{% for message in messages %}{{ '[INST]' + message['content'] + '[/INST]' }}{% endfor %}"
CLIP_LENGTH = 77


@dataclass(frozen=True)
class ByteVocabulary:
    """A byte-level BPE vocabulary: the merges, and the number of each token."""

    merges: list[Pair]
    numbers: dict[str, int]


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer like that of Qwen2.5-VL, Qwen3 and Qwen3-VL, with Qwen3's chat template."""
    untrained = Qwen2Tokenizer(vocab={}, merges=[])
    learned = _train_bpe(untrained.backend_tokenizer)
    tokenizer = Qwen2Tokenizer(
        vocab=learned.numbers,
        merges=learned.merges,
        eos_token="<|im_end|>",
        model_max_length=131072,
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in QWEN_SPECIAL + QWEN_VISION])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    tokenizer.chat_template = QWEN_CHAT_TEMPLATE
    return tokenizer


def clip_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """A tokenizer like that of CLIP, at most 77 tokens. OpenCLIP's, the second one of SD3, pads with `!`."""
    special = ["<|startoftext|>", "<|endoftext|>"]
    learned = _train_bpe(CLIPTokenizer().backend_tokenizer, word_end="</w>", special_last=special)
    return CLIPTokenizer(
        vocab=learned.numbers, merges=learned.merges, pad_token=pad_token, model_max_length=CLIP_LENGTH
    )


def t5_tokenizer() -> T5TokenizerFast:
    """A unigram tokenizer like that of T5: whole words of the text by their frequency, and single ASCII characters."""
    words = Counter(f"▁{word}" for word in re.findall(r"\w+", TEMPLATE_TEXT + PROMPT_TEXT))
    total = words.total()
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    characters = "▁" + string.ascii_letters + string.digits + string.punctuation
    pieces = [(character, -2 * math.log(total)) for character in characters]
    pieces += [(word, math.log(count / total)) for word, count in words.items()]
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(100))]
    return T5TokenizerFast(vocab=[*special, *pieces, *sentinels], model_max_length=512)


def mistral_tokenizer(max_length: int = 4096) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer like that of Ministral 3: `<s>` before each text, a chat template with `[INST]`.

    ERNIE-Image's prompt enhancer generates `max_length` tokens.
    """
    learned = _train_bpe(_byte_level(), special_first=MISTRAL_SPECIAL)
    backend = _byte_level(models.BPE(vocab=learned.numbers, merges=learned.merges))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in MISTRAL_SPECIAL])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", learned.numbers["<s>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=max_length,
    )
    tokenizer.chat_template = MISTRAL_CHAT_TEMPLATE
    return tokenizer


def _byte_level(model: models.BPE | None = None) -> Tokenizer:
    tokenizer = Tokenizer(model or models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def _train_bpe(
    untrained: Tokenizer,
    word_end: str = "",
    special_first: Sequence[str] = (),
    special_last: Sequence[str] = (),
) -> ByteVocabulary:
    """Learn merges from the built-in text with the normalizer and pre-tokenizer of `untrained`.

    The vocabulary consists of the special tokens, all bytes (also with `word_end`, if any) and the merged tokens.
    """
    learner = Tokenizer(models.BPE())
    learner.normalizer, learner.pre_tokenizer = untrained.normalizer, untrained.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = [letter + word_end for letter in alphabet] if word_end else []
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=2,
        show_progress=False,
        special_tokens=ends,  # the trainer numbers them in the order of a hash map otherwise, which decides ties
        end_of_word_suffix=word_end,
    )
    learner.train_from_iterator([TEMPLATE_TEXT + PROMPT_TEXT] * REPEATS, trainer)
    merges = [tuple(pair) for pair in parse_json(learner.to_str())["model"]["merges"]]
    tokens = dict.fromkeys([*special_first, *alphabet, *ends, *map("".join, merges), *special_last])
    return ByteVocabulary(merges, {token: number for number, token in enumerate(tokens)})
