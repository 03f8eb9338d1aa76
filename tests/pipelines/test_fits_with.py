"""What users already have: adapters, compilers, precisions, memory savers. Each against the diffusers pipeline with the same in it."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

import livo
from livo import LiVOPipeline
from livo.utils.hashing import _known
from tests.conftest import PRINCIPLES, WordEmbedder

WARRIOR, DOCTOR, CAT = "a bloody warrior", "a photo of a doctor", "a cat"
FAST = {"num_inference_steps": 2, "output_type": "np"}


def draw(pipe, *args, seed=0, **kwargs):
    return pipe(*args, generator=torch.Generator().manual_seed(seed), **{**FAST, **kwargs}).images


def check(pipe, base, tolerance=0.0, prompt=WARRIOR, **kwargs):
    """With no value the base's images, with a masked one too, with one others, and a mixed batch row by row as alone."""
    expected = draw(base, prompt, **kwargs)
    assert np.isfinite(expected).all()
    for off in ({"value": None}, {"value": "bloody", "value_scale": 0}):
        assert np.abs(draw(pipe, prompt, **off, **kwargs) - expected).max() <= tolerance
    on = draw(pipe, prompt, value="bloody", **kwargs)
    assert np.isfinite(on).all() and np.abs(on - expected).max() > max(1e-3, 2 * tolerance)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    mixed = pipe([prompt] * 2, value=["bloody", None], generator=generators, **FAST, **kwargs).images
    wide = max(tolerance, 3e-4)
    assert np.abs(mixed[0] - on[0]).max() <= wide and np.abs(mixed[1] - expected[0]).max() <= wide


@pytest.fixture
def both(pipe, base):
    return pipe, base


def lora(pipe):
    """Random low-rank updates of UNet and text encoder, as trainers save them."""
    generator = torch.Generator().manual_seed(4)
    state = {}
    for prefix, model in (("unet", pipe.unet), ("text_encoder", pipe.text_encoder)):
        for name, module in model.named_modules():
            if name.endswith(("to_q", "to_v", "q_proj", "v_proj")):
                stem = f"{prefix}.{name if prefix == 'unet' else 'text_model.' * (not name.startswith('text_model')) + name}"
                state[f"{stem}.lora_A.weight"] = torch.randn(4, module.in_features, generator=generator)
                state[f"{stem}.lora_B.weight"] = 0.3 * torch.randn(module.out_features, 4, generator=generator)
    return state


def test_lora(both):
    pipe, base = both
    before = draw(base, WARRIOR)
    state = lora(base)
    for each in both:
        each.load_lora_weights(dict(state))
    assert np.abs(draw(base, WARRIOR) - before).max() > 1e-3
    check(pipe, base)
    check(pipe, base, cross_attention_kwargs={"scale": 0.5})
    for each in both:
        each.fuse_lora()
    check(pipe, base)
    for each in both:
        each.unfuse_lora()
        each.unload_lora_weights()
    np.testing.assert_allclose(draw(pipe, WARRIOR, value=None), before, atol=1e-4)


def test_ip_adapter(both, tmp_path):
    from PIL import Image

    torch.manual_seed(5)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    encoder = CLIPVisionModelWithProjection(vision).eval()
    for each in both:
        state = {"image_proj": {}, "ip_adapter": {}}
        generator = torch.Generator().manual_seed(5)
        shapes = {"proj.weight": (4 * 32, 16), "proj.bias": (4 * 32,), "norm.weight": (32,), "norm.bias": (32,)}
        state["image_proj"] = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        layers = [m for n, m in each.unet.named_modules() if n.endswith("attn2")]
        for i, layer in enumerate(layers):
            width = layer.to_k.out_features
            state["ip_adapter"] |= {
                f"{2 * i + 1}.to_{k}_ip.weight": 0.2 * torch.randn(width, 32, generator=generator) for k in ("k", "v")
            }
        each.register_modules(
            image_encoder=encoder,
            feature_extractor=CLIPImageProcessor(crop_size={"height": 32, "width": 32}, size={"shortest_edge": 32}),
        )
        each.unet._load_ip_adapter_weights([state])
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    pipe, base = both
    embeds = base.prepare_ip_adapter_image_embeds(picture, None, "cpu", 1, True)
    expected = draw(base, WARRIOR, ip_adapter_image_embeds=embeds)
    assert np.array_equal(draw(pipe, WARRIOR, ip_adapter_image_embeds=embeds, value=None), expected)
    on = draw(pipe, WARRIOR, ip_adapter_image_embeds=embeds, value="bloody")
    assert np.abs(on - expected).max() > 1e-3
    other = base.prepare_ip_adapter_image_embeds(Image.new("RGB", (32, 32)), None, "cpu", 1, True)
    assert np.abs(draw(pipe, WARRIOR, ip_adapter_image_embeds=other, value="bloody") - on).max() > 1e-3
    masked = draw(pipe, WARRIOR, ip_adapter_image_embeds=embeds, value="bloody", value_scale=1e-30)
    np.testing.assert_allclose(masked, expected, atol=2e-4)


def test_freeu(both):
    before = draw(both[1], WARRIOR)
    for each in both:
        each.enable_freeu(s1=0.6, s2=0.3, b1=1.8, b2=1.9)
    check(*both, tolerance=5e-5)
    for each in both:
        each.disable_freeu()
    assert np.array_equal(draw(both[0], WARRIOR, value=None), before)


@pytest.mark.parametrize("size", ["auto", "max", 1])
def test_attention_slicing(both, size):
    for each in both:
        each.enable_attention_slicing(size)
    check(*both, tolerance=5e-5)


def test_attention_backends_and_processors(both):
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    expected = draw(both[0], WARRIOR, value="bloody")
    for processor in (AttnProcessor, AttnProcessor2_0):
        for each in both:
            each.unet.set_attn_processor(processor())
        check(*both, tolerance=5e-5)
        np.testing.assert_allclose(draw(both[0], WARRIOR, value="bloody"), expected, atol=2e-4)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        np.testing.assert_allclose(draw(both[0], WARRIOR, value="bloody"), expected, atol=2e-4)
    for each in both:
        each.fuse_qkv_projections(vae=False)
    check(*both, tolerance=5e-5)


def test_vae_slicing_and_tiling(both):
    for each in both:
        each.vae.enable_slicing()
        each.vae.enable_tiling()
    check(*both, tolerance=5e-5)


def louder(pipe):
    """A value whose effect, 0.12, is far above the rounding of half precision, which is 0.002 to 0.01 on different CPUs."""
    with torch.no_grad():
        for name, parameter in pipe.value_encoder.named_parameters():
            parameter.mul_(4 if name.endswith("final_layer_norm.weight") else 1)
    return pipe


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(both, dtype):
    pipe, base = louder(both[0]), both[1]
    for each in both:
        each.to(dtype=dtype)
    assert pipe.value_encoder.dtype is dtype
    expected = draw(base, WARRIOR)
    assert np.array_equal(draw(pipe, WARRIOR, value=None), expected)
    on, off = (draw(pipe, WARRIOR, value="bloody", value_scale=scale) for scale in (1.0, 1e-30))
    assert np.isfinite(on).all() and np.abs(on - expected).max() > 0.05
    assert np.abs(off - expected).max() < 0.025  # masked, up to its rounding


def test_a_value_encoder_in_float32_beside_a_backbone_in_half_precision(both):
    pipe, base = louder(both[0]), both[1]
    for each in both:
        each.to(dtype=torch.bfloat16)
    pipe.value_encoder.float()
    on = draw(pipe, WARRIOR, value="bloody")
    assert np.isfinite(on).all() and np.abs(on - draw(base, WARRIOR)).max() > 0.05


def test_offloading_puts_every_part_back_on_the_cpu(both):
    """With the CPU as the accelerator: the hooks are accelerate's own, the moves between memories are not seen here."""
    pipe, base = both
    expected, on = draw(base, WARRIOR), draw(pipe, WARRIOR, value="bloody")
    try:
        pipe.enable_model_cpu_offload(device="cpu")
    except RuntimeError as error:
        pytest.skip(f"model offloading needs an accelerator: {error}")
    assert np.array_equal(draw(pipe, WARRIOR, value=None), expected)
    assert np.array_equal(draw(pipe, WARRIOR, value="bloody"), on)


def test_weights_that_are_offloaded_one_by_one_give_the_same_images_and_hash(both, tmp_path, monkeypatch):
    """accelerate's hooks move each weight from where it is kept to the CPU and away again, as they would to a GPU."""
    import accelerate

    pipe, base = both
    pipe.value_encoder.save_pretrained(tmp_path)
    expected = pipe(WARRIOR, generator=torch.Generator().manual_seed(0), **FAST)
    offload = accelerate.cpu_offload
    monkeypatch.setattr(accelerate, "cpu_offload", lambda model, device, **_: offload(model, torch.device("cpu")))
    _known.pop(pipe.value_encoder)
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert next(pipe.value_encoder.parameters()).is_meta and next(pipe.unet.parameters()).is_meta
    for _ in range(2):
        out = pipe(WARRIOR, generator=torch.Generator().manual_seed(0), **FAST)
        assert np.array_equal(out.images, expected.images) and out.decisions[0].values == expected.decisions[0].values
    assert np.array_equal(draw(pipe, WARRIOR, value=None), draw(base, WARRIOR))
    pipe.load_value_encoder(tmp_path)  # beside a text encoder whose weights are elsewhere
    assert np.array_equal(draw(pipe, WARRIOR), expected.images)


def test_group_offloading(both):
    pipe, base = both
    on = draw(pipe, WARRIOR, value="bloody")
    options = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu"), "offload_type": "leaf_level"}
    pipe.unet.enable_group_offload(**options)
    assert np.array_equal(draw(pipe, WARRIOR, value="bloody"), on)
    assert np.array_equal(draw(pipe, WARRIOR, value=None), draw(base, WARRIOR))


def test_a_device_map(pipe, tmp_path):
    on = draw(pipe, WARRIOR, value="bloody")
    pipe.save_pretrained(tmp_path)
    mapped = LiVOPipeline.from_pretrained(tmp_path, device_map="cpu")
    mapped.set_progress_bar_config(disable=True)
    assert mapped.hf_device_map is not None and mapped.value_encoder is not None
    assert np.array_equal(draw(mapped, WARRIOR, value="bloody"), on)


def test_the_offloading_order_runs_the_value_encoder_first(pipe):
    order = pipe.model_cpu_offload_seq.split("->")
    assert order[0] == "value_encoder" and order[1:] == StableDiffusionPipeline.model_cpu_offload_seq.split("->")


def test_values_on_a_compiled_unet_are_refused_with_the_remedy(base, pipe):
    base.unet.compile(backend="eager")
    with pytest.raises(RuntimeError, match=r"plug them in first.*then torch\.compile"):
        livo.attach(base, pipe.value_encoder, PRINCIPLES)
    assert type(base) is StableDiffusionPipeline


@pytest.mark.parametrize("in_place", [False, True])
def test_compiling_traces_once_for_all_values_and_principles_and_once_more_for_strengths_between(pipe, base, in_place):
    """Dynamo with the eager backend: guards and graphs are the real ones, only code generation is left out."""
    from torch._dynamo.utils import counters

    runs = [
        ({"value": "bloody"}, 1),
        ({"value": "another statement"}, 1),
        ({"value": "bloody", "value_end": 0.5}, 1),
        ({"value": "bloody", "value_scale": 0.3}, 2),
        ({"value": "another statement", "value_scale": 0.7}, 2),
    ]
    plain = [draw(pipe, WARRIOR, **kwargs) for kwargs, _ in runs] + [draw(pipe, CAT), draw(pipe, DOCTOR, value="bloody")]
    torch._dynamo.reset()
    torch.compiler.reset()
    traced = []

    def backend(graph, inputs):
        traced.append(len(inputs))
        return graph.forward

    if in_place:
        pipe.unet.compile(backend=backend, fullgraph=True)
    else:
        pipe.unet = torch.compile(pipe.unet, backend=backend, fullgraph=True)
    compiled = []
    for kwargs, graphs in runs:
        compiled.append(draw(pipe, WARRIOR, **kwargs))
        assert len(traced) == graphs, (kwargs, counters["recompiles"])
    pipe.load_value_principles([PRINCIPLES[1]])
    pipe.retriever._embedder = WordEmbedder()
    compiled_doctor = draw(pipe, DOCTOR, value="bloody")
    assert len(traced) == 2, counters["recompiles"]
    compiled.append(draw(pipe, CAT))  # no value: the base's own shapes
    compiled.append(compiled_doctor)
    for ours, expected in zip(compiled, plain, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert np.abs(compiled[0] - compiled[1]).max() > 1e-3
    torch._dynamo.reset()
