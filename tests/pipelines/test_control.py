"""How values are controlled: strength, step ranges, embeddings, long prompts, layouts. The diffusers pipeline is the reference."""

import logging
from copy import deepcopy
from threading import Thread

import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler, StableDiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback
from safetensors.torch import save_file

from livo import LiVOPipeline, ValuePrinciple
from livo.value_encoder.token import cut_off, encode_value, tokenize, value_text
from tests.conftest import PRINCIPLES, gap

DOCTOR, WARRIOR, CAT = "a photo of a doctor", "a bloody warrior", "a cat"
BLOODY = "bloody considered inappropriate"
FAST = {"num_inference_steps": 4, "output_type": "np"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(pipe, *args, generator=None, **kwargs):
    return pipe(*args, generator=generator or seeded(), **{**FAST, **kwargs}).images


def latents_by_step(pipe, *args, **kwargs):
    found = []

    def keep(pipe, step, timestep, inputs):
        found.append(inputs["latents"].clone())
        return {}

    draw(pipe, *args, callback_on_step_end=keep, **kwargs)
    return found


def embeds(pipe, text):
    with torch.no_grad():
        return pipe.text_encoder(tokenize(pipe.tokenizer, [text])).last_hidden_state


# --- step ranges ----------------------------------------------------------------------------------------------------------


def test_before_its_start_a_value_has_done_nothing_and_after_its_end_it_does_nothing(pipe, base):
    plain = latents_by_step(base, WARRIOR)
    late = latents_by_step(pipe, WARRIOR, value_start=0.5)
    assert gap(late[0], plain[0]) < 2e-5 and gap(late[1], plain[1]) < 2e-5  # a masked token is not there, up to rounding
    assert gap(late[2], plain[2]) > 2e-4
    full, early = latents_by_step(pipe, WARRIOR), latents_by_step(pipe, WARRIOR, value_end=0.5)
    assert all(torch.equal(full[i], early[i]) for i in (0, 1)) and gap(full[2], early[2]) > 2e-4
    middle = early[1]  # from there on the base's own steps
    rest = iter(range(4))

    def put_back(pipe, step, timestep, inputs):
        return {"latents": middle} if next(rest) == 1 else {}

    draw(base, WARRIOR, callback_on_step_end=put_back)
    there = []
    again = iter(range(4))

    def put_and_keep(pipe, step, timestep, inputs):
        there.append(inputs["latents"].clone())
        return {"latents": middle} if next(again) == 1 else {}

    draw(base, WARRIOR, callback_on_step_end=put_and_keep)
    assert gap(there[-1], early[-1]) < 2e-5


def test_ranges_and_strengths_differ_within_a_batch_as_in_single_runs(pipe):
    settings = [(0.0, 0.5, 1.0), (0.5, 1.0, 0.5), (0.0, 1.0, 2.0), (0.25, 0.75, 1.0)]
    singles = [
        draw(pipe, WARRIOR, generator=seeded(i), value_start=a, value_end=b, value_scale=s)[0]
        for i, (a, b, s) in enumerate(settings)
    ]
    starts, ends, scales = (list(column) for column in zip(*settings, strict=True))
    out = pipe(
        [WARRIOR] * 4, generator=[seeded(i) for i in range(4)], value_start=starts, value_end=ends, value_scale=scales, **FAST
    )
    for image, single in zip(out.images, singles, strict=True):
        np.testing.assert_allclose(image, single, atol=2e-4)
    assert [(d.values[0].start, d.values[0].end, d.values[0].scale) for d in out.decisions] == settings


def test_a_callers_callback_still_works_beside_a_range(pipe):
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)  # ends guidance, and with it half of the batch
    sizes = []
    hook = pipe.unet.register_forward_pre_hook(lambda m, a: sizes.append(len(a[0])))
    draw(pipe, WARRIOR, value_start=0.25, callback_on_step_end=cutoff)
    hook.remove()
    assert sizes == [2, 2, 1, 1]


def test_a_sampler_of_second_order_keeps_the_range(pipe):
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    seen = []
    hook = pipe.unet.register_forward_hook(lambda *_: seen.append(bool(pipe._call.blend.bias[0, 1, 0, 0] == 0)))
    draw(pipe, WARRIOR, value_end=0.5)
    hook.remove()
    assert len(seen) == 7 and seen == [True] * 4 + [False] * 3


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (-0.1, 1), (0, 1.1), ("early", 1), (0, None)])
def test_a_range_that_is_none_is_refused(pipe, start, end):
    with pytest.raises(ValueError, match="value_start is"):
        draw(pipe, WARRIOR, value_start=start, value_end=end)


@pytest.mark.parametrize(("start", "end", "steps"), [(0.2, 0.8, 1), (0.3, 0.4, 4), (0.9, 1.0, 4)])
def test_a_range_that_holds_no_step_is_refused_and_not_passed_over(pipe, start, end, steps):
    with pytest.raises(ValueError, match=f"value_start {start} and value_end .* hold none of the {steps} steps.*widen them"):
        draw(pipe, WARRIOR, value_start=start, value_end=end, num_inference_steps=steps)
    assert np.array_equal(draw(pipe, WARRIOR), draw(pipe, WARRIOR, value_start=0.0, value_end=1.0))


# --- several values -------------------------------------------------------------------------------------------------------


def test_values_that_work_against_each_other_are_reported(pipe, caplog):
    other = ValuePrinciple(
        id="gender_too", statement="gender", kind="debias", attributes={"male": "a", "female": "b"}, exemplars=(CAT,)
    )
    pipe.load_value_principles([*PRINCIPLES, other])
    with caplog.at_level(logging.WARNING):
        decision = pipe(DOCTOR, value=("gender_equality", "bloody"), **FAST).decisions[0]
    assert "gender_equality and bloody share the attention" in caplog.text
    first, second = decision.values
    assert first.conflicts == second.conflicts and len(first.conflicts) == 1
    decision = pipe(DOCTOR, value=("gender_equality", "gender_too"), **FAST).decisions[0]
    assert decision.values[0].conflicts == ("gender_equality and gender_too both decide about female, male",)
    assert pipe(DOCTOR, value=("bloody", "any words"), **FAST).decisions[0].values[0].conflicts == ()


@pytest.mark.parametrize("twice", [("bloody", BLOODY), ("bloody", "bloody"), (PRINCIPLES[0], PRINCIPLES[0].id)])
def test_a_value_is_asked_for_once_by_whatever_name(pipe, twice):
    with pytest.raises(ValueError, match="each once"):
        draw(pipe, WARRIOR, value=twice)


# --- pipelines that share a network ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(  # a base pipeline that is called within our call cannot tell whose call it is
    ("other", "nested"),
    [("base", False), *((f"ours {how} a value", nested) for how in ("with", "without") for nested in (False, True))],
)
def test_pipelines_that_share_a_network_act_on_their_own_calls_alone(pipe, base, other, nested):
    second = StableDiffusionPipeline(**base.components) if other == "base" else LiVOPipeline.from_pipe(pipe)
    second.register_modules(unet=pipe.unet, scheduler=deepcopy(pipe.scheduler))
    second.set_progress_bar_config(disable=True)
    how = {} if other == "base" else {"value": None if other == "ours without a value" else "bloody", "value_scale": 0.5}

    def ours(**more):
        return draw(pipe, WARRIOR, **more)

    def theirs(**more):
        return draw(second, CAT, **how, **more)

    def check(outer, inner):
        alone, own, seen = outer(), inner(), []

        def meanwhile(pipe, step, timestep, inputs):
            if nested:
                seen.append(inner())
            else:
                thread = Thread(target=lambda: seen.append(inner()))
                thread.start()
                thread.join()
            return {}

        assert np.array_equal(outer(callback_on_step_end=meanwhile), alone)
        assert len(seen) == 4 and all(np.array_equal(images, own) for images in seen)

    check(ours, theirs)
    check(theirs, ours)


@pytest.mark.parametrize("prompt", [[], 3, [3], (WARRIOR, CAT)])
@pytest.mark.parametrize("value", ["auto", None])
def test_what_is_no_prompt_is_refused(pipe, prompt, value):
    with pytest.raises(ValueError, match=r"prompt is .* give a text, or a list of texts"):
        draw(pipe, prompt, value=value)


# --- embeddings, guidance, and what the base takes ----------------------------------------------------------------------


def test_given_embeddings_take_values_by_the_text_beside_them(pipe, base):
    given = {"prompt_embeds": embeds(base, WARRIOR), "negative_prompt_embeds": embeds(base, "a dog")}
    assert np.array_equal(draw(pipe, **given, value=None), draw(base, **given))
    ours = draw(pipe, WARRIOR, **given)
    np.testing.assert_allclose(ours, draw(pipe, WARRIOR, negative_prompt="a dog"), atol=1e-4)
    assert np.abs(ours - draw(base, **given)).max() > 1e-3
    with pytest.raises(ValueError, match="pass `prompt` beside `prompt_embeds`"):
        draw(pipe, **given)
    for prompt in (WARRIOR, CAT):  # whether a value applies or not
        with pytest.raises(ValueError, match="make 1 images and the prompts 2"):
            draw(pipe, [prompt] * 2, **given)


def test_embeddings_without_guidance_take_values(pipe):
    given = {"prompt_embeds": embeds(pipe, WARRIOR), "guidance_scale": 1.0}
    np.testing.assert_allclose(draw(pipe, WARRIOR, **given), draw(pipe, WARRIOR, guidance_scale=1.0), atol=1e-4)


@pytest.mark.parametrize("skip", [0, 1])
def test_clip_skip_works_where_diffusers_own_fails(pipe, base, skip):
    with torch.no_grad():
        states = base.text_encoder(tokenize(base.tokenizer, [WARRIOR]), output_hidden_states=True).hidden_states
        final = getattr(base.text_encoder, "text_model", base.text_encoder).final_layer_norm
        expected = draw(base, prompt_embeds=final(states[-(skip + 1)]))
    assert np.array_equal(draw(pipe, WARRIOR, value=None, clip_skip=skip), expected)
    assert np.abs(draw(pipe, WARRIOR, clip_skip=skip) - expected).max() > 1e-3
    assert "text_model" not in pipe.text_encoder.__dict__


def test_several_images_several_generators_and_a_negative_prompt_go_together(pipe):
    generators = [seeded(i) for i in range(4)]
    out = pipe([WARRIOR, CAT], negative_prompt=["a dog"] * 2, num_images_per_prompt=2, generator=generators, **FAST)
    for i, prompt in enumerate([WARRIOR, WARRIOR, CAT, CAT]):
        single = draw(pipe, prompt, negative_prompt="a dog", generator=seeded(i))[0]
        np.testing.assert_allclose(out.images[i], single, atol=2e-4)
    assert [(d.seed, d.image) for d in out.decisions] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    batch = pipe(WARRIOR, num_images_per_prompt=2, generator=seeded(7), **FAST).decisions
    assert [(d.seed, d.image) for d in batch] == [(7, 0), (7, 1)] and pipe(WARRIOR, **FAST).decisions[0].seed is not None


# --- words ------------------------------------------------------------------------------------------------------------------


def test_of_a_long_prompt_the_tail_is_cut_and_the_statement_is_whole(pipe, caplog):
    start = "a doctor in a red hat " * 15
    one, two = (draw(pipe, start + end, value=BLOODY) for end in ("a cat", "a dog in a castle"))
    assert np.array_equal(one, two)
    with caplog.at_level(logging.WARNING):
        draw(pipe, start + "a cat", value=BLOODY)
    assert "does not read its end" in caplog.text and "a cat" in caplog.text
    text = value_text(BLOODY, start)
    ids = tokenize(pipe.tokenizer, [text])[0].tolist()
    statement = pipe.tokenizer(BLOODY, add_special_tokens=False).input_ids
    assert ids[1 : 1 + len(statement)] == statement and ids[-1] == pipe.tokenizer.eos_token_id
    kept = pipe.tokenizer.decode(ids[1:-1])
    assert f"{kept} {cut_off(pipe.tokenizer, text)}".split() == pipe.tokenizer.decode(pipe.tokenizer(text).input_ids[1:-1]).split()
    assert cut_off(pipe.tokenizer, value_text(BLOODY, CAT)) == ""


@pytest.mark.parametrize("vectors", [1, 3])
def test_words_of_textual_inversion_reach_the_prompt_and_not_the_value_encoder(pipe, base, tmp_path, vectors):
    save_file({"<thing>": torch.randn(vectors, 32, generator=seeded(1))}, tmp_path / "thing.safetensors")
    for each in (pipe, base):
        each.load_textual_inversion(tmp_path, weight_name="thing.safetensors", token="<thing>")
    prompt = "a photo of a <thing> doctor"
    assert len(pipe.tokenizer) > pipe.value_encoder.config.vocab_size
    assert np.array_equal(draw(pipe, prompt, value=None), draw(base, prompt))
    assert np.abs(draw(pipe, prompt, value=BLOODY) - draw(base, prompt)).max() > 1e-3
    with torch.no_grad():
        texts = [value_text(BLOODY, text) for text in (prompt, "a photo of a doctor", "<thing> " * 90 + "a cat", "a cat")]
        tokens = encode_value(pipe.value_encoder, pipe.tokenizer, texts)
    assert torch.equal(tokens[0], tokens[1]) and torch.equal(tokens[2], tokens[3])
    pipe.value_encoder.save_pretrained(tmp_path / "encoder")
    for source in (tmp_path / "encoder", tmp_path / "encoder" / "model.safetensors"):  # it still fits
        pipe.load_value_encoder(source)


# --- the layout of the official script -------------------------------------------------------------------------------------


def official(base, encoder, text, statement, negative="", generator=None, guidance_scale=7.5):
    """As the published inference script conditions, written out: no padding, cut at 76, the unconditional text padded to as many."""
    tokenizer = base.tokenizer
    ids = tokenizer(text, truncation=True, max_length=76, return_tensors="pt").input_ids
    with torch.no_grad():
        read = tokenizer(
            f"{statement}, {text}", padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        ).input_ids
        value = encoder(read).last_hidden_state[:, [read[0].tolist().index(tokenizer.eos_token_id)]]
        positive = torch.cat([value, base.text_encoder(ids)[0]], dim=1)
        length = positive.shape[1]
        empty = tokenizer(negative, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        unconditional = base.text_encoder(empty)[0]
    given = {"prompt_embeds": positive, "negative_prompt_embeds": unconditional, "guidance_scale": guidance_scale}
    return draw(base, **given, generator=generator)


@pytest.fixture
def unpadded(tiny_checkpoint, pipe):
    made = LiVOPipeline.from_pretrained(
        tiny_checkpoint,
        value_encoder=pipe.value_encoder,
        value_principles=PRINCIPLES,
        prompt_padding="do_not_pad",
        dtype=torch.float32,
    )
    made.retriever._embedder = pipe.retriever._embedder
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(
    ("prompt", "kwargs"),
    [
        (WARRIOR, {}),
        (WARRIOR, {"negative": "a dog in a forest"}),
        ("a doctor in a red hat " * 30, {}),
        (WARRIOR, {"guidance_scale": 1.0}),
    ],
)
def test_without_padding_the_images_are_the_official_scripts_bit_for_bit(unpadded, base, prompt, kwargs):
    expected = official(base, unpadded.value_encoder, prompt, BLOODY, generator=seeded(3), **kwargs)
    negative = {"negative_prompt": kwargs.pop("negative")} if "negative" in kwargs else {}
    assert np.array_equal(draw(unpadded, prompt, value="bloody", generator=seeded(3), **negative, **kwargs), expected)
    padded = LiVOPipeline.from_pipe(unpadded, prompt_padding="max_length")
    padded.set_progress_bar_config(disable=True)
    assert np.abs(draw(padded, prompt, value="bloody", generator=seeded(3), **negative, **kwargs) - expected).max() > 1e-4


def test_without_padding_the_rows_of_a_batch_still_equal_their_single_runs_and_no_value_is_the_base(unpadded, base):
    prompts = [WARRIOR, "a photo of a doctor in a red hat in a castle", CAT, WARRIOR]
    values, scales = ["bloody", ("bloody", "calm pictures"), None, "bloody"], [1.0, 0.5, 1.0, 0.0]
    out = unpadded(prompts, value=values, value_scale=scales, generator=[seeded(i) for i in range(4)], **FAST)
    for i, (prompt, value, scale) in enumerate(zip(prompts, values, scales, strict=True)):
        single = draw(unpadded, prompt, value=value, value_scale=scale, generator=seeded(i))[0]
        np.testing.assert_allclose(out.images[i], single, atol=2e-4)
    for i in (2, 3):
        assert np.array_equal(
            draw(unpadded, prompts[i], value=None, generator=seeded(i)), draw(base, prompts[i], generator=seeded(i))
        )
        np.testing.assert_allclose(out.images[i], draw(base, prompts[i], generator=seeded(i))[0], atol=2e-4)


def test_what_no_padding_cannot_do_is_refused(unpadded):
    with pytest.raises(ValueError, match="need prompt_padding 'max_length'"):
        draw(unpadded, WARRIOR, value_end=0.5)
    with pytest.raises(ValueError, match="needs texts"):
        draw(unpadded, WARRIOR, prompt_embeds=embeds(unpadded, WARRIOR))


def test_the_published_layout_loads_and_draws_as_its_own_weights(unpadded, base, tmp_path):
    """A `value_encoder` subfolder, keys under `text_model.`, `eos_token_id` 2, and a position buffer, as on the hub."""
    import json

    encoder = unpadded.value_encoder
    state = {f"text_model.{key.removeprefix('text_model.')}": value.contiguous() for key, value in encoder.state_dict().items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    folder = tmp_path / "value_encoder"
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {k: v for k, v in encoder.config.to_dict().items() if not k.startswith("value_")}
    config |= {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1, "architectures": ["CLIPTextModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    expected = official(base, encoder, WARRIOR, BLOODY, generator=seeded(5))
    for source in (tmp_path, folder, folder / "model.safetensors"):
        unpadded.load_value_encoder(source)
        assert np.array_equal(draw(unpadded, WARRIOR, value="bloody", generator=seeded(5)), expected)
    assert isinstance(base, StableDiffusionPipeline) and not isinstance(base, LiVOPipeline)
