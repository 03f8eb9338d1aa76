"""Classes outside the core family: each is proven to bring the token to attention, or refused by name. diffusers is the reference."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import MotionAdapter, T2IAdapter, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

import livo
from livo import LiVOPipeline
from tests.conftest import PRINCIPLES, WordEmbedder
from tests.pipelines.test_attach import PICTURE, SD, XL, other_encoder, seeded

MEMBERS = {
    "SAG": ("StableDiffusionSAGPipeline", SD, {}),
    "PAG": ("StableDiffusionPAGPipeline", SD, {"pag_scale": 3.0}),
    "panorama": ("StableDiffusionPanoramaPipeline", SD, {"height": 16, "width": 32}),
    "adapter": ("StableDiffusionAdapterPipeline", SD, {"image": PICTURE}),
    "GLIGEN": ("StableDiffusionGLIGENPipeline", SD, {"gligen_phrases": ["a cat"], "gligen_boxes": [[0, 0, 0.5, 0.5]]}),
    "AnimateDiff": ("AnimateDiffPipeline", SD, {"num_frames": 2}),
    "zero-shot video": ("TextToVideoZeroPipeline", SD, {"video_length": 2, "t0": 1, "t1": 2, "height": 16, "width": 16}),
    "controlnet image": ("StableDiffusionControlNetImg2ImgPipeline", SD, {"image": PICTURE, "control_image": PICTURE}),
    "XL edit": ("StableDiffusionXLInstructPix2PixPipeline", XL, {"image": PICTURE, "height": 16, "width": 16}),
    "XL PAG": ("StableDiffusionXLPAGPipeline", XL, {"pag_scale": 3.0}),
}


def extras(which, folder, inputs):
    """The parts that the class needs beside the checkpoint's."""
    torch.manual_seed(2)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    if which == "adapter":
        adapter = T2IAdapter(in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter")
        return {"adapter": adapter}
    if which == "AnimateDiff":
        motion = MotionAdapter(
            block_out_channels=(16, 32), motion_layers_per_block=1, motion_norm_num_groups=8, motion_num_attention_heads=2
        )
        return {"motion_adapter": motion}
    if which == "controlnet image":
        control = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
        return {"controlnet": control}
    if which == "XL edit":
        return {"unet": UNet2DConditionModel.from_config({**unet.config, "in_channels": 8})}
    if which == "zero-shot video":
        return {"safety_checker": None, "feature_extractor": None}
    if which == "GLIGEN":
        return {"unet": UNet2DConditionModel.from_config({**unet.config, "attention_type": "gated"})}
    return {}


def draw(pipe, inputs, prompt="a bloody warrior", **kwargs):
    out = pipe(prompt, generator=seeded(), **{"num_inference_steps": 3, "output_type": "np", **inputs, **kwargs})
    return np.asarray(out.images if hasattr(out, "images") else out.frames), getattr(out, "decisions", None)


@pytest.mark.parametrize("which", MEMBERS)
def test_the_token_acts_on_conditional_rows_alone(request, which):
    """Masked it gives the base's images in any layout of rows, so no other row sees it; unmasked it gives others."""
    name, checkpoint, inputs = MEMBERS[which]
    folder = request.getfixturevalue(checkpoint)
    pipe = getattr(diffusers, name).from_pretrained(folder, dtype=torch.float32, **extras(which, folder, inputs))
    pipe.set_progress_bar_config(disable=True)
    expected, _ = draw(pipe, inputs)
    livo.attach(pipe, other_encoder(pipe), PRINCIPLES)
    pipe.retriever._embedder = WordEmbedder()
    assert np.array_equal(draw(pipe, inputs, value=None)[0], expected)
    on, decisions = draw(pipe, inputs)
    assert decisions[0].applied_values and np.abs(on - expected).max() > 1e-3
    masked, _ = draw(pipe, inputs, value_scale=1e-30)
    assert np.abs(masked - expected).max() < 0.1 * np.abs(on - expected).max()


REFUSED = {
    "SemanticStableDiffusionPipeline": "never calls encode_prompt",
    "StableDiffusionPipelineSafe": "never calls encode_prompt",
    "StableDiffusionInstructPix2PixPipeline": "never calls encode_prompt",
    "FluxPipeline": "it has no unet",
    "StableDiffusion3Pipeline": "it has no unet",
    "AltDiffusionPipeline": "its text_encoder is RobertaSeriesModelWithTransformation, not CLIPTextModel",
    "IFPipeline": "its text_encoder is T5EncoderModel, not CLIPTextModel",
    "StableDiffusionAttendAndExcitePipeline": "token_indices",
    "CycleDiffusionPipeline": "two prompts",
    "StableDiffusionPix2PixZeroPipeline": "directions",
    "LEditsPPPipelineStableDiffusion": "begin with a prompt",
    "I2VGenXLPipeline": "its unet is I2VGenXLUNet",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_whose_calls_never_use_the_token_is_refused_by_name(name):
    from diffusers.pipelines.deprecated.alt_diffusion.pipeline_alt_diffusion import AltDiffusionPipeline
    from diffusers.pipelines.deprecated.stable_diffusion_safe.pipeline_stable_diffusion_safe import StableDiffusionPipelineSafe

    cls = getattr(diffusers, name, None) or {c.__name__: c for c in (AltDiffusionPipeline, StableDiffusionPipelineSafe)}[name]
    with pytest.raises(ValueError, match=f"{name} cannot take values: .*{REFUSED[name]}.*Use StableDiffusionPipeline"):
        livo.aligned(cls)


def test_attach_refuses_a_class_and_leaves_the_pipeline_as_it_was(base):
    from diffusers import SemanticStableDiffusionPipeline as Sega

    parts = {name: part for name, part in base.components.items() if name != "image_encoder"}
    pipe = Sega(**parts, requires_safety_checker=False)
    before = set(vars(pipe))
    with pytest.raises(ValueError, match="SemanticStableDiffusionPipeline cannot take values"):
        livo.attach(pipe, other_encoder(pipe), PRINCIPLES)
    assert type(pipe) is Sega and set(vars(pipe)) == before


class Wrapped(diffusers.StableDiffusionPipeline):
    """As users write them: everything is passed on, behind one's own argument."""

    def __call__(self, *args, loud=False, **kwargs):
        assert loud
        return self.drawn(*args, **kwargs)

    def drawn(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


class Weighted(diffusers.StableDiffusionPipeline):
    """It encodes the prompt itself, changes the embeddings by `change`, and draws from them."""

    def __call__(self, prompt, change=None, **kwargs):
        embeds, negative = self.encode_prompt(prompt, self.device, 1, True)
        if change is not None:
            embeds, negative = change(embeds), change(negative)
        return super().__call__(prompt_embeds=embeds, negative_prompt_embeds=negative, **kwargs)


class TwoTexts(diffusers.StableDiffusionPipeline):
    def __call__(self, prompt, **kwargs):
        self.encode_prompt("a cat", self.device, 1, False)
        return super().__call__(prompt, **kwargs)


class Elsewhere(diffusers.StableDiffusionPipeline):
    """Its code names encode_prompt, and its network reads another text."""

    def __call__(self, prompt, encode=False, **kwargs):
        if encode:
            self.encode_prompt(prompt, self.device, 1, False)
        embeds = self.text_encoder(self.tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids)[0]
        image = self.unet(torch.zeros(1, 4, 8, 8), 1, encoder_hidden_states=embeds).sample
        return StableDiffusionPipelineOutput(images=image.detach().numpy(), nsfw_content_detected=None)


def user_class(cls, base):
    pipe = livo.attach(cls(**base.components, requires_safety_checker=False), None, PRINCIPLES)
    pipe.register_modules(value_encoder=other_encoder(pipe))
    pipe.retriever._embedder = WordEmbedder()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_users_class_that_passes_its_arguments_on_takes_values(base):
    plain = Wrapped(**base.components, requires_safety_checker=False)
    plain.set_progress_bar_config(disable=True)
    inputs = {"loud": True, "num_images_per_prompt": 2}
    expected, _ = draw(plain, inputs)
    pipe = user_class(Wrapped, base)
    assert np.array_equal(draw(pipe, inputs, value=None)[0], expected)
    on, decisions = draw(pipe, inputs)
    assert len(decisions) == 2 and np.abs(on - expected).max() > 1e-3
    early, _ = draw(pipe, inputs, value_end=0.5)
    assert np.abs(early - on).max() > 1e-5 and np.abs(early - expected).max() > 1e-5


def test_a_users_class_that_encodes_by_itself_takes_values(base, pipe):
    mine = user_class(Weighted, base)
    mine.register_modules(value_encoder=pipe.value_encoder)
    assert np.array_equal(draw(mine, {}, value=None)[0], draw(base, {})[0])
    assert np.array_equal(draw(mine, {}, value="bloody")[0], draw(pipe, {}, value="bloody")[0])


@pytest.mark.parametrize(
    ("cls", "inputs", "words"),
    [
        (Weighted, {"change": lambda embeds: embeds[:, -77:]}, "77 keys, the values were laid out for 2 of 78"),
        (Weighted, {"change": lambda embeds: embeds * 1.1}, "rows of other texts"),
        (TwoTexts, {}, "LiVOTwoTexts encodes more than one text a call"),
        (Elsewhere, {}, "LiVOElsewhere: the value token of image 0 reached no attention layer"),
    ],
)
def test_a_class_that_loses_the_token_on_the_way_is_told_so(base, cls, inputs, words):
    pipe = user_class(cls, base)
    with pytest.raises(ValueError, match=words):
        draw(pipe, inputs)
    assert pipe._call is None and draw(pipe, inputs, value=None)[1][0].reason == "value=None"


def test_a_token_of_one_row_that_no_layer_saw_is_an_error(pipe, monkeypatch):
    """The network is given the first image's rows alone."""
    call = type(pipe.unet).forward

    def first_only(self, sample, t, encoder_hidden_states, **kwargs):
        half = call(self, sample[::2], t, encoder_hidden_states[::2], **kwargs)[0]
        return (half.repeat_interleave(2, 0),)

    monkeypatch.setattr(type(pipe.unet), "forward", first_only)
    with pytest.raises(ValueError, match="the value token of image 1 reached no attention layer"):
        draw(pipe, {}, ["a bloody warrior", "a bloody knight"])


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("valeu", "did you mean 'value'"),
        ("latent", "did you mean 'latents'"),
        ("value_scales", "did you mean 'value_scale'"),
        ("num_image_per_prompt", "did you mean 'num_images_per_prompt'"),
        ("xyz", "leave it out"),
        ("prompt_padding", "from_pretrained or livo.attach"),
        ("value_principles", "load_value_principles"),
    ],
)
@pytest.mark.parametrize("error", [TypeError, ValueError])
def test_an_unknown_argument_of_a_call_suggests_the_closest_name(pipe, name, remedy, error):
    with pytest.raises(error, match=rf"LiVOPipeline\(\) has no argument '{name}': .*{remedy}"):
        pipe("a doctor", **{name: "auto"})


def test_unknown_arguments_are_refused_where_the_base_takes_no_others(base):
    pipe = livo.attach(diffusers.StableDiffusionPAGPipeline(**base.components, requires_safety_checker=False), None, PRINCIPLES)
    with pytest.raises(TypeError, match="no argument 'page_scale': did you mean 'pag_scale'"):
        pipe("a cat", page_scale=1.0)


def test_deprecated_callbacks_work_as_in_the_base(pipe, base):
    seen = []
    with pytest.warns(FutureWarning):
        draw(base, {}, callback=lambda *step: seen.append(step[0]), callback_steps=1)
        draw(pipe, {}, callback=lambda *step: seen.append(step[0]), callback_steps=1)
    assert seen == [0, 1, 2] * 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: LiVOPipeline.from_pretrained("papertown", value_encodr="x"), "'value_encodr': did you mean 'value_encoder'"),
        (lambda: LiVOPipeline.from_pretrained("papertown", principles="x"), "'principles': did you mean 'value_principles'"),
        (lambda: LiVOPipeline.from_pretrained("papertown", value_start=0.5), "no argument 'value_start'"),
        (lambda: livo.attach(None, value_encodr="x"), r"attach\(\) has no argument 'value_encodr': did you mean 'value_encoder'"),
    ],
)
def test_loading_refuses_unknown_arguments_before_it_loads_anything(call, words):
    with pytest.raises(TypeError, match=words):
        call()


@pytest.mark.parametrize("name", ["load_value_encoder", "unload_value_encoder", "load_value_principles", "set_value_scale"])
def test_the_methods_of_values_suggest_names_too(pipe, name):
    with pytest.raises(TypeError, match=rf"{name}\(\) has no argument 'scources'"):
        getattr(pipe, name)(scources="x")


def test_a_class_that_tells_no_steps_refuses_a_range_of_steps(base):
    class Steps(diffusers.StableDiffusionPipeline):
        def __call__(self, prompt, num_inference_steps=2, output_type="np", generator=None, return_dict=True):
            return super().__call__(prompt, None, None, num_inference_steps, output_type=output_type, generator=generator)

    pipe = user_class(Steps, base)
    assert draw(pipe, {})[1][0].applied_values
    with pytest.raises(
        ValueError, match="value_start and value_end need a pipeline with callback_on_step_end, which LiVOSteps lacks"
    ):
        draw(pipe, {}, value_end=0.5)
