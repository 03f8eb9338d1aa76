"""Baselines against the base bit for bit, against their closed forms, and against diffusers' own pipelines where it has them."""

import copy

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from livo.baselines import (
    ConceptAblation,
    FairDiffusion,
    LoRA,
    NegativePrompt,
    SafeLatentDiffusion,
    UnifiedConceptEditing,
    WeightEdit,
)
from livo.baselines.weights import cross_attention, last_words
from livo.training.adapters import LoRAAdapter

PEOPLE = (("male person", "female person"),)
PROMPTS = ["a photo of a bloody doctor", "a photo of a nurse"]


def images(pipe, prompts=PROMPTS, steps=4, guidance=5.0, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    out = pipe(prompts, num_inference_steps=steps, guidance_scale=guidance, generator=generator, output_type="np", **kwargs)
    return out.images


def edits(pipe):
    """One of each kind that changes something."""
    weight = next(iter(cross_attention(pipe).items()))
    return [
        NegativePrompt("blood"),
        SafeLatentDiffusion("blood", warmup=1),
        FairDiffusion(PEOPLE, warmup=1),
        UnifiedConceptEditing.edit(pipe, erase={"bloody": ""}, debias={"doctor": {"female": 0.5}}),
        WeightEdit({weight[0]: weight[1] + 0.1}),
    ]


NOTHING = [
    lambda pipe: NegativePrompt(""),
    lambda pipe: SafeLatentDiffusion(""),
    lambda pipe: SafeLatentDiffusion("blood", scale=0.0),
    lambda pipe: FairDiffusion(()),
    lambda pipe: FairDiffusion(PEOPLE, scale=0.0),
    lambda pipe: UnifiedConceptEditing.edit(pipe),
    lambda pipe: WeightEdit({}),
    lambda pipe: list(ConceptAblation.train(pipe, [("a bloody doctor", "a doctor")], None, steps=0))[-1],
]


@pytest.mark.parametrize("make", NOTHING)
def test_an_empty_edit_equals_the_base_bit_for_bit(base, make):
    plain = images(base)
    with make(base).on(base):
        assert np.array_equal(images(base), plain)


def test_every_edit_changes_the_images_and_is_gone_afterwards_bit_for_bit(base):
    plain = images(base)
    tensors = {name: parameter.data_ptr() for name, parameter in base.unet.named_parameters()}
    for edit in edits(base):
        for _ in range(2):
            with edit.on(base):
                changed = images(base)
            assert np.isfinite(changed).all() and not np.array_equal(changed, plain), edit
        with pytest.raises(RuntimeError), edit.on(base):
            raise RuntimeError
        assert np.array_equal(images(base), plain), edit
        assert (
            "forward" not in vars(base.unet) and "encode_prompt" not in vars(base) and "set_timesteps" not in vars(base.scheduler)
        )
        assert tensors == {name: parameter.data_ptr() for name, parameter in base.unet.named_parameters()}
        assert edit.record()["method"]


def test_a_negative_prompt_gives_way_to_one_in_the_call(base, pipe, tiny_xl):
    for each, more in ((base, {}), (pipe, {"value": None}), (tiny_xl, {})):
        wanted = images(each, negative_prompt=["blood"] * 2, **more)
        with NegativePrompt("blood").on(each):
            assert np.array_equal(images(each, **more), wanted)
        with NegativePrompt("a cat").on(each):
            assert np.array_equal(images(each, negative_prompt=["blood"] * 2, **more), wanted)
        assert not np.array_equal(images(each, **more), wanted)


def test_edits_run_on_image_to_image_too(base):
    pipe = StableDiffusionImg2ImgPipeline.from_pipe(base, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    start = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    plain = images(pipe, image=start, strength=0.9)
    for edit in edits(pipe):
        with edit.on(pipe):
            assert not np.array_equal(images(pipe, image=start, strength=0.9), plain), edit
        assert np.array_equal(images(pipe, image=start, strength=0.9), plain)


def test_edits_run_on_sdxl_too(tiny_xl):
    pipe = tiny_xl
    plain = images(pipe)
    for edit in edits(pipe):
        with edit.on(pipe):
            assert not np.array_equal(images(pipe), plain), edit
        assert np.array_equal(images(pipe), plain)


@pytest.mark.parametrize("edit", [SafeLatentDiffusion("blood"), FairDiffusion(PEOPLE), NegativePrompt("blood")])
def test_guidance_edits_refuse_what_they_cannot_act_on(base, edit):
    with edit.on(base), pytest.raises(ValueError, match="guidance_scale"):
        images(base, guidance=1.0)


@pytest.fixture
def attentive(base):
    """The base with louder cross-attention, so that its images depend on the words by more than rounding."""
    for name, parameter in base.unet.named_parameters():
        if any(layer in name for layer in ("attn2.to_q", "attn2.to_v", "attn2.to_out")):
            parameter.data.mul_(30)
    return base


@pytest.mark.parametrize("name", ["medium", "strong", "max"])
def test_safe_latent_diffusion_equals_diffusers_pipeline(attentive, name):
    from diffusers import StableDiffusionPipelineSafe

    base = attentive
    edit = SafeLatentDiffusion.preset("blood", name)
    parts = {key: value for key, value in base.components.items() if key != "image_encoder"}
    theirs = StableDiffusionPipelineSafe(**parts, requires_safety_checker=False)
    theirs.safety_concept = "blood"
    theirs.set_progress_bar_config(disable=True)
    wanted = images(
        theirs,
        steps=12,
        sld_guidance_scale=edit.scale,
        sld_warmup_steps=edit.warmup,
        sld_threshold=edit.threshold,
        sld_momentum_scale=edit.momentum_scale,
        sld_mom_beta=edit.momentum,
    )
    with edit.on(base):
        found = images(base, steps=12)
    assert np.abs(found - images(base, steps=12)).max() > 0.01
    np.testing.assert_allclose(found, wanted, atol=5e-4)


def test_fair_diffusion_equals_diffusers_semantic_guidance(attentive):
    from diffusers import SemanticStableDiffusionPipeline

    base = attentive
    parts = {key: value for key, value in base.components.items() if key != "image_encoder"}
    theirs = SemanticStableDiffusionPipeline(**parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    edit = FairDiffusion(PEOPLE, warmup=3)
    with edit.on(base):
        first, second = (images(base, PROMPTS[:1], steps=8) for _ in range(2))
    assert np.abs(first - second).max() > 0.05
    for found, reverse in ((first, [False, True]), (second, [True, False])):
        wanted = images(
            theirs,
            PROMPTS[:1],
            steps=8,
            editing_prompt=list(PEOPLE[0]),
            reverse_editing_direction=reverse,
            edit_guidance_scale=edit.scale,
            edit_threshold=edit.quantile,
            edit_warmup_steps=edit.warmup,
            edit_momentum_scale=edit.momentum_scale,
            edit_mom_beta=edit.momentum,
        )
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_fair_diffusion_takes_every_combination_of_classes_in_turn():
    edit = FairDiffusion((("male person", "female person"), ("white person", "asian person", "black person")))
    rows = [tuple(edit.chosen(row)) for row in range(12)]
    assert len(set(rows[:6])) == 6 and rows[:6] == rows[6:]
    assert edit.concepts(1) == ["female person", "male person", "white person"]


def test_a_velocity_is_edited_as_the_same_noise_would_be(papertown):
    """On a v-prediction backbone the term is that of eps: with alpha_t left out this differs."""
    import dataclasses

    seen = []

    @dataclasses.dataclass(frozen=True)
    class Probe(SafeLatentDiffusion):
        def term(self, step, empty, prompt, concepts, scale, memory, rows):
            seen.append((prompt - empty).abs().mean().item())
            return torch.zeros_like(empty)

    with Probe("blood").on(papertown):
        papertown(PROMPTS, value=None, num_inference_steps=3, guidance_scale=5.0, generator=torch.Generator().manual_seed(0))
    assert seen[0] < 1e-2 and seen[-1] > 5 * seen[0]  # no noise is left to disagree about where the image is all noise


def test_uce_equals_a_least_squares_solution(base):
    edit = UnifiedConceptEditing.edit(
        base,
        erase={"bloody": ""},
        debias={"doctor": {"male": -0.3, "female": 0.3}},
        preserve=["nurse"],
        ridge=0.5,
        preserve_scale=2.0,
    )
    empty, bloody, doctor, male, female, nurse = (
        last_words(base, ["", "bloody", "doctor", "male", "female", "nurse"]).double().numpy()
    )
    for name, own in cross_attention(base).items():
        own = own.double().numpy()
        inputs = [(1.0, bloody, own @ empty), (1.0, doctor, own @ (doctor - 0.3 * male + 0.3 * female)), (2.0, nurse, own @ nurse)]
        rows = [np.sqrt(0.5) * np.eye(own.shape[1])] + [np.sqrt(w) * c[None] for w, c, _ in inputs]
        wanted = [np.sqrt(0.5) * own.T] + [np.sqrt(w) * v[None] for w, _, v in inputs]
        solution = np.linalg.lstsq(np.concatenate(rows), np.concatenate(wanted), rcond=None)[0].T
        np.testing.assert_allclose(edit.weights[name].numpy(), solution, atol=1e-5)


def test_the_debias_loop_moves_weights_until_the_shares_are_met(base):
    shares = {"doctor": 0.9, "nurse": 0.5}
    asked = []

    def observe(concept):
        asked.append(concept)
        male = shares[concept] - 0.2 * asked.count("doctor") * (concept == "doctor") + 0.2 * (concept == "doctor")
        return {"male": male, "female": 1 - male}

    found = list(UnifiedConceptEditing.debias(base, observe, ["doctor", "nurse"], [{"male": 0.5, "female": 0.5}]))
    assert asked == ["doctor", "nurse", "doctor", "doctor"]  # 0.9, 0.7, 0.5: a nurse that is even is left alone
    assert len(found) == 2 and found[-1].settings["debias"]["doctor"] == pytest.approx({"male": -0.6, "female": 0.6})


def test_concept_ablation_draws_target_as_anchor_and_resumes(base, tmp_path):
    base.unet.requires_grad_(False)
    pairs = [("a bloody doctor", "a doctor")]
    options = {"steps": 60, "lr": 2e-2, "batch": 4, "images": 2, "sampler_steps": 3}
    *records, edit = ConceptAblation.train(base, pairs, tmp_path / "run", **options)
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert set(edit.weights) == set(cross_attention(base)) and not any(p.requires_grad for p in base.unet.parameters())
    again = list(ConceptAblation.train(base, pairs, tmp_path / "run", **options))[-1]
    assert all(weight.equal(edit.weights[name]) for name, weight in again.weights.items())
    edit.save(tmp_path / "edit.safetensors")
    assert ConceptAblation.load(tmp_path / "edit.safetensors").record()["hash"] == edit.record()["hash"]


def test_a_folder_of_another_ablation_is_refused(base, tmp_path):
    settings = {"steps": 1, "batch": 2, "images": 1, "sampler_steps": 2}
    list(ConceptAblation.train(base, [("a bloody doctor", "a doctor")], tmp_path, **settings))
    for pairs, more, what in (
        ([("a bloody nurse", "a nurse")], {}, "pairs"),
        ([("a bloody doctor", "a doctor")], {"lr": 1.0}, "lr"),
        ([("a bloody doctor", "a doctor")], {"guidance": 3.0}, "guidance"),
    ):
        with pytest.raises(ValueError, match=f"holds an ablation with other {what}: give another folder"):
            next(ConceptAblation.train(base, pairs, tmp_path, **settings, **more))


def test_files_that_are_no_weights_and_loras_of_another_width_are_told(base, tiny_xl, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"weights\.safetensors: no safetensors file"):
        WeightEdit.load(tmp_path / "weights.safetensors")
    adapter = LoRAAdapter(tiny_xl, 16, rank=2)
    adapter.save(tmp_path / "lora")
    plain = images(base)
    with pytest.raises(ValueError, match=r"attn1\.to_k\.lora_A\.weight belongs to no layer of this StableDiffusionPipeline"):
        LoRA.read(base, tmp_path / "lora")
    assert np.array_equal(images(base), plain)


def test_a_trained_lora_equals_the_pipeline_with_it_loaded(base, tmp_path):
    from livo.training.adapters import LoRAAdapter

    plain = images(base)
    other = type(base).from_pipe(base, dtype=torch.float32)
    other.register_modules(unet=copy.deepcopy(base.unet))
    adapter = LoRAAdapter(other, 16, rank=2)
    torch.manual_seed(0)
    with torch.no_grad():
        for _, parameter in adapter.trainable():
            parameter.add_(0.3 * torch.randn_like(parameter))
    adapter.save(tmp_path)
    names = list(dict(base.unet.named_parameters()))
    edit = LoRA.read(base, tmp_path)
    assert names == list(dict(base.unet.named_parameters())) and np.array_equal(images(base), plain)
    other.set_progress_bar_config(disable=True)
    with edit.on(base):
        np.testing.assert_allclose(images(base), images(other), atol=1e-4)
    assert np.array_equal(images(base), plain) and not np.array_equal(images(other), plain)


def test_an_edit_for_another_model_is_refused(base):
    with pytest.raises(ValueError, match="another model"), WeightEdit({"absent.weight": torch.zeros(2)}).on(base):
        pass
    name = next(iter(cross_attention(base)))
    with pytest.raises(ValueError, match="the UNet's is"), WeightEdit({name: torch.zeros(2, 2)}).on(base):
        pass


def test_a_lora_that_changes_the_text_encoder_too_is_refused_and_leaves_nothing(base, tmp_path):
    plain = images(base)
    shape = base.text_encoder.config.hidden_size
    key = "encoder.layers.0.self_attn.q_proj"
    layers = {f"{key}.lora_A.weight": torch.randn(2, shape), f"{key}.lora_B.weight": torch.randn(shape, 2)}
    base.save_lora_weights(tmp_path, text_encoder_lora_layers=layers)
    with pytest.raises(ValueError, match="text encoder too"):
        LoRA.read(base, tmp_path)
    assert np.array_equal(images(base), plain)
