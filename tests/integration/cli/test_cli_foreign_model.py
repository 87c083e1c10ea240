"""A model that is not the embedded one: of the SD3.5 kind, with its own latents, encoders and size."""

import json

import pytest
import torch
from command_line import REPOSITORY
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

pytestmark = pytest.mark.integration

WIDTHS = (24, 40)
SETTINGS = ("batch.groups=2", "batch.group_size=2", "model.rank=4", "model.alpha=8", "timesteps.per_iteration=2")
SETS = [part for setting in (*SETTINGS, "saving.samples_every=0") for part in ("--set", setting)]
DATA = REPOSITORY / "tdmr1_core" / "tiny" / "pipeline"


def text_encoder(width: int, tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Sixteen latent channels, four levels of the autoencoder, dual attention in the first block, 64 pixels."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(DATA / "tokenizer")
    folder = tmp_path_factory.mktemp("foreign") / "sd35-like"
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=sum(WIDTHS),
            caption_projection_dim=16,
            pooled_projection_dim=sum(WIDTHS),
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8,) * 4,
            latent_channels=16,
            norm_num_groups=4,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=1.5,
            shift_factor=0.06,
        ),
        text_encoder=text_encoder(WIDTHS[0], tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder(WIDTHS[1], tokenizer),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("two red circles\nthree green squares\n")
    return file


@pytest.fixture(scope="module")
def distilled(directory, prompts, tdmr1, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distilled") / "run"
    tdmr1("distill", "--model", directory, "--prompts", prompts, "--iterations", 2, "--output", folder, *SETS)
    return folder / "export"


def test_distillation_makes_a_lora_that_diffusers_takes(directory, distilled):
    weights = load_file(distilled / "pytorch_lora_weights.safetensors")
    assert not any(".attn2." in name for name in weights)
    assert max(weight.abs().max().item() for name, weight in weights.items() if ".lora_B." in name) > 0
    pipeline = StableDiffusion3Pipeline.from_pretrained(directory, text_encoder_3=None, tokenizer_3=None)
    draw = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt", "max_sequence_length": 0}
    before, after = (_draw(pipeline, lora, draw) for lora in (None, distilled))
    assert before.shape[-2:] == (64, 64)
    assert not torch.equal(before, after)


def _draw(pipeline, lora, options):
    if lora is not None:
        pipeline.load_lora_weights(str(lora))
    return pipeline("two red circles", generator=torch.Generator().manual_seed(0), **options).images


def test_its_few_step_model_is_trained_evaluated_and_exported(directory, distilled, prompts, tdmr1, tmp_path):
    run = tmp_path / "run"
    lora = distilled / "pytorch_lora_weights.safetensors"
    arguments = ["--lora", lora, "--reward", "object_count", "--prompts", prompts, "--iterations", 1, "--output", run]
    tdmr1("train", "--model", directory, *arguments, *SETS, "--set", "evaluation.images=4")
    (metrics,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics["step"] == 1
    document = json.loads(tdmr1("export", run, "--json").stdout)
    assert "attn2" not in " ".join(load_file(run / "export" / "pytorch_lora_weights.safetensors"))
    assert document
