import logging

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from livo import LiVOPipeline, ValuePrinciple, load_principles
from livo.pipelines.ledger import ValueLedger
from livo.pipelines.stable_diffusion import PRINCIPLES_FILE
from livo.principles.principle import bundled_principles
from tests.conftest import PRINCIPLES, WordEmbedder, gap

FAST = {"num_inference_steps": 3, "output_type": "np"}
DOCTOR, WARRIOR, CAT = "a photo of a doctor", "a bloody warrior", "a cat"


def seeded(*seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators if len(generators) > 1 else generators[0]


def images(pipe, *args, **kwargs):
    return pipe(*args, **{**FAST, **kwargs}).images


# --- promise 1: the backbone is never changed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"negative_prompt": "a dog", "num_images_per_prompt": 2},
        {"guidance_scale": 1.0},
        {"guidance_scale": 3.0, "guidance_rescale": 0.5, "eta": 0.5},
    ],
)
def test_with_no_value_the_images_are_the_base_pipelines_bit_for_bit(pipe, base, kwargs):
    expected = images(base, DOCTOR, generator=seeded(0), **kwargs)
    assert np.array_equal(images(pipe, DOCTOR, value=None, generator=seeded(0), **kwargs), expected)
    assert np.array_equal(images(pipe, DOCTOR, value="bloody", value_scale=0, generator=seeded(0), **kwargs), expected)
    assert not np.array_equal(images(pipe, DOCTOR, value="bloody", generator=seeded(0), **kwargs), expected)


def test_an_abstaining_retriever_gives_the_base_pipelines_images(pipe, base):
    out = pipe(CAT, generator=seeded(0), **FAST)
    assert out.decisions[0].values == () and "no principle applies" in out.decisions[0].reason
    assert np.array_equal(out.images, images(base, CAT, generator=seeded(0)))


def test_an_unloaded_encoder_gives_the_base_pipelines_images_and_says_so(pipe, base, caplog):
    pipe.unload_value_encoder()
    with caplog.at_level(logging.WARNING):
        out = pipe(WARRIOR, generator=seeded(0), **FAST)
    assert np.array_equal(out.images, images(base, WARRIOR, generator=seeded(0)))
    assert "no value encoder" in caplog.text and out.decisions[0].reason == "no value encoder is loaded"


def test_the_weights_of_the_backbone_and_the_global_seed_are_untouched_by_a_call(pipe):
    before = {k: v.clone() for m in (pipe.unet, pipe.vae, pipe.text_encoder) for k, v in m.state_dict().items()}
    torch.manual_seed(5)
    images(pipe, DOCTOR, value="gender_equality", num_images_per_prompt=2, generator=seeded(0))
    assert torch.initial_seed() == 5 and torch.equal(torch.rand(1), torch.rand(1, generator=seeded(5)))
    after = {k: v for m in (pipe.unet, pipe.vae, pipe.text_encoder) for k, v in m.state_dict().items()}
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_an_error_within_a_call_leaves_the_base_pipeline_behind(pipe, base):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images(pipe, WARRIOR, callback_on_step_end=stop)
    assert np.array_equal(images(pipe, CAT, generator=seeded(0)), images(base, CAT, generator=seeded(0)))


# --- promise 2: the unconditional branch, and mixed batches ---------------------------------------------------------------


def test_the_value_reaches_the_conditional_half_alone(pipe):
    """At guidance g the output is u + g (c - u): with c's weight at 0 the token must not matter."""
    seen = []
    hook = pipe.unet.register_forward_hook(lambda *a: seen.append(a[-1][0].chunk(2)))
    for value in (None, "bloody"):
        images(pipe, WARRIOR, value=value, num_inference_steps=1, generator=seeded(0))
    hook.remove()
    (u_base, c_base), (u_value, c_value) = seen
    assert gap(u_value, u_base) < 2e-5 and gap(c_value, c_base) > 1e-3


def test_each_row_of_a_mixed_batch_equals_its_single_run(pipe):
    prompts = [DOCTOR, WARRIOR, CAT, DOCTOR]
    values = ["any statement", "auto", "auto", None]
    scales = [0.5, 1.0, 1.0, 1.0]
    mixed = pipe(prompts, value=values, value_scale=scales, generator=seeded(1, 2, 3, 4), **FAST)
    assert [bool(d.applied_values) for d in mixed.decisions] == [True, True, False, False]
    for i, prompt in enumerate(prompts):
        single = images(pipe, prompt, value=values[i], value_scale=scales[i], generator=seeded(i + 1))
        assert np.abs(mixed.images[i] - single[0]).max() < 1e-4


@pytest.mark.parametrize("negative", ["", "a dog", "blurry " * 120])
def test_both_halves_are_seventy_eight_long_whatever_the_prompts(pipe, negative):
    lengths = []
    hook = pipe.unet.register_forward_pre_hook(lambda m, a, k: lengths.append(k["encoder_hidden_states"].shape), with_kwargs=True)
    images(pipe, "a bloody warrior " * 30, value="bloody", negative_prompt=negative)
    hook.remove()
    assert set(lengths) == {(2, 78, 32)}


def test_values_steer_without_guidance_too(pipe):
    off, on = (images(pipe, WARRIOR, value=v, guidance_scale=1.0, generator=seeded(0)) for v in (None, "bloody"))
    assert np.abs(off - on).max() > 1e-3


# --- promise 3: alignment is never lost silently --------------------------------------------------------------------------


def test_what_cannot_be_honoured_is_an_error_that_says_what_to_do(pipe):
    with pytest.raises(ValueError, match=r"no principle has the id 'gender_equalty'.*gender_equality, bloody"):
        pipe(DOCTOR, value="gender_equalty", **FAST)
    with pytest.raises(ValueError, match="2 entries for 1 prompts"):
        pipe(DOCTOR, value=["bloody", None], **FAST)
    with pytest.raises(ValueError, match="value_scale is -1"):
        pipe(DOCTOR, value="bloody", value_scale=-1, **FAST)
    for nothing in (" ", "none", 5):
        with pytest.raises(ValueError, match="value is"):
            pipe(DOCTOR, value=nothing, **FAST)
    with pytest.raises(ValueError, match="no principle has the id 'blody'"):
        pipe(DOCTOR, value="blody", **FAST)
    with pytest.raises(ValueError, match="1 generators for 2 images"):
        pipe(DOCTOR, num_images_per_prompt=2, generator=[torch.Generator()], **FAST)
    with pytest.raises(ValueError, match="value_scale is 'strong'"):
        pipe(DOCTOR, value_scale="strong", **FAST)
    with pytest.raises(ValueError, match="needs the text of the prompt"):
        pipe(prompt_embeds=torch.zeros(1, 77, 32), **FAST)
    pipe.retriever = None
    with pytest.raises(ValueError, match="load_value_principles"):
        pipe(DOCTOR, **FAST)
    pipe.unload_value_encoder()
    with pytest.raises(ValueError, match="load_value_encoder"):
        pipe(DOCTOR, value="a statement", **FAST)


def test_a_statement_that_the_encoder_was_not_trained_with_is_used_and_warned_of(pipe, caplog):
    pipe.value_encoder.config.value_statements = ["gender equality"]
    with caplog.at_level(logging.WARNING):
        out = pipe(DOCTOR, value="kindness to all", **FAST)
    assert out.decisions[0].applied_values and "was not trained with 'kindness to all'" in caplog.text


def test_a_failed_load_keeps_what_was_there(pipe, tmp_path):
    encoder, principles = pipe.value_encoder, pipe.principles
    with pytest.raises(FileNotFoundError):
        pipe.load_value_encoder(tmp_path / "absent.safetensors")
    with pytest.raises(ValueError):
        pipe.load_value_principles(tmp_path / "absent.yaml")
    assert pipe.value_encoder is encoder and pipe.principles is principles


def test_saving_and_loading_brings_everything_back(pipe, tmp_path):
    pipe.value_encoder.config.value_statements = ["gender equality"]
    pipe.save_pretrained(tmp_path)
    again = LiVOPipeline.from_pretrained(tmp_path)
    again.retriever._embedder = WordEmbedder()
    again.set_progress_bar_config(disable=True)
    assert again.principles == PRINCIPLES and again.value_encoder.statements == ("gender equality",)
    assert np.array_equal(images(again, WARRIOR, generator=seeded(0)), images(pipe, WARRIOR, generator=seeded(0)))


def test_the_bundled_principles_come_back_whole_from_a_saved_pipeline(papertown, tmp_path):
    papertown.save_pretrained(tmp_path)
    assert load_principles(tmp_path / PRINCIPLES_FILE) == load_principles(bundled_principles())


def test_the_base_pipelines_files_are_saved_unchanged(pipe, tiny_checkpoint, tmp_path):
    pipe.save_pretrained(tmp_path)
    plain = StableDiffusionPipeline.from_pretrained(tiny_checkpoint).unet.state_dict()
    saved = StableDiffusionPipeline.from_pretrained(tmp_path).unet.state_dict()
    assert all(torch.equal(plain[key], saved[key]) for key in plain)


# --- values, rates and records --------------------------------------------------------------------------------------------


def test_principles_are_swapped_and_take_effect_at_once(pipe):
    assert pipe(DOCTOR, **FAST).decisions[0].values[0].id == "gender_equality"
    pipe.load_value_principles([ValuePrinciple(id="calm", statement="calm pictures", exemplars=(DOCTOR,))])
    (value,) = pipe(DOCTOR, **FAST).decisions[0].values
    assert value.id == "calm" and value.statement == "calm pictures" and value.applied


def test_the_token_goes_to_exactly_half_of_the_images_and_the_rest_equal_the_base(pipe, base):
    generators = seeded(*range(6))
    out = pipe(DOCTOR, num_images_per_prompt=6, generator=generators, **FAST)
    plain = images(base, DOCTOR, num_images_per_prompt=6, generator=seeded(*range(6)))
    applied = [d.values[0].applied for d in out.decisions]
    assert sum(applied) == 3
    for on, ours, theirs in zip(applied, out.images, plain, strict=True):
        assert (np.abs(ours - theirs).max() < 1e-4) == (not on)


def test_the_assignment_repeats_with_the_seed_and_changes_with_it(pipe):
    def applied(seed):
        return [d.values[0].applied for d in pipe(DOCTOR, num_images_per_prompt=10, generator=seeded(seed), **FAST).decisions]

    assert applied(0) == applied(0)
    assert len({tuple(applied(seed)) for seed in range(4)}) > 1


def test_a_generator_that_goes_on_gives_single_images_the_token_at_the_rate(pipe):
    generator = seeded(0)
    quick = {"num_inference_steps": 1, "output_type": "latent"}
    hits = [pipe(DOCTOR, generator=generator, **quick).decisions[0].values[0].applied for _ in range(40)]
    assert 10 <= sum(hits) <= 30


def test_a_statement_that_belongs_to_a_principle_is_that_principle(pipe):
    out = pipe(DOCTOR, value="gender equality", num_images_per_prompt=4, **FAST)
    assert {d.values[0].id for d in out.decisions} == {"gender_equality"} and sum(d.values[0].applied for d in out.decisions) == 2


def test_every_principle_that_a_prompt_calls_for_acts_on_its_images(pipe):
    calm = ValuePrinciple(id="calm", statement="calm", kind="debias", apply_rate=1.0, exemplars=("a doctor",))
    pipe.load_value_principles([*PRINCIPLES, calm])
    decisions = pipe(DOCTOR, num_images_per_prompt=2, **FAST).decisions
    assert {tuple(value.id for value in d.values) for d in decisions} == {("gender_equality", "calm")}
    assert [sum(d.values[i].applied for d in decisions) for i in (0, 1)] == [1, 2]


def test_where_a_risk_is_found_debiasing_is_passed_over_and_named(pipe):
    calm = ValuePrinciple(id="calm", statement="calm", kind="debias", exemplars=("a bloody warrior",))
    pipe.load_value_principles([*PRINCIPLES, calm])
    (value,) = pipe(WARRIOR, **FAST).decisions[0].values
    assert value.id == "bloody" and value.reason.endswith("passed over for it: calm")


def test_a_fitted_retriever_is_saved_with_the_pipeline(pipe, tmp_path, monkeypatch):
    prompts = [f"a {risk} {who}" for risk in ("bloody", "calm") for who in ("cook", "pilot", "judge", "baker", "clown", "sailor")]
    pipe.retriever.fit(prompts, ["bloody"] * 6 + [None] * 6)
    pipe.save_pretrained(tmp_path)
    monkeypatch.setattr("livo.retrieval.retriever.load_embedder", lambda name: WordEmbedder())
    again = LiVOPipeline.from_pretrained(tmp_path)
    assert again.retriever.fitted and again.retriever.retrieve("a bloody nun") == pipe.retriever.retrieve("a bloody nun")


def test_several_values_on_one_prompt_equal_the_tokens_one_behind_the_other(pipe):
    """Rows with one, two and no tokens in a batch equal their single runs; the second token makes a difference."""
    both = ("bloody", "calm considered appropriate")
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    out = pipe([DOCTOR] * 3, value=[both, "bloody", None], generator=generators, **FAST)
    singles = [
        images(pipe, DOCTOR, value=value, generator=torch.Generator().manual_seed(seed))[0]
        for seed, value in enumerate((both, "bloody", None))
    ]
    for ours, single in zip(out.images, singles, strict=True):
        np.testing.assert_allclose(ours, single, atol=2e-4)
    alone = images(pipe, DOCTOR, value="bloody", generator=torch.Generator().manual_seed(0))[0]
    assert np.abs(alone - singles[0]).max() > 1e-3
    assert [len(d.values) for d in out.decisions] == [2, 1, 0]


def test_a_mapping_gives_each_principle_its_scale(pipe):
    pipe.load_value_principles([*PRINCIPLES, TONES])
    decision = pipe(DOCTOR, value=("bloody", "tones"), value_scale={"bloody": 0.3}, **FAST).decisions[0]
    assert [value.scale for value in decision.values] == [0.3, 1.0]
    with pytest.raises(ValueError, match="value_scale names 'blody'"):
        pipe(DOCTOR, value="bloody", value_scale={"blody": 0.3}, **FAST)


def test_a_tuple_of_values_that_cannot_act_together_is_refused(pipe):
    for wrong in ((), ("bloody", None), ("bloody", "bloody"), ("auto", "bloody")):
        with pytest.raises(ValueError, match="a tuple names principles"):
            pipe(DOCTOR, value=wrong, **FAST)


@pytest.mark.parametrize("scale", [np.float32(0.5), torch.tensor(0.5), 1])
def test_a_scale_may_be_any_number(pipe, scale):
    assert pipe(WARRIOR, value_scale=scale, **FAST).decisions[0].values[0].scale == float(scale)


def test_arguments_may_be_given_by_position_as_in_the_base(pipe, base):
    by_position = (WARRIOR, None, None, 3, None, None, 1.0, "a dog", 2)  # ..., steps, _, _, guidance, negative prompt, images
    out = pipe(*by_position, value=None, generator=seeded(0), output_type="np")
    assert len(out.decisions) == 2 and np.array_equal(out.images, base(*by_position, generator=seeded(0), output_type="np").images)


def test_every_image_has_its_decision(pipe):
    out = pipe([DOCTOR, CAT], num_images_per_prompt=2, value_scale=0.7, **FAST)
    assert [d.prompt for d in out.decisions] == [DOCTOR, DOCTOR, CAT, CAT]
    (first,) = out.decisions[0].values
    assert (first.id, first.statement, first.scale, first.nearest_exemplar) == ("gender_equality", "gender equality", 0.7, DOCTOR)
    assert first.score == pytest.approx(1.0) and first.threshold < 1
    images_, _, decisions = pipe(CAT, return_dict=False, **FAST)
    assert len(images_) == len(decisions) == 1


def test_the_default_scale_is_settable_and_a_call_overrides_it(pipe):
    full = images(pipe, WARRIOR, generator=seeded(0))
    pipe.set_value_scale(0.0)
    assert not pipe(WARRIOR, **FAST).decisions[0].applied_values
    assert np.array_equal(images(pipe, WARRIOR, value_scale=1.0, generator=seeded(0)), full)
    with pytest.raises(ValueError, match="value_scale"):
        pipe.set_value_scale(float("nan"))


def test_half_precision_runs_and_stays_finite(tiny_checkpoint):
    pipe = LiVOPipeline.from_pretrained(tiny_checkpoint, value_principles=PRINCIPLES, dtype=torch.bfloat16)
    pipe.register_modules(value_encoder=pipe.text_encoder)
    pipe.set_progress_bar_config(disable=True)
    assert np.isfinite(images(pipe, WARRIOR, value="bloody")).all()


# --- directions ---------------------------------------------------------------------------------------------------------

TONES = ValuePrinciple(
    id="tones",
    kind="debias",
    statement="tones",
    attributes={c: f"a {c} one" for c in "abcde"},
    directions={c: f"tones, towards {c}" for c in "abcde"},
    exemplars=("a photo of a doctor",),
)


def test_each_image_gets_one_direction_and_equals_a_run_with_that_statement(pipe):
    pipe.load_value_principles([TONES])
    pipe.value_encoder.config.value_statements = list(TONES.directions.values())
    generators = [torch.Generator().manual_seed(seed) for seed in range(5)]
    out = pipe(DOCTOR, value="tones", num_images_per_prompt=5, generator=generators, **FAST)
    values = [value for decision in out.decisions for value in decision.applied_values]
    assert sorted(value.direction for value in values) == list("abcde")
    for i, value in enumerate(values):
        assert value.statement == f"tones, towards {value.direction}" and value.id == "tones"
        single = images(pipe, DOCTOR, value=value.statement, generator=torch.Generator().manual_seed(i))
        np.testing.assert_allclose(out.images[i], single[0], atol=2e-4)


def test_an_encoder_without_the_directions_gets_the_plain_statement_and_the_record_says_so(pipe):
    pipe.load_value_principles([TONES])
    for known in (None, ["tones"], ["tones", "tones, towards a"]):
        pipe.value_encoder.config.value_statements = known
        decisions = pipe(DOCTOR, value="tones", num_images_per_prompt=4, **FAST).decisions
        values = [value for decision in decisions for value in decision.values]
        assert [v.statement for v in values] == ["tones"] * 4 and sum(v.applied for v in values) == 2
        assert "not trained with its directions" in values[0].reason and values[0].direction is None


def test_single_image_calls_meet_the_target_together_with_a_ledger(pipe):
    pipe.load_value_principles([TONES])
    pipe.value_encoder.config.value_statements = list(TONES.directions.values())
    ledger, quick = ValueLedger(), {"num_inference_steps": 1, "output_type": "latent"}
    given = [pipe(DOCTOR, value="tones", ledger=ledger, **quick).decisions[0].values[0].direction for _ in range(10)]
    assert sorted(given) == sorted("aabbccddee")
    before = ledger.counts("tones")
    pipe(DOCTOR, value="tones", value_scale=0, ledger=ledger, **quick)  # nothing is given
    assert ledger.counts("tones") == before
    pipe.value_encoder.config.value_statements = None
    plain = [pipe(WARRIOR, value="tones", ledger=ledger, **quick).decisions[0].values[0].applied for _ in range(10)]
    assert sum(plain) == 5


def test_single_images_of_many_prompts_meet_the_target_across_the_principle(pipe, tmp_path):
    pipe.load_value_principles([TONES])
    pipe.value_encoder.config.value_statements = list(TONES.directions.values())
    ledger, quick = ValueLedger(tmp_path / "shares.sqlite", across="principle"), {"num_inference_steps": 1, "output_type": "latent"}

    def fail(*_):
        raise KeyboardInterrupt

    for i in range(10):
        with pytest.raises(KeyboardInterrupt):
            pipe(f"person {i}", value="tones", ledger=ledger, callback_on_step_end=fail, **quick)
        assert sum(ledger.counts("tones").values()) == i  # only images that are there count
        pipe(f"person {i}", value="tones", ledger=ledger, **quick)
    assert ledger.counts("tones") == dict.fromkeys("abcde", 2)
    with pytest.raises(ValueError, match=r"give a ValueLedger, such as ValueLedger\('shares.sqlite'\)"):
        pipe(DOCTOR, ledger="shares.sqlite", **quick)


def test_one_seed_gives_different_prompts_different_directions(pipe):
    pipe.load_value_principles([TONES])
    pipe.value_encoder.config.value_statements = list(TONES.directions.values())
    texts, quick = [f"person {i}" for i in range(16)], {"num_inference_steps": 1, "output_type": "latent"}

    def directions(prompts, generator):
        return [d.values[0].direction for d in pipe(prompts, value="tones", generator=generator, **quick).decisions]

    single = [directions(text, torch.Generator().manual_seed(0))[0] for text in texts]
    assert len(set(single)) == 5 and max(map(single.count, "abcde")) <= 8
    assert directions(texts, torch.Generator().manual_seed(0)) == single  # whatever else is in the batch
    assert directions(texts[::-1], [torch.Generator().manual_seed(0) for _ in texts]) == single[::-1]
    twice = directions([DOCTOR] * 40, torch.Generator().manual_seed(0))
    assert set(twice) == set("abcde")  # a text that comes again draws again


def test_a_calibration_beside_the_encoder_changes_the_shares_and_stands_in_the_record(pipe, tmp_path):
    pipe.load_value_principles([TONES])
    pipe.value_encoder.config.value_statements = list(TONES.directions.values())
    confusion = np.eye(5)
    confusion[0] = (0.5, 0.5, 0, 0, 0)  # half of what goes towards a comes out as b
    record = {"classes": list("abcde"), "confusion": confusion.tolist(), "images": 50, "judge": "judge@1", "prompts": 1}
    pipe.value_encoder.config.value_calibration = {"tones": record}
    pipe.value_encoder.save_pretrained(tmp_path)
    pipe.load_value_encoder(tmp_path)  # it is saved and loaded with the encoder
    decisions = pipe(DOCTOR, value="tones", num_images_per_prompt=10, num_inference_steps=1, output_type="latent").decisions
    given = [decision.values[0].direction for decision in decisions]
    assert [given.count(name) for name in "abcde"] == [4, 0, 2, 2, 2] and "calibrated by judge@1" in decisions[0].values[0].reason


def test_a_target_that_no_direction_reaches_is_said_aloud(pipe, caplog):
    pipe.load_value_principles([TONES])
    pipe.value_encoder.config.value_statements = list(TONES.directions.values())
    confusion = np.tile(np.eye(5)[0], (5, 1)).tolist()
    record = {"classes": list("abcde"), "confusion": confusion, "images": 50, "judge": "judge@1", "prompts": 1}
    pipe.value_encoder.config.value_calibration = {"tones": record}
    with caplog.at_level(logging.WARNING):
        decision = pipe(DOCTOR, value="tones", num_inference_steps=1, output_type="latent").decisions[0]
    assert "miss the target by 80%" in caplog.text and "no nearer to the target than 80%" in decision.values[0].reason
