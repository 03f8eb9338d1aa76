"""What a record holds of a call, in every format, and that it is enough to draw the image again."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EulerAncestralDiscreteScheduler
from PIL import ExifTags, Image

import livo
from livo import LiVOPipeline, ValueEncoder, ValuePrinciple
from livo.baselines import NegativePrompt, SafeLatentDiffusion, WeightEdit
from livo.pipelines.decision_record import read_record, save_images
from livo.pipelines.redraw import redraw
from livo.pipelines.settings import model_record
from livo.utils.hashing import weights_hash
from livo.utils.versions import versions

WARRIOR, DOCTOR, CAT = "a bloody warrior", "a photo of a doctor", "a cat"
FAST = {"num_inference_steps": 2}


def pixels(image):
    return np.asarray(image)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def saved(pipe, tmp_path):
    """The pipeline as a folder of its own."""
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_settings_of_a_call_are_recorded(pipe, saved):
    pipe = LiVOPipeline.from_pretrained(saved)
    out = pipe(
        [WARRIOR, CAT],
        negative_prompt=["a dog", "a house"],
        guidance_scale=3.0,
        guidance_rescale=0.2,
        clip_skip=1,
        eta=0.5,
        width=24,
        height=16,
        generator=[seeded(3), seeded(4)],
        value_scale=0.7,
        **FAST,
    )
    first, second = out.decisions
    call = {
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "guidance_rescale": 0.2,
        "clip_skip": 1,
        "eta": 0.5,
        "width": 24,
        "height": 16,
    }
    assert first.settings["call"] == call | {"negative_prompt": "a dog"}
    assert second.settings["call"]["negative_prompt"] == "a house" and second.settings["size"] == [24, 16]
    assert first.settings["model"] == {
        "name": "model",
        "weights": {name: weights_hash(getattr(pipe, name)) for name in ("vae", "text_encoder", "unet")},
    }
    assert first.settings["scheduler"]["class"] == "DDIMScheduler" and first.settings["scheduler"]["beta_start"] == 0.00085
    assert first.settings["precision"] == {"device": "cpu", "weights": "float32", "autocast": None}
    assert first.settings["versions"] == versions(["livo", "torch", "diffusers", "transformers"])
    assert (second.seed, second.image, first.settings["generator"]["state"]) == (4, 0, None)
    json.dumps(first.to_dict(), allow_nan=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert pipe(CAT, **FAST).decisions[0].settings["precision"]["autocast"] == "bfloat16"


def test_without_a_generator_the_global_one_is_recorded_and_used_as_in_the_base(pipe, base):
    torch.manual_seed(5)
    ours = [pipe(WARRIOR, value=None, **FAST) for _ in range(2)]
    torch.manual_seed(5)
    for out in ours:
        assert np.array_equal(pixels(out.images[0]), pixels(base(WARRIOR, **FAST).images[0]))
    assert [out.decisions[0].seed for out in ours] == [5, 5]
    assert ours[0].decisions[0].settings["generator"]["state"] is None  # the seed is enough
    again = pipe(WARRIOR, value=None, generator=seeded(5), **FAST)
    assert np.array_equal(pixels(again.images[0]), pixels(ours[0].images[0]))
    assert np.array_equal(pixels(redraw(ours[1].decisions[0].to_dict(), pipe)), pixels(ours[1].images[0]))


@pytest.mark.parametrize("format", ["png", "webp"])
@pytest.mark.parametrize(
    "call",
    [
        {"prompt": WARRIOR, "value_scale": 0.6, "value_end": 0.5, "generator": 3},
        {"prompt": [DOCTOR, WARRIOR], "num_images_per_prompt": 2, "generator": 8},
        {"prompt": WARRIOR, "value": ("bloody", "gender_equality"), "value_scale": {"bloody": 0.5, "gender_equality": 0.9}},
        {"prompt": CAT, "negative_prompt": "a dog", "guidance_scale": 4.0, "guidance_rescale": 0.1, "height": 24, "eta": 1.0},
    ],
)
def test_an_image_is_drawn_again_from_its_file_alone(saved, tmp_path, call, format):
    pipe = LiVOPipeline.from_pretrained(saved)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config) if format == "webp" else pipe.scheduler
    torch.randn(7)  # where no generator is given, the global one is in any state
    call = call | ({"generator": seeded(call["generator"])} if "generator" in call else {})
    out = pipe(**call, **FAST)
    file = save_images(out, tmp_path / "out", format)[-1]
    fresh = LiVOPipeline.from_pretrained(saved)
    assert np.array_equal(pixels(redraw(file, fresh)), pixels(Image.open(file).convert("RGB")))


def test_a_generator_that_was_used_before_is_recorded_with_its_state(pipe):
    generator = seeded(2)
    pipe(CAT, generator=generator, **FAST)
    out = pipe(WARRIOR, generator=generator, **FAST)
    record = json.loads(json.dumps(out.decisions[0].to_dict()))
    assert record["seed"] == 2 and record["settings"]["generator"]["state"]
    assert np.array_equal(pixels(redraw(record, pipe)), pixels(out.images[0]))


def test_values_of_several_encoders_are_drawn_again(pipe):
    other = ValueEncoder.from_text_encoder(pipe.text_encoder)
    pipe.load_value_encoder(other, name="mine")
    pipe.set_value_scale(0.5, encoder="mine")
    mine = ValuePrinciple("mood", "a mood", apply_rate=1.0, encoder="mine")
    out = pipe(WARRIOR, value=(mine, "bloody"), value_scale={"mood": 0.8, "bloody": 0.6}, generator=seeded(4), **FAST)
    assert {(v.id, v.encoder, v.scale) for v in out.decisions[0].values} == {
        ("mood", weights_hash(other), 0.4),
        ("bloody", weights_hash(pipe.value_encoder), 0.6),
    }
    record = out.decisions[0].to_dict()
    assert np.array_equal(pixels(redraw(record, pipe)), pixels(out.images[0]))
    pipe.set_value_scale(0.0, encoder="mine")
    with pytest.raises(ValueError, match="differs from the record in value encoder"):
        redraw(record, pipe)


def test_papertown_is_drawn_again_by_its_name(papertown, tmp_path):
    out = papertown("a bloody warrior", generator=seeded(1), **FAST)
    assert out.decisions[0].applied_values and out.decisions[0].settings["model"]["name"] == "papertown"
    assert np.array_equal(pixels(redraw(save_images(out, tmp_path)[0])), pixels(out.images[0]))


def test_what_differs_from_the_record_is_named(pipe, saved):
    record = pipe(WARRIOR, generator=seeded(0), **FAST).decisions[0].to_dict()
    next(pipe.value_encoder.parameters()).data.add_(0.01)
    with pytest.raises(ValueError, match=f"differs from the record in value encoder: .*{record['values'][0]['encoder']}"):
        redraw(record, pipe)
    pipe.unet.conv_in.weight.data.add_(0.01)
    with pytest.raises(ValueError, match="differs from the record in model, value encoder"):
        redraw(record, pipe)
    with pytest.raises(ValueError, match="older LiVO"):
        redraw(record | {"settings": None}, pipe)


def test_inputs_other_than_text_are_recorded_by_their_contents(pipe):
    latents = torch.randn(1, 4, 8, 8, generator=seeded(0))
    out = pipe(WARRIOR, latents=latents, generator=seeded(0), **FAST)
    record = out.decisions[0].to_dict()
    assert record["settings"]["call"]["latents"]["shape"] == [1, 4, 8, 8]
    with pytest.raises(ValueError, match="drawn with latents"):
        redraw(record, pipe)
    with pytest.raises(ValueError, match="differs from the record in call"):
        redraw(record, pipe, latents=latents + 1)
    assert np.array_equal(pixels(redraw(record, pipe, latents=latents)), pixels(out.images[0]))


@pytest.mark.parametrize(
    "baseline",
    [NegativePrompt("a dog"), SafeLatentDiffusion("a dog"), lambda pipe: WeightEdit({"conv_in.bias": pipe.unet.conv_in.bias + 1})],
)
def test_a_baseline_is_recorded_while_it_acts(pipe, baseline):
    baseline = baseline if hasattr(baseline, "on") else baseline(pipe)
    with baseline.on(pipe):
        out = pipe(CAT, value=None, generator=seeded(0), **FAST)
    (told,) = out.decisions[0].settings["baselines"]
    assert told["method"] == baseline.record()["method"]
    plain = pipe(CAT, value=None, generator=seeded(0), **FAST).decisions[0].settings
    assert plain["baselines"] == []
    changed = plain["model"]["weights"]["unet"] != out.decisions[0].settings["model"]["weights"]["unet"]
    assert changed == isinstance(baseline, WeightEdit)
    with pytest.raises(ValueError, match="baselines"):
        redraw(out.decisions[0].to_dict(), pipe)


def test_active_loras_are_recorded_with_scale_and_identifier(pipe):
    peft = pytest.importorskip("peft")
    for name in ("ink", "chalk"):
        pipe.unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=["to_q"]), name)
    backbone = model_record(pipe)
    pipe.set_adapters(["ink"], [0.5])
    (ink,) = pipe(CAT, generator=seeded(0), **FAST).decisions[0].settings["lora"]
    assert (ink["name"], ink["scale"], len(ink["weights"])) == ("ink", 0.5, 16)
    pipe.set_adapters(["ink", "chalk"], [0.5, 1.0])
    assert [lora["name"] for lora in pipe(CAT, **FAST).decisions[0].settings["lora"]] == ["chalk", "ink"]
    pipe.disable_lora()
    assert pipe(CAT, **FAST).decisions[0].settings["lora"] == [] and model_record(pipe) == backbone
    pipe.enable_lora()
    pipe.fuse_lora(adapter_names=["ink"])
    assert model_record(pipe) != backbone


def test_a_model_of_the_hub_is_recorded_by_its_commit(pipe, tmp_path, saved):
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--someone--model" / "snapshots" / commit
    folder.parent.mkdir(parents=True)
    saved.rename(folder)
    pipe = LiVOPipeline.from_pretrained(folder)
    pipe.register_to_config(_name_or_path="someone/model")
    assert model_record(pipe) == {"name": "someone/model", "revision": commit}
    pipe.register_modules(unet=type(pipe.unet).from_config(pipe.unet.config))
    pipe.unet.register_to_config(_name_or_path=None)
    assert set(model_record(pipe)["weights"]) == {"vae", "text_encoder", "unet"}  # not all of it is that commit


def test_attached_and_other_pipeline_classes_name_their_base(base, pipe):
    base.scheduler = EulerAncestralDiscreteScheduler.from_config(base.scheduler.config)
    livo.attach(base, pipe.value_encoder)
    out = base(WARRIOR, value="bloody considered inappropriate", generator=seeded(1), **FAST)
    settings = out.decisions[0].settings
    assert settings["pipeline"] == "StableDiffusionPipeline"
    assert settings["scheduler"]["class"] == "EulerAncestralDiscreteScheduler"
    assert np.array_equal(pixels(redraw(out.decisions[0].to_dict(), base)), pixels(out.images[0]))


# --- formats --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_each_format_keeps_the_whole_record(pipe, tmp_path, format):
    out = pipe([WARRIOR, "ein Krieger, blutüberströmt 血"], generator=seeded(3), **FAST)
    files = save_images(out, tmp_path, format)
    wanted = [json.loads(json.dumps([decision.to_dict()])) for decision in out.decisions]
    assert [read_record(file) for file in files] == wanted
    assert Image.open(files[0]).size == (16, 16)


@pytest.mark.parametrize("format", ["jpg", "webp"])
def test_other_programs_find_the_record_in_exif(pipe, tmp_path, format):
    (file,) = save_images(pipe(WARRIOR, generator=seeded(3), **FAST), tmp_path, format)
    comment = Image.open(file).getexif().get_ifd(ExifTags.IFD.Exif)[0x9286]
    assert comment.startswith(b"ASCII\0\0\0") and json.loads(comment[8:])["livo"][0]["prompt"] == WARRIOR


def test_formats_without_a_record_and_records_too_long_are_refused(pipe, tmp_path):
    out = pipe(WARRIOR, generator=seeded(3), **FAST)
    for format in ("bmp", "gif", "PNG "):
        with pytest.raises(ValueError, match=r"format is .*: choose one of png, jpg"):
            save_images(out, tmp_path, format)
    with pytest.raises(ValueError, match=r"EXIF holds 65000; write a \.png"):
        save_images(pipe("a cat " * 12_000, value=None, generator=seeded(3), **FAST), tmp_path, "jpg")
    assert not list(tmp_path.iterdir())
