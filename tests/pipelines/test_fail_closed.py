"""Alignment is never lost behind one's back: converting, saving, loading, and encoders that do not belong here."""

import json
import logging

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTextModel

import livo
from livo import LiVOPipeline, ValueEncoder
from livo.utils.hashing import weights_hash
from livo.value_encoder.encoder import vocabulary_hash
from tests.conftest import PRINCIPLES, WordEmbedder

WARRIOR = "a bloody warrior"
FAST = {"num_inference_steps": 3, "output_type": "np"}


def draw(pipe, *args, seed=0, **kwargs):
    return pipe(*args, generator=torch.Generator().manual_seed(seed), **FAST, **kwargs).images


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    if getattr(pipe, "retriever", None) is not None:
        pipe.retriever._embedder = WordEmbedder()
    return pipe


@pytest.fixture
def said(caplog):
    """What diffusers and livo warn of."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "livo")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    yield caplog
    for logger in loggers:
        logger.removeHandler(caplog.handler)


# --- from_pipe ----------------------------------------------------------------------------------------------------------


def test_from_pipe_of_a_class_without_values_is_refused_and_the_remedy_works(pipe, base):
    picture = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r"livo\.aligned\(StableDiffusionImg2ImgPipeline\)\.from_pipe"):
        StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    with pytest.raises(ValueError, match=r"livo\.detach"):
        StableDiffusionPipeline.from_pipe(pipe)
    pipe.set_value_scale(0.6)
    ours = quiet(livo.aligned(StableDiffusionImg2ImgPipeline).from_pipe(pipe))
    assert ours.value_encoder is pipe.value_encoder and ours.principles == PRINCIPLES and ours.value_scale == 0.6
    assert ours(WARRIOR, image=picture, num_inference_steps=3, output_type="np").decisions[0].applied_values
    theirs = quiet(StableDiffusionImg2ImgPipeline.from_pipe(base))
    assert np.array_equal(draw(ours, WARRIOR, image=picture, value=None), draw(theirs, WARRIOR, image=picture))
    pipe.unload_value_encoder()  # nothing to lose now
    assert type(StableDiffusionImg2ImgPipeline.from_pipe(pipe)) is StableDiffusionImg2ImgPipeline


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_from_pipe_changes_no_weight_and_no_dtype_of_its_source(base, pipe, dtypes):
    for source in (base, pipe):
        source.unet.to(dtypes[0])
        source.text_encoder.to(dtypes[1])
        before = {k: v.clone() for k, v in source.unet.state_dict().items()}
        made = LiVOPipeline.from_pipe(source, value_principles=PRINCIPLES)
        assert (source.unet.dtype, source.text_encoder.dtype) == dtypes and made.unet is source.unet
        assert all(torch.equal(v, before[k]) for k, v in source.unet.state_dict().items())
    assert LiVOPipeline.from_pipe(base, dtype=torch.float32).unet.dtype is torch.float32


# --- saving and loading ---------------------------------------------------------------------------------------------------


def test_a_saved_pipeline_comes_back_with_encoder_principles_strength_and_layout(pipe, tmp_path):
    pipe.set_value_scale(0.6)
    pipe.register_to_config(prompt_padding="do_not_pad")
    pipe.save_pretrained(tmp_path)
    again = quiet(LiVOPipeline.from_pretrained(tmp_path))
    assert (again.value_scale, again.config.prompt_padding, again.principles) == (0.6, "do_not_pad", PRINCIPLES)
    assert weights_hash(again.value_encoder) == weights_hash(pipe.value_encoder)
    assert np.array_equal(draw(again, WARRIOR), draw(pipe, WARRIOR))
    with pytest.raises(ValueError, match="prompt_padding is 'none'"):
        LiVOPipeline.from_pretrained(tmp_path, prompt_padding="none")


def test_a_principle_file_that_was_saved_comes_back_from_the_hub_too(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path)
    config = LiVOPipeline.load_config(tmp_path)
    monkeypatch.setattr("livo.pipelines.loading.hub_options", lambda *_, **__: {})  # a hub that answers
    monkeypatch.setattr(DiffusionPipeline, "download", classmethod(lambda cls, name, **_: str(tmp_path)))
    monkeypatch.setattr(LiVOPipeline, "load_config", classmethod(lambda cls, *_, **__: dict(config)))
    asked = []

    def cached_file(repo, file, **_):
        asked.append((repo, file))
        return str(tmp_path / file)

    monkeypatch.setattr("livo.pipelines.loading.cached_file", cached_file)
    assert LiVOPipeline.from_pretrained("someone/aligned").principles == PRINCIPLES
    assert asked == [("someone/aligned", "value_principles.yaml")]


def test_a_plain_class_that_loads_a_saved_pipeline_is_warned_by_name_of_the_remedy(pipe, tmp_path, said):
    pipe.save_pretrained(tmp_path)
    plain = quiet(StableDiffusionPipeline.from_pretrained(tmp_path))
    assert "livo.LiVOPipeline.from_pretrained" in said.text and "draws without the values" in said.text
    assert not hasattr(plain, "value_encoder")
    said.clear()
    LiVOPipeline.from_pretrained(tmp_path)
    assert "not expected" not in said.text


def test_the_generic_loader_fails_and_names_the_class_that_loads(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "text")
    with pytest.raises(AttributeError, match=r"livo\.LiVOPipeline"):
        DiffusionPipeline.from_pretrained(tmp_path / "text")
    image = livo.aligned(StableDiffusionImg2ImgPipeline).from_pipe(pipe)
    image.save_pretrained(tmp_path / "image")
    with pytest.raises(AttributeError, match=r"livo\.aligned\(StableDiffusionImg2ImgPipeline\)"):
        DiffusionPipeline.from_pretrained(tmp_path / "image")
    again = livo.aligned(StableDiffusionImg2ImgPipeline).from_pretrained(tmp_path / "image")
    assert again.principles == PRINCIPLES and again.value_encoder is not None


def test_a_detached_pipeline_saves_what_the_base_saves(base, pipe, tmp_path):
    base.save_pretrained(tmp_path / "before")
    livo.attach(base, pipe.value_encoder, PRINCIPLES)
    livo.detach(base).save_pretrained(tmp_path / "after")
    names = [sorted(str(f.relative_to(tmp_path / which)) for f in (tmp_path / which).rglob("*")) for which in ("before", "after")]
    index = [json.loads((tmp_path / which / "model_index.json").read_text()) for which in ("before", "after")]
    assert names[0] == names[1] and index[0] == index[1]


# --- encoders that do not belong here ---------------------------------------------------------------------------------------


def test_an_encoder_of_another_width_is_refused_however_it_comes(pipe, tmp_path):
    wide = ValueEncoder.from_text_encoder(pipe.text_encoder, width=48)
    wide.save_pretrained(tmp_path)
    for source in (wide, tmp_path):
        with pytest.raises(ValueError, match=r"value_width is 48.*has 32.*load the encoder that was trained for this backbone"):
            pipe.load_value_encoder(source)
    pipe.register_modules(value_encoder=wide)
    with pytest.raises(ValueError, match="value_width is 48"):
        draw(pipe, WARRIOR, value="bloody")


def test_an_encoder_of_another_tokenizer_is_refused(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)  # the vocabulary is noted in the encoder's configuration
    file = tmp_path / "value_encoder" / "config.json"
    config = json.loads(file.read_text())
    assert config["value_tokenizer"] == vocabulary_hash(pipe.tokenizer)
    for changed, words in (
        ({"value_tokenizer": "0123456789ab"}, "its vocabulary is 0123456789ab"),
        ({"value_tokenizer": None, "eos_token_id": 5}, "its texts end in token 5"),
    ):
        file.write_text(json.dumps(config | changed))
        with pytest.raises(ValueError, match=f"another tokenizer's words: {words}"):
            pipe.load_value_encoder(tmp_path / "value_encoder")
        with pytest.raises(ValueError, match="another tokenizer's words"):
            LiVOPipeline.from_pretrained(tmp_path)
    small = CLIPTextModel(type(pipe.text_encoder.config)(**{**pipe.text_encoder.config.to_dict(), "vocab_size": 900}))
    with pytest.raises(ValueError, match="its vocabulary holds 900 words"):
        pipe.load_value_encoder(small)


def test_a_statement_that_the_encoder_was_not_trained_with_is_warned_of_under_auto_too(pipe, said):
    pipe.value_encoder.config.value_statements = ["gender equality"]
    out = pipe(WARRIOR, **FAST)
    assert "not trained with 'bloody considered inappropriate'" in said.text and "livo train" in said.text
    assert "not trained with these words" in out.decisions[0].values[0].reason


def test_another_unet_put_in_later_is_hooked_too(pipe, tiny_checkpoint):
    before = draw(pipe, WARRIOR)
    pipe.unet = type(pipe.unet).from_pretrained(tiny_checkpoint, subfolder="unet")
    assert np.array_equal(draw(pipe, WARRIOR), before)


def test_prompt_embeddings_that_are_changed_on_the_way_stop_the_call(pipe):
    def shorten(pipe, step, timestep, inputs):
        return {"prompt_embeds": inputs["prompt_embeds"][:, 1:]}

    with pytest.raises(ValueError, match="do not change the prompt embeddings"):
        draw(pipe, WARRIOR, callback_on_step_end=shorten, callback_on_step_end_tensor_inputs=["prompt_embeds"])
