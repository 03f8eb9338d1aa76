"""Values in every pipeline of the family; the diffusers pipeline of the same class is the reference throughout."""

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTokenizer

import livo
from livo import LiVOPipeline, LiVOXLPipeline, ValueEncoder
from tests.conftest import PRINCIPLES, WordEmbedder

WARRIOR, CAT = "a bloody warrior", "a cat"
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
MASK = Image.fromarray(np.repeat([[0], [255]], 8, axis=0).repeat(16, axis=1).astype(np.uint8))
SD, XL = "tiny_checkpoint", "tiny_xl_checkpoint"

FAMILY = {
    "text": (StableDiffusionPipeline, SD, {}),
    "sd 2": (StableDiffusionPipeline, SD, {}),
    "image": (StableDiffusionImg2ImgPipeline, SD, {"image": PICTURE, "strength": 0.8}),
    "inpaint": (StableDiffusionInpaintPipeline, SD, {"image": PICTURE, "mask_image": MASK, "height": 16, "width": 16}),
    "controlnet": (StableDiffusionControlNetPipeline, SD, {"image": PICTURE}),
    "lcm": (LatentConsistencyModelPipeline, SD, {"original_inference_steps": 50}),
    "xl text": (StableDiffusionXLPipeline, XL, {}),
    "xl image": (StableDiffusionXLImg2ImgPipeline, XL, {"image": PICTURE, "strength": 0.8}),
    "xl inpaint": (StableDiffusionXLInpaintPipeline, XL, {"image": PICTURE, "mask_image": MASK, "height": 16, "width": 16}),
    "xl controlnet": (StableDiffusionXLControlNetPipeline, XL, {"image": PICTURE}),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(pipe, inputs, prompt=WARRIOR, generator=None, **kwargs):
    options = {"num_inference_steps": 3, "output_type": "np", **inputs, **kwargs}
    return pipe(prompt, generator=generator or seeded(), **options)


def other_encoder(pipe, tokens=1):
    """An encoder for the pipeline whose weights differ from its text encoder's."""
    torch.manual_seed(1)
    encoder = ValueEncoder.from_text_encoder(pipe.text_encoder, pipe.unet.config.cross_attention_dim, tokens)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder.eval()


def built(request, which):
    """A pipeline of the family, and the arguments that it needs."""
    cls, checkpoint, inputs = FAMILY[which]
    folder, extra = request.getfixturevalue(checkpoint), {}
    if "controlnet" in which:
        torch.manual_seed(2)
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        extra["controlnet"] = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
        for parameter in extra["controlnet"].controlnet_mid_block.parameters():  # zero at first, which would do nothing
            torch.nn.init.normal_(parameter)
    if which == "sd 2":  # pads with "!", predicts v, and projects by linear layers
        extra["tokenizer"] = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", pad_token="!")
        extra["scheduler"] = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", prediction_type="v_prediction")
        torch.manual_seed(2)
        config = UNet2DConditionModel.load_config(folder, subfolder="unet")
        extra["unet"] = UNet2DConditionModel.from_config({**config, "use_linear_projection": True, "attention_head_dim": [2, 4]})
    if which == "lcm":
        plain = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        torch.manual_seed(2)
        extra["unet"] = UNet2DConditionModel.from_config(plain.config, time_cond_proj_dim=8)  # LCM tells its UNet the guidance
        extra["unet"].load_state_dict(plain.state_dict(), strict=False)
        extra["scheduler"] = LCMScheduler.from_pretrained(folder, subfolder="scheduler")
    pipe = cls.from_pretrained(folder, dtype=torch.float32, **extra)
    pipe.set_progress_bar_config(disable=True)
    return pipe, inputs


@pytest.fixture(params=FAMILY)
def member(request):
    return built(request, request.param)


def attached(pipe, **kwargs):
    livo.attach(pipe, other_encoder(pipe), PRINCIPLES, **kwargs)
    pipe.retriever._embedder = WordEmbedder()
    return pipe


def test_every_member_of_the_family_takes_values_and_goes_back(member):
    """Base, attached, detached, twice: with no value and after detaching bit for bit the base; with one, another picture."""
    pipe, inputs = member
    cls, expected = type(pipe), draw(pipe, inputs).images
    before = set(vars(pipe)), dict(pipe.config), set(pipe.components)
    for _ in range(2):
        attached(pipe)
        assert isinstance(pipe, cls) and type(pipe) is livo.aligned(cls) and "value_encoder" in pipe.components
        assert np.array_equal(draw(pipe, inputs, value=None).images, expected)
        assert np.array_equal(draw(pipe, inputs, value="bloody", value_scale=0).images, expected)
        out = draw(pipe, inputs)
        assert [value.id for value in out.decisions[0].applied_values] == ["bloody"]
        assert np.abs(out.images - expected).max() > 1e-3
        assert draw(pipe, inputs, CAT).decisions[0].values == ()
        assert livo.detach(pipe) is pipe and type(pipe) is cls
        assert (set(vars(pipe)), dict(pipe.config), set(pipe.components)) == before
        assert not any(m._forward_pre_hooks for c in pipe.components.values() if hasattr(c, "modules") for m in c.modules())
        assert np.array_equal(draw(pipe, inputs).images, expected)


def test_the_rows_of_a_mixed_batch_equal_their_single_runs_in_every_member(member):
    pipe, inputs = member
    attached(pipe)
    prompts, values, scales = [WARRIOR, WARRIOR, CAT], ["bloody", "kindness", None], [1.0, 0.4, 1.0]
    settings = list(zip(prompts, values, scales, strict=True))
    single = [draw(pipe, inputs, p, seeded(i), value=v, value_scale=s) for i, (p, v, s) in enumerate(settings)]
    batch = {key: [item] * 3 if isinstance(item, Image.Image) else item for key, item in inputs.items()}
    mixed = draw(pipe, batch, prompts, [seeded(i) for i in range(3)], value=values, value_scale=scales)
    for i in range(3):
        assert np.abs(mixed.images[i] - single[i].images[0]).max() < 2e-4
    assert np.abs(mixed.images[0] - mixed.images[1]).max() > 1e-3


def test_sdxl_loaded_as_stable_diffusion_is_told_which_class_it_needs(tiny_xl_checkpoint):
    with pytest.raises(ValueError, match=r"is a Stable Diffusion XL.*load it with livo\.LiVOXLPipeline"):
        LiVOPipeline.from_pretrained(tiny_xl_checkpoint)


@pytest.mark.parametrize("which", ["text", "lcm", "xl text"])
def test_the_effect_grows_with_the_scale_in_every_family(request, which):
    pipe, inputs = built(request, which)
    base = draw(pipe, inputs, num_inference_steps=1, output_type="latent").images
    attached(pipe)
    effects = []
    for scale in (0, 0.25, 0.5, 1, 2, 4):
        latents = draw(pipe, inputs, value="bloody", value_scale=scale, num_inference_steps=1, output_type="latent").images
        effects.append((latents - base).norm().item())
    assert effects == sorted(effects) and effects[0] == 0 and effects[1] > 0


def test_the_classes_are_the_adapter_with_a_class_around_it():
    assert livo.aligned(StableDiffusionPipeline) is LiVOPipeline and livo.aligned(StableDiffusionXLPipeline) is LiVOXLPipeline
    image = livo.aligned(StableDiffusionImg2ImgPipeline)
    assert livo.aligned(image) is image is livo.aligned(StableDiffusionImg2ImgPipeline)


def test_an_xl_token_has_the_width_of_both_encoders_and_pooled_embeddings_stay(tiny_xl_checkpoint):
    pipe = attached(StableDiffusionXLPipeline.from_pretrained(tiny_xl_checkpoint, dtype=torch.float32))
    pipe.set_progress_bar_config(disable=True)
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
    for value in (None, "bloody"):
        draw(pipe, {}, value=value, num_inference_steps=1)
    hook.remove()
    assert [k["encoder_hidden_states"].shape for k in seen] == [(2, 77, 64), (2, 78, 64)]
    pooled = [k["added_cond_kwargs"]["text_embeds"] for k in seen]
    assert torch.equal(*pooled) and torch.equal(seen[0]["encoder_hidden_states"], seen[1]["encoder_hidden_states"][:, 1:])


def test_a_saved_xl_pipeline_comes_back_with_its_projection(tiny_xl_checkpoint, tmp_path):
    pipe = attached(StableDiffusionXLPipeline.from_pretrained(tiny_xl_checkpoint, dtype=torch.float32), value_scale=0.7)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    again = LiVOXLPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    again.retriever._embedder = WordEmbedder()
    assert again.value_scale == 0.7 and again.principles == PRINCIPLES
    assert np.array_equal(draw(again, {}).images, draw(pipe, {}).images)
    single = ValueEncoder.load(tmp_path / "value_encoder" / "model.safetensors", again.text_encoder, 64)
    assert torch.equal(single.value_projection.weight, again.value_encoder.value_projection.weight)


def test_an_encoder_may_write_several_tokens(base, tmp_path):
    livo.attach(base, other_encoder(base, tokens=3), PRINCIPLES)
    lengths = []
    hook = base.unet.register_forward_pre_hook(
        lambda m, a, k: lengths.append(k["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    before = draw(base, {}, value="bloody").images
    hook.remove()
    assert set(lengths) == {80}
    base.save_pretrained(tmp_path)
    again = LiVOPipeline.from_pretrained(tmp_path, value_principles=PRINCIPLES)
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(again, {}, value="bloody").images, before)


def test_what_cannot_be_attached_is_named_and_left_as_it_was(base, tiny_xl_checkpoint, tmp_path):
    cls, config, keys = type(base), dict(base.config), vars(base).keys()
    wide = ValueEncoder.from_text_encoder(base.text_encoder, width=48)
    for wrong, words in ((wide, "value_width is 48.*load the encoder"), (tmp_path / "absent.safetensors", "no such file")):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            livo.attach(base, wrong, PRINCIPLES)
        assert type(base) is cls and dict(base.config) == config and vars(base).keys() == keys
        assert not any(m._forward_pre_hooks for m in base.unet.modules())
    with pytest.raises(ValueError, match="no values to take out"):
        livo.detach(base)
    attached(base)
    with pytest.raises(ValueError, match="has values already"):
        livo.attach(base)
    xl = StableDiffusionXLPipeline.from_pretrained(tiny_xl_checkpoint)
    with pytest.raises(ValueError, match="hidden_size is 32"):  # a plain encoder, where 64 are needed
        livo.attach(xl, ValueEncoder.from_text_encoder(xl.text_encoder), PRINCIPLES)
    with pytest.raises(ValueError, match="'max_length' alone"):
        livo.attach(xl, other_encoder(xl), PRINCIPLES, prompt_padding="do_not_pad")
    xl.text_encoder = None
    with pytest.raises(ValueError, match="no text_encoder"):
        livo.attach(xl)


@pytest.mark.parametrize("name", ["value", "value_scale", "value_start", "value_end", "ledger"])
def test_a_detached_pipeline_refuses_arguments_for_values(base, tiny_checkpoint, name):
    untouched = type(base).from_pretrained(tiny_checkpoint, dtype=torch.float32)
    untouched.set_progress_bar_config(disable=True)
    livo.detach(livo.attach(base, value_principles=PRINCIPLES))
    with pytest.raises(TypeError, match=f"StableDiffusionPipeline.. has no argument '{name}'.*livo.attach"):
        base("a doctor", **{name: None})
    livo.detach(livo.attach(base, value_principles=PRINCIPLES))
    draw = {"num_inference_steps": 2, "output_type": "np"}
    images = [pipe("a doctor", generator=torch.Generator().manual_seed(0), **draw).images for pipe in (base, untouched)]
    assert (images[0] == images[1]).all()
    livo.attach(base, value_principles=PRINCIPLES)("a doctor", value=None, **draw)
