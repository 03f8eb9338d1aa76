"""Images that are not finite are an error where values were applied, and a warning where they are the base's."""

import logging

import numpy as np
import pytest
import torch

from livo.pipelines import stable_diffusion
from livo.pipelines.stable_diffusion import load_pipeline
from tests.utils.test_weights import draw


def spoil(module, value=torch.nan):
    with torch.no_grad():
        list(module.parameters())[-1].view(-1)[0] = value


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("which", ["unet", "value_encoder"])
def test_an_image_that_is_not_finite_is_an_error_that_names_the_weight(pipe, which, output_type):
    spoil(getattr(pipe, which))
    key = [name for name, _ in getattr(pipe, which).named_parameters()][-1]
    with pytest.raises(
        ValueError, match=f"(image 0|the value token) is not finite .*: the pipeline's {which}: {key} is not finite"
    ):
        draw(pipe, value="bloody", output_type=output_type)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_with_no_value_it_is_the_base_images_and_a_warning(pipe, base, caplog):
    for each in (pipe, base):
        spoil(each.vae.decoder)
    for output_type in ("np", "pil"):
        with caplog.at_level(logging.WARNING):
            ours = draw(pipe, value=None, output_type=output_type)
        theirs = draw(base, output_type=output_type)
        assert np.array_equal(np.asarray(ours[0]), np.asarray(theirs[0]), equal_nan=output_type == "np")
        assert "image 0 is not finite (NaN or infinity): the pipeline's vae: " in caplog.text
        caplog.clear()


def test_overflow_in_half_precision_names_the_precision_and_the_remedy(pipe):
    """Weights that float16 holds, and activations that it does not."""
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(3e4)
        pipe.unet.conv_in.bias.fill_(6e4)
    pipe.to(dtype=torch.float16)
    with pytest.raises(ValueError, match=r"float16 overflowed in one of .*unet.*dtype=torch\.bfloat16 or torch\.float32"):
        draw(pipe, value="bloody", prompt=["a bloody warrior"] * 2)


def test_an_overflow_of_the_value_encoder_alone_is_told_from_the_rest(pipe):
    with torch.no_grad():
        pipe.value_encoder.final_layer_norm.weight.fill_(6e4)
        pipe.value_encoder.final_layer_norm.bias.fill_(6e4)
    pipe.to(dtype=torch.float16)
    with pytest.raises(ValueError, match=r"float16 overflowed in value_encoder: load the pipeline with"):
        draw(pipe, value="bloody")


def test_one_broken_image_of_many_is_seen_and_nan_that_was_given_is_named(pipe):
    latents = torch.randn(3, 4, 8, 8)
    latents[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"image 1 is not finite .*look for NaN in what the call was given"):
        draw(pipe, value="bloody", latents=latents, num_images_per_prompt=3)
    latents[2] = torch.inf
    with pytest.raises(ValueError, match="2 images are not finite"):
        draw(pipe, value="bloody", latents=latents, num_images_per_prompt=3)


def test_sdxl_latents_and_images_are_watched_too(tiny_xl_checkpoint):
    import livo

    pipe = livo.LiVOXLPipeline.from_pretrained(tiny_xl_checkpoint)
    torch.manual_seed(0)
    pipe.load_value_encoder(livo.ValueEncoder.from_text_encoder(pipe.text_encoder, 64))
    spoil(pipe.unet)
    for output_type in ("latent", "pil"):
        with pytest.raises(ValueError, match="image 0 is not finite"):
            draw(pipe, value="bloody considered inappropriate", output_type=output_type)


def test_commands_refuse_a_model_with_broken_weights_before_anything_is_drawn(pipe, tmp_path):
    spoil(pipe.vae, torch.inf)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}/vae: .* is not finite"):
        load_pipeline(str(tmp_path))
    assert stable_diffusion.LiVOPipeline.from_pretrained(tmp_path)  # which draws the base's images
