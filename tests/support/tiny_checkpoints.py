"""Untrained detector and CLIP checkpoints of transformers, as small as possible, one per architecture."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from tdmr1_core.tiny import world

TOKENIZER = Path(world.__file__).parent / "pipeline" / "tokenizer"
LABELS = dict(enumerate(world.SHAPES))
SWIN = {"image_size": 32, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2}


def save(folder: Path, model: transformers.PreTrainedModel, *others: object) -> Path:
    """Save a model and its processor or tokenizer."""
    for part in (model, *others):
        part.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def yolos(folder: Path) -> Path:
    """A closed-set detector that returns boxes."""
    torch.manual_seed(0)
    config = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 32],
        patch_size=8, num_detection_tokens=5, use_mid_position_embeddings=False, id2label=LABELS,
    )  # fmt: skip
    processor = transformers.YolosImageProcessorPil(size={"height": 32, "width": 32}, do_pad=False)
    return save(folder, transformers.YolosForObjectDetection(config), processor)


def rt_detr_v2(folder: Path) -> Path:
    """The architecture of `object_count`'s default checkpoint."""
    torch.manual_seed(0)
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.RTDetrV2Config(
        backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[32, 48, 64], encoder_layers=1,
        encoder_ffn_dim=32, encoder_attention_heads=4, d_model=32, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=32,
        decoder_layers=2, decoder_attention_heads=4, num_queries=12, hidden_expansion=0.5, id2label=LABELS,
    )  # fmt: skip
    processor = transformers.RTDetrImageProcessorPil(size={"height": 64, "width": 64})
    return save(folder, transformers.RTDetrV2ForObjectDetection(config), processor)


def mask2former(folder: Path) -> Path:
    """A closed-set detector that returns masks."""
    torch.manual_seed(0)
    backbone = transformers.SwinConfig(**SWIN, out_features=["stage1", "stage2", "stage3", "stage4"])
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=6, id2label=LABELS,
    )  # fmt: skip
    processor = transformers.Mask2FormerImageProcessorPil(size={"height": 64, "width": 64})
    return save(folder, transformers.Mask2FormerForUniversalSegmentation(config), processor)


def owlv2(folder: Path) -> Path:
    """A zero-shot detector with a CLIP tokenizer."""
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.model_max_length = 16
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    config = transformers.Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    image_processor = transformers.Owlv2ImageProcessorPil(size={"height": 32, "width": 32})
    processor = transformers.Owlv2Processor(image_processor=image_processor, tokenizer=tokenizer)
    return save(folder, transformers.Owlv2ForObjectDetection(config), processor)


def grounding_dino(folder: Path) -> Path:
    """A zero-shot detector with a BERT tokenizer."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "a", "photo", "of", *world.SHAPES]
    tokenizer = transformers.BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    text = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    backbone = transformers.SwinConfig(**SWIN, out_features=["stage2", "stage3", "stage4"])
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone, text_config=text, d_model=32, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=6,
        num_feature_levels=4, positional_embedding_temperature=20, max_text_len=16,
    )  # fmt: skip
    image_processor = transformers.GroundingDinoImageProcessorPil(size={"height": 128, "width": 128})
    processor = transformers.GroundingDinoProcessor(image_processor=image_processor, tokenizer=tokenizer)
    return save(folder, transformers.GroundingDinoForObjectDetection(config), processor)


def clip(folder: Path) -> Path:
    """A CLIP model, which is not a detector."""
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    common = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.CLIPConfig(
        text_config={**common, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id},
        vision_config={**common, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return save(folder, transformers.CLIPModel(config), processor, tokenizer)
