"""Several value encoders on one pipeline: which carries out what, alone and together, saved, converted and taken away."""

import json

import numpy as np
import pytest
import torch

import livo
from livo import LiVOPipeline, ValueEncoder, ValuePrinciple
from livo.pipelines.decision_record import read_record, save_images
from livo.utils.hashing import weights_hash
from tests.conftest import PRINCIPLES, WordEmbedder
from tests.pipelines.test_attach import seeded

WARRIOR, DOCTOR = "a bloody warrior", "a photo of a doctor"
BLOODY = PRINCIPLES[1].statement
KIND = ValuePrinciple(id="kindness", statement="kindness", exemplars=("people who help each other",))


def encoder_of(pipe, seed, statements=None, tokens=1):
    torch.manual_seed(seed)
    encoder = ValueEncoder.from_text_encoder(pipe.text_encoder, tokens=tokens)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    encoder.config.value_statements = statements
    return encoder.eval()


@pytest.fixture
def both(pipe):
    """The default encoder knows the fixture's principles, `mine` knows kindness and makes two tokens of it."""
    pipe.value_encoder.config.value_statements = [p.statement for p in PRINCIPLES]
    pipe.load_value_encoder(encoder_of(pipe, 5, ["kindness"], tokens=2), name="mine")
    pipe.load_value_principles([KIND], add=True)
    return pipe


def draw(pipe, prompt=WARRIOR, seed=0, **kwargs):
    return pipe(prompt, generator=seeded(seed), num_inference_steps=2, output_type="np", **kwargs)


def alone(pipe, encoder, value, **kwargs):
    """What the encoder gives as a pipeline's only one."""
    single = LiVOPipeline(**{k: v for k, v in pipe.components.items() if not k.startswith("value_encoder")}, value_encoder=encoder)
    single.load_value_principles(pipe.principles)
    single.set_progress_bar_config(disable=True)
    return draw(single, value=value, **kwargs).images


def test_each_value_is_carried_out_by_the_encoder_that_knows_it(both):
    first, mine = both.value_encoder, both.value_encoders["mine"]
    for value, name, encoder in (("bloody", "default", first), ("kindness", "mine", mine), (BLOODY, "default", first)):
        out = draw(both, value=value)
        ((found,),) = (decision.values for decision in out.decisions)
        assert (found.encoder_name, found.encoder, found.known) == (name, weights_hash(encoder), True)
        assert found.applied and np.array_equal(out.images, alone(both, encoder, value))
    assert draw(both).decisions[0].values[0].encoder_name == "default"


@pytest.mark.parametrize(
    ("statements", "named", "value", "expected"),
    [
        ({"default": ["a"], "mine": ["b"]}, None, "b", "mine"),
        ({"default": ["a"], "mine": ["a"]}, None, "a", "default"),  # both know it: the first
        ({"default": ["a"], "mine": ["a"]}, "mine", "a", "mine"),  # the principle names one
        ({"default": None, "mine": ["a"]}, None, "a", "mine"),
        ({"default": ["a"], "mine": None}, None, "other words", "mine"),  # nobody lists it: the one without a record
        ({"default": ["a"], "mine": ["b"]}, None, "other words", "default"),
    ],
)
def test_the_rule_that_chooses_an_encoder(pipe, statements, named, value, expected):
    pipe.value_encoder.config.value_statements = statements["default"]
    pipe.load_value_encoder(encoder_of(pipe, 5, statements["mine"]), name="mine")
    (found,) = draw(pipe, value=ValuePrinciple(id="own", statement=value, encoder=named)).decisions[0].values
    assert found.encoder_name == expected and found.encoder == weights_hash(pipe.value_encoders[expected])


def test_an_encoder_that_knows_all_directions_comes_before_one_that_knows_the_statement(pipe):
    towards = {"male": "towards male", "female": "towards female"}
    principle = ValuePrinciple(
        "equal", "gender equality", "debias", attributes={"male": "a man", "female": "a woman"}, directions=towards
    )
    pipe.value_encoder.config.value_statements = ["gender equality"]
    pipe.load_value_encoder(encoder_of(pipe, 5, ["gender equality", *towards.values()]), name="mine")
    out = draw(pipe, DOCTOR, value=principle, num_images_per_prompt=2)
    values = [value for decision in out.decisions for value in decision.values]
    assert {v.encoder_name for v in values} == {"mine"} and {v.direction for v in values} == {"male", "female"}


def test_an_encoder_that_is_named_and_not_loaded_is_an_error_with_the_remedy(both):
    with pytest.raises(
        ValueError, match=r"own names the value encoder 'other', which is not loaded \(there are default, mine\): call load_v"
    ):
        draw(both, value=ValuePrinciple(id="own", statement="x", encoder="other"))


@pytest.mark.parametrize(
    ("words", "known"), [(["bloody considered inappropriate"], True), (["something else"], False), (None, None), ([], False)]
)
def test_a_record_tells_known_words_from_unknown_ones(pipe, tmp_path, words, known):
    pipe.value_encoder.config.value_statements = words
    out = pipe(WARRIOR, value="bloody", num_inference_steps=1)
    (value,) = out.decisions[0].values
    assert value.applied and value.known is known
    (entry,) = read_record(save_images(out, tmp_path)[0])[0]["values"]
    assert entry["applied"] is True and entry["known"] is known and entry["encoder_name"] == "default"


@pytest.mark.parametrize("off", [{"value_scale": 0}, {"value": None}, {"encoder": 0}])
def test_a_value_of_scale_zero_is_not_applied_whoever_sets_it(pipe, base, off):
    pipe.set_value_scale(off.pop("encoder", 1), encoder="default")
    out = draw(pipe, **{"value": "bloody", **off})
    expected = base(WARRIOR, generator=seeded(), num_inference_steps=2, output_type="np").images
    assert not out.decisions[0].applied_values and np.array_equal(out.images, expected)


def test_two_values_of_different_encoders_act_together(both, base):
    plain = base(WARRIOR, generator=seeded(), num_inference_steps=2, output_type="np").images
    out = draw(both, value=("bloody", "kindness"))
    first, second = out.decisions[0].values
    assert (first.encoder_name, second.encoder_name) == ("default", "mine") and first.applied and second.applied
    assert first.encoder != second.encoder and second.encoder == weights_hash(both.value_encoders["mine"])
    images = [out.images, plain, *(draw(both, value=value).images for value in ("bloody", "kindness"))]
    for i, one in enumerate(images):
        assert all(np.abs(one - other).max() > 1e-4 for other in images[i + 1 :])
    weak = draw(both, value=("bloody", "kindness"), value_scale={"kindness": 1e-30})
    assert np.abs(weak.images - draw(both, value="bloody").images).max() < 2e-4  # its two tokens are masked


def test_rows_of_different_encoders_equal_their_single_runs(both):
    generators = [seeded(i) for i in range(3)]
    options = {"num_inference_steps": 2, "output_type": "np"}
    mixed = both([WARRIOR] * 3, value=["bloody", "kindness", None], generator=generators, **options).images
    for i, value in enumerate(("bloody", "kindness", None)):
        assert np.abs(mixed[i] - draw(both, seed=i, value=value).images[0]).max() < 2e-4


def test_the_scale_of_an_encoder_multiplies_that_of_the_call(both):
    both.set_value_scale(0.5, encoder="mine")
    assert both.value_encoder_scales == {"default": 1.0, "mine": 0.5}
    out = draw(both, value="kindness", value_scale=0.8)
    assert out.decisions[0].values[0].scale == pytest.approx(0.4)
    bloody = draw(both, value="bloody")
    assert bloody.decisions[0].values[0].scale == 1.0
    both.set_value_scale(1, encoder="mine")
    assert np.array_equal(out.images, draw(both, value="kindness", value_scale=0.4).images)
    for wrong in ({"scale": 1, "encoder": "other"}, {"scale": -1, "encoder": "mine"}):
        with pytest.raises(ValueError, match=r"no value encoder 'other' is loaded: there are default, mine|value_scale is -1"):
            both.set_value_scale(**wrong)


def test_unloading_one_leaves_the_other_and_unloading_all_gives_the_base(both, base):
    expected = draw(both, value="kindness").images
    plain = base(WARRIOR, generator=seeded(), num_inference_steps=2, output_type="np").images
    both.unload_value_encoder("default")
    assert list(both.value_encoders) == ["mine"] and both.value_encoder is None
    assert np.array_equal(draw(both, value="kindness").images, expected)
    assert draw(both).decisions[0].values[0].known is False  # mine was not trained with it
    with pytest.raises(ValueError, match="no value encoder 'default' is loaded: there are mine"):
        both.unload_value_encoder("default")
    both.unload_value_encoder()
    assert both.value_encoders == {} and "value_encoder_mine" not in both.components
    assert np.array_equal(draw(both).images, plain)


def test_loading_that_fails_leaves_everything_as_it_was(both, tmp_path):
    before = draw(both, value=("bloody", "kindness")).images
    wide = ValueEncoder.from_text_encoder(both.text_encoder, width=48)
    for source, name, words in (
        (wide, "third", "value_width is 48"),
        (tmp_path / "no.safetensors", "third", "no such file"),
        (both.value_encoder, "a/b", "the name of a value encoder is 'a/b'"),
        (3, "third", "a hub id, a path"),
        (wide, "mine", "value_width is 48"),
    ):
        with pytest.raises((ValueError, FileNotFoundError, TypeError), match=words):
            both.load_value_encoder(source, name)
        assert list(both.value_encoders) == ["default", "mine"]
    assert np.array_equal(draw(both, value=("bloody", "kindness")).images, before)


def test_statements_that_two_encoders_know_are_reported_when_loading(both, caplog):
    both.load_value_encoder(encoder_of(both, 6, ["kindness", "calm"]), name="third")
    assert "value encoders mine and third both know kindness: mine, loaded first, carries them out" in caplog.text


def test_a_saved_pipeline_keeps_all_encoders_their_scales_and_images(both, tmp_path):
    both.set_value_scale(0.5, encoder="mine")
    before = draw(both, value=("bloody", "kindness")).images
    both.save_pretrained(tmp_path)
    assert (tmp_path / "value_encoder_mine" / "model.safetensors").is_file()
    again = LiVOPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert list(again.value_encoders) == ["default", "mine"] and again.value_encoder_scales["mine"] == 0.5
    assert [p.id for p in again.principles] == ["gender_equality", "bloody", "kindness"]
    assert np.array_equal(draw(again, value=("bloody", "kindness")).images, before)
    again.save_pretrained(tmp_path / "again")
    assert list(LiVOPipeline.from_pretrained(tmp_path / "again").value_encoders) == ["default", "mine"]
    both.load_value_encoder(tmp_path, name="mine")  # of a folder that holds several, the one of this name
    assert weights_hash(both.value_encoders["mine"]) == weights_hash(again.value_encoders["mine"])
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["value_encoder_mine"] == ["livo.value_encoder.encoder", "ValueEncoder"]
    card = (tmp_path / "README.md").read_text()
    assert "2 LiVO value encoders (default, mine)" in card and "mine: kindness" in card


def test_a_pipeline_with_named_encoders_alone_is_saved_and_comes_back(both, tmp_path):
    both.unload_value_encoder("default")
    both.save_pretrained(tmp_path)
    again = LiVOPipeline.from_pretrained(tmp_path)
    assert list(again.value_encoders) == ["mine"] and "kindness" in [p.id for p in again.principles]


def test_loading_and_attaching_take_several_encoders_by_name(both, base, tiny_checkpoint, tmp_path):
    for name, encoder in both.value_encoders.items():
        encoder.save_pretrained(tmp_path / name)
    given = {"default": tmp_path / "default", "mine": tmp_path / "mine"}
    pipe = LiVOPipeline.from_pretrained(tiny_checkpoint, value_encoder=given, value_principles=both.principles)
    pipe.set_progress_bar_config(disable=True)
    before = dict(base.config), set(vars(base))
    with pytest.raises(FileNotFoundError):
        livo.attach(base, {"a": tmp_path / "mine", "b": tmp_path / "nothing.safetensors"}, PRINCIPLES)
    assert (dict(base.config), set(vars(base))) == before
    livo.attach(base, given, both.principles)
    expected = draw(both, value=("bloody", "kindness")).images
    assert np.array_equal(draw(pipe, value=("bloody", "kindness")).images, expected)
    assert np.array_equal(draw(base, value=("bloody", "kindness")).images, expected)
    livo.detach(base)
    assert dict(base.config) == before[0] and not any("value" in name for name in vars(base))


def test_converting_moving_and_casting_take_all_encoders_along(both):
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

    both.set_value_scale(0.5, encoder="mine")
    image = livo.aligned(StableDiffusionImg2ImgPipeline).from_pipe(both)
    assert list(image.value_encoders) == ["default", "mine"] and image.value_encoder_scales["mine"] == 0.5
    back = LiVOPipeline.from_pipe(image)
    back.set_progress_bar_config(disable=True)
    back.retriever._embedder = WordEmbedder()
    assert np.array_equal(draw(back, value="kindness").images, draw(both, value="kindness").images)
    both.to(dtype=torch.bfloat16)
    assert {encoder.dtype for encoder in both.value_encoders.values()} == {torch.bfloat16}
    both.unload_value_encoder("default")
    with pytest.raises(ValueError, match=r"would drop the values: use livo\.aligned"):
        StableDiffusionPipeline.from_pipe(both)


def test_offloading_moves_all_encoders(both):
    on = draw(both, value=("bloody", "kindness")).images
    try:
        both.enable_model_cpu_offload(device="cpu")
    except RuntimeError as error:
        pytest.skip(f"model offloading needs an accelerator: {error}")
    assert np.array_equal(draw(both, value=("bloody", "kindness")).images, on)


def test_pushing_encoders_alone_uploads_all_of_them(both, monkeypatch, tmp_path):
    import shutil

    import livo.pipelines.loading

    monkeypatch.setattr(livo.pipelines.loading, "upload", lambda folder, repo_id, **_: shutil.copytree(folder, tmp_path / "repo"))
    both.push_to_hub("me/encoders", encoder_only=True)
    expected = {name: weights_hash(encoder) for name, encoder in both.value_encoders.items()}
    both.unload_value_encoder()
    for name in expected:
        both.load_value_encoder(tmp_path / "repo", name=name)
    assert {name: weights_hash(encoder) for name, encoder in both.value_encoders.items()} == expected


def test_papertown_keeps_its_encoder_beside_a_users_own(papertown):
    pipe = LiVOPipeline.from_pretrained("papertown")
    pipe.set_progress_bar_config(disable=True)
    expected = draw(papertown, value="bloody").images
    pipe.load_value_encoder(encoder_of(pipe, 7, ["calm"]), name="mine")
    assert np.array_equal(draw(pipe, value="bloody").images, expected)
    out = draw(pipe, value=("bloody", "calm"))
    assert [value.encoder_name for value in out.decisions[0].values] == ["default", "mine"]
