"""Wrong arguments are refused by name, whatever the prompt; and what never acted is not recorded as applied."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionLDM3DPipeline, StableDiffusionPipeline

import livo
from livo import LiVOPipeline, ValueEncoder, ValueLedger, ValuePrinciple, ValueRetriever

WARRIOR, CAT = "a bloody warrior", "a cat"


def draw(pipe, prompt=WARRIOR, **kwargs):
    options = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 4, "output_type": "np"}
    return pipe(prompt, **{**options, **kwargs})


@pytest.mark.parametrize("prompt", [WARRIOR, CAT])
@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ("big", "value_scale is 'big'"),
        ("0.5", "value_scale is '0.5'"),
        (True, "value_scale is True"),
        (float("nan"), "value_scale is nan"),
        (float("inf"), "value_scale is inf"),
        (1e300, r"value_scale is 1e\+300: give a number from 0 \(the base\) to 1000"),
        ({"bloody": -3}, "value_scale is -3"),
        ({"blody": 1}, "value_scale names 'blody', and no principle has that id: there are gender_equality, bloody"),
        ({None: 1}, "value_scale names None"),
    ],
)
def test_a_wrong_scale_is_refused_where_no_value_applies_too(pipe, prompt, scale, words):
    with pytest.raises(ValueError, match=words):
        draw(pipe, prompt, value_scale=scale)


def test_a_scale_may_name_a_principle_that_is_given_in_the_call(pipe):
    own = ValuePrinciple(id="calm", statement="calm")
    decision = draw(pipe, value=(own, "bloody"), value_scale={"calm": 0.3}).decisions[0]
    assert {v.id: v.scale for v in decision.values} == {"calm": 0.3, "bloody": 1.0}


@pytest.mark.parametrize("value", ["auto", None])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0: give a whole number from 1"),
        ({"num_images_per_prompt": 1.5}, r"num_images_per_prompt is 1\.5"),
        ({"num_images_per_prompt": "2"}, "num_images_per_prompt is '2'"),
        ({"generator": 3}, r"generator is 3: give torch\.Generator\(\)"),
        ({"generator": (torch.Generator(),)}, r"generator is \(<torch"),
        ({"generator": [7]}, r"generator is \[7\]"),
    ],
)
def test_images_and_generators_are_refused_by_name(pipe, value, given, words):
    with pytest.raises(ValueError, match=words):
        draw(pipe, value=value, **given)


def test_numbers_of_numpy_are_numbers(pipe):
    out = draw(pipe, num_images_per_prompt=np.int64(2), value_scale=np.float32(0.5), value_end=np.float64(0.5))
    assert [decision.values[0].scale for decision in out.decisions] == [0.5, 0.5]
    assert np.array_equal(out.images, draw(pipe, num_images_per_prompt=2, value_scale=0.5, value_end=0.5).images)


@pytest.mark.parametrize("wrong", [None, "StableDiffusionPipeline", torch.nn.Linear])
def test_what_is_no_pipeline_is_named(base, wrong):
    with pytest.raises(ValueError, match="is no pipeline class: give one such as StableDiffusionPipeline"):
        livo.aligned(wrong)
    with pytest.raises(ValueError, match="is no pipeline: give one that was loaded"):
        livo.attach(wrong)
    with pytest.raises(ValueError, match="for a pipeline use livo"):
        livo.aligned(base)
    with pytest.raises(ValueError, match="is no pipeline: give one that was loaded"):
        livo.attach(StableDiffusionPipeline)


@pytest.mark.parametrize(("start", "acts"), [(0.0, True), (0.25, False), (0.5, False)])
def test_a_value_that_an_interrupted_call_never_reached_is_not_applied(pipe, start, acts):
    """The call ends after its first step of four."""

    def interrupt(pipe, step, timestep, inputs):
        pipe._interrupt = True
        return inputs

    stopped = {"callback_on_step_end": interrupt, "value_start": start}
    if acts:
        assert draw(pipe, **stopped).decisions[0].applied_values
        return
    with pytest.raises(ValueError, match=r"image 0 reached no attention layer, .* ended before value_start"):
        draw(pipe, **stopped)
    mixed = draw(pipe, [WARRIOR, CAT], value=["bloody", None], value_start=[0.0, start], callback_on_step_end=interrupt)
    assert [bool(d.applied_values) for d in mixed.decisions] == [True, False]
    assert np.isfinite(mixed.images).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda pipe: pipe.save_pretrained("nowhere", licence="mit"),
            r"save_pretrained\(\) has no argument 'licence': .*'license'",
        ),
        (lambda pipe: pipe.push_to_hub("a/b", encoder_onl=True), r"push_to_hub\(\) has no argument 'encoder_onl'"),
        (
            lambda pipe: LiVOPipeline.from_pipe(pipe, value_encodr=1),
            r"from_pipe\(\) has no argument 'value_encodr': .*'value_encoder'",
        ),
        (lambda _: ValueLedger(acros="principle"), r"ValueLedger\(\) has no argument 'acros': did you mean 'across'"),
        (lambda _: ValueRetriever("livo", embeder="x"), r"ValueRetriever\(\) has no argument 'embeder': did you mean 'embedder'"),
        (
            lambda _: ValuePrinciple(id="x", statment="y"),
            r"ValuePrinciple\(\) has no argument 'statment': did you mean 'statement'",
        ),
        (lambda _: livo.load_principles(src="x"), r"load_principles\(\) has no argument 'src'"),
        (lambda _: livo.aligned(clas=object), r"aligned\(\) has no argument 'clas': did you mean 'cls'"),
        (lambda pipe: livo.detach(pip=pipe), r"detach\(\) has no argument 'pip': did you mean 'pipe'"),
    ],
)
def test_an_unknown_argument_suggests_the_closest_name(pipe, call, words):
    with pytest.raises(TypeError, match=words):
        call(pipe)


def test_where_to_upload_is_refused_where_nothing_is_uploaded(pipe, tmp_path):
    with pytest.raises(ValueError, match="private, repo_id is for an upload: pass push_to_hub=True"):
        pipe.save_pretrained(tmp_path / "new", repo_id="me/mine", private=True)
    assert not (tmp_path / "new").exists()


def test_from_pipe_takes_encoders_as_from_pretrained_does(pipe, base, tmp_path):
    other = ValueEncoder.from_text_encoder(base.text_encoder)
    other.config.value_statements = ["calm"]
    other.save_pretrained(tmp_path)
    assert LiVOPipeline.from_pipe(base, value_encoder=tmp_path).value_encoder.statements == ("calm",)
    pipe.load_value_encoder(tmp_path, name="calm")
    found = LiVOPipeline.from_pipe(pipe, value_encoder={"new": tmp_path, "default": other})
    assert list(found.value_encoders) == ["default", "calm", "new"] and found.value_encoder is other
    with pytest.raises(TypeError, match="value_encoder is 'a path': give a CLIPTextModel"):
        LiVOPipeline(**base.components, requires_safety_checker=False, value_encoder="a path")


def test_a_folder_of_named_encoders_says_which_there_are(pipe, tmp_path):
    pipe.load_value_encoder(pipe.value_encoder, name="mine")
    pipe.unload_value_encoder("default")
    pipe.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is value_encoder_mine: name that folder"):
        pipe.load_value_encoder(tmp_path)
    with pytest.raises(ValueError, match=r"'x' is not a ledger: .*merge\(ValueLedger\('x'\)\)"):
        ValueLedger().merge("x")


@pytest.mark.parametrize("name", ["/nowhere/model.safetensors", "model.safetensors", "folder/model.safetensors"])
def test_a_single_file_that_is_not_there_is_named(name):
    with pytest.raises(FileNotFoundError, match=f"^{name}: no such file; give a .safetensors file"):
        LiVOPipeline.from_single_file(name)


def test_a_text_beside_embeddings_is_taken_with_and_without_a_value(pipe, base):
    embeds, negative = base.encode_prompt(WARRIOR, "cpu", 1, True)
    ready = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    assert np.array_equal(draw(pipe, value=None, **ready).images, draw(base, None, **ready).images)
    assert draw(pipe, value="bloody", **ready).decisions[0].applied_values
    with pytest.raises(ValueError, match="prompt_embeds make 1 images and the prompts 2: give a text for each"):
        draw(pipe, [WARRIOR, CAT], value=None, **ready)


def test_the_card_of_uploaded_encoders_loads_each_by_its_name(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("livo.pipelines.loading.upload", lambda folder, *_: shutil.copytree(folder, tmp_path / "hub"))
    pipe.load_value_encoder(pipe.value_encoder, name="mine")
    pipe.push_to_hub("me/values", encoder_only=True)
    card = (tmp_path / "hub" / "README.md").read_text()
    assert 'pipe.load_value_encoder("me/values")\npipe.load_value_encoder("me/values", name="mine")\n' in card


def test_a_path_to_ones_own_principles_is_not_taken_for_the_bundled_ones(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "safety").mkdir()
    (tmp_path / "safety" / "mine.yaml").write_text("{id: calm, statement: calm}")
    for path in ("./safety", "safety/", str(tmp_path / "safety")):
        assert [principle.id for principle in livo.load_principles(path)] == ["calm"]
    assert not caplog.text
    assert "bloody" in [principle.id for principle in livo.load_principles("safety")]
    assert "safety: the bundled principles are read; write ./safety for what is here" in caplog.text


def test_a_lora_of_no_weights_is_refused(pipe):
    with pytest.raises(ValueError, match="it holds no weights, so it would do nothing"):
        pipe.load_lora_weights({})


def test_a_text_encoder_with_a_lora_is_not_copied(base):
    from peft import LoraConfig

    base.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj"]), "x")
    with pytest.raises(ValueError, match=r"the text encoder holds the LoRA x, .*call unload_lora_weights first"):
        ValueEncoder.from_text_encoder(base.text_encoder)


def test_a_class_whose_output_has_no_images_is_recorded(base):
    pipe = livo.attach(StableDiffusionLDM3DPipeline(**base.components, requires_safety_checker=False))
    pipe.register_modules(value_encoder=ValueEncoder.from_text_encoder(pipe.text_encoder))
    out = draw(pipe, value="calm")
    assert out.rgb.shape[1:3] == (16, 16) and out.decisions[0].applied_values and out.decisions[0].settings["size"] == [16, 16]
