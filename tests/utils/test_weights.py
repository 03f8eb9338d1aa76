"""Weights that no image can be drawn with are refused when they are loaded, by file and tensor, and so is a LoRA that fits in part."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from livo import LiVOPipeline, LiVOXLPipeline, ValueEncoder
from livo.baselines import LoRA, WeightEdit
from livo.baselines.weights import cross_attention
from livo.pipelines.lora import lora_modules
from livo.training.adapters import LoRAAdapter
from livo.utils.weights import check_tensors, read_tensors

KEY = "final_layer_norm.weight"


def draw(pipe, prompt="a bloody warrior", **kwargs):
    options = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    return pipe(prompt, **{**options, **kwargs}).images


def filled(tensor, value):
    tensor = tensor.clone()
    tensor.view(-1)[0] = value
    return tensor


SPOILED = {
    "nan": (lambda t: filled(t, torch.nan), "is not finite"),
    "infinity": (lambda t: filled(t, -torch.inf), "is not finite"),
    "integer": (lambda t: t.to(torch.int8), "is I?n?t?8, not floating point: save the weights as float32"),
    "eight bits": (lambda t: t.to(torch.float8_e4m3fn), "is F8_E4M3, not floating point"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_value_encoder_with_broken_weights_is_refused_by_tensor(pipe, tmp_path, kind):
    spoil, words = SPOILED[kind]
    pipe.value_encoder.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    key = next(key for key in state if key.endswith(KEY))
    save_file(state | {key: spoil(state[key])}, file, metadata={"format": "pt"})
    before = pipe.value_encoder
    for source in (file, tmp_path):
        with pytest.raises(ValueError, match=f"{tmp_path}.*{KEY} {words}"):
            pipe.load_value_encoder(source)
    assert pipe.value_encoder is before
    if kind in ("nan", "infinity"):
        with torch.no_grad():
            dict(before.named_parameters())[key].copy_(spoil(state[key]))
        with pytest.raises(ValueError, match=f"the given value encoder 'default': .*{KEY} {words}"):
            pipe.load_value_encoder(before)


def test_a_saved_pipeline_with_a_broken_value_encoder_is_refused(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    file = tmp_path / "value_encoder" / "model.safetensors"
    state = load_file(file)
    save_file({key: filled(tensor, torch.nan) for key, tensor in state.items()}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is not finite"):
        LiVOPipeline.from_pretrained(tmp_path)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="no safetensors file, or a damaged one"):
        LiVOPipeline.from_pretrained(tmp_path)


def test_an_encoder_that_half_precision_cannot_hold_is_refused_and_bfloat16_is_not(pipe, tmp_path):
    with torch.no_grad():
        dict(pipe.value_encoder.named_parameters())["embeddings.token_embedding.weight"][0, 0] = 1e5
    pipe.value_encoder.save_pretrained(tmp_path)
    pipe.to(dtype=torch.float16)
    with pytest.raises(ValueError, match=r"holds 1e\+05, and float16 ends at 6.55e\+04.*dtype=torch.bfloat16"):
        pipe.load_value_encoder(tmp_path)
    pipe.to(dtype=torch.bfloat16)
    pipe.load_value_encoder(tmp_path)


def test_an_encoder_in_shards_or_as_fp16_variant_loads_as_the_whole_one(pipe, tmp_path):
    whole = {key: value.half().float() for key, value in pipe.value_encoder.state_dict().items()}
    pipe.value_encoder.half().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    pipe.value_encoder.save_pretrained(tmp_path / "variant", variant="fp16")
    wide = ValueEncoder.from_text_encoder(pipe.text_encoder, tokens=2).half()
    wide.save_pretrained(tmp_path / "wide", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for folder in ("shards", "variant"):
        found = ValueEncoder.load(tmp_path / folder, pipe.text_encoder).state_dict()
        assert all(torch.equal(found[key], value) for key, value in whole.items())
    found = ValueEncoder.load(tmp_path / "wide", pipe.text_encoder)
    assert torch.equal(found.value_projection.weight, wide.value_projection.weight.float())
    shard = max((tmp_path / "shards").glob("*.safetensors"))
    save_file({key: filled(t, torch.inf) for key, t in load_file(shard).items()}, shard, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is not finite"):
        pipe.load_value_encoder(tmp_path / "shards")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".PTH"])
def test_pickled_files_are_refused_wherever_a_path_is_taken(pipe, base, tmp_path, suffix):
    file = tmp_path / f"weights{suffix}"
    torch.save({}, file)
    takers = [
        pipe.load_value_encoder,
        WeightEdit.load,
        read_tensors,
        lambda source: LoRA.read(base, source),
        lambda source: ValueEncoder.load(source, pipe.text_encoder),
        pipe.load_lora_weights,
        lambda source: pipe.load_lora_weights(tmp_path, weight_name=source.name),
        lambda source: pipe.load_lora_weights(tmp_path),
        pipe.load_textual_inversion,
        lambda source: pipe.load_textual_inversion([str(source)]),
        lambda source: pipe.load_ip_adapter(tmp_path, subfolder="", weight_name=source.name),
        LiVOPipeline.from_single_file,
    ]
    for take in takers:
        with pytest.raises(ValueError, match=r"pickled, and reading a pickle can run code: give a \.safetensors file"):
            take(file)
    with pytest.raises(ValueError, match="use_safetensors is False"):
        pipe.load_lora_weights(tmp_path, use_safetensors=False)
    with pytest.raises(ValueError, match="use_safetensors is False"):
        LiVOPipeline.from_pretrained(tmp_path, use_safetensors=False)


def test_a_pipeline_of_pickled_components_is_refused_and_a_pickle_beside_them_ignored(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    (tmp_path / "v1-5-pruned.ckpt").write_bytes(b"of no use")
    assert LiVOPipeline.from_pretrained(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises((OSError, ValueError), match=r"no file named diffusion_pytorch_model\.safetensors"):
        LiVOPipeline.from_pretrained(tmp_path)


def test_files_that_hold_no_weights_are_told_apart(tmp_path):
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(ValueError, match="a Git LFS pointer, not the weights: run git lfs pull"):
        read_tensors(tmp_path / "pointer.safetensors")
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><html>" * 9)
    with pytest.raises(ValueError, match="no safetensors file, or a damaged one"):
        read_tensors(tmp_path / "page.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match="holds no weights"):
        read_tensors(tmp_path / "empty.safetensors")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_tensors(tmp_path / "absent.safetensors")
    check_tensors({"position_ids": torch.arange(3), "offloaded": torch.empty(2, device="meta"), "none": torch.empty(0)}, "")


# --- edited weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SPOILED)
def test_edited_weights_that_are_broken_are_refused_when_loaded(base, tmp_path, kind):
    spoil, words = SPOILED[kind]
    name, weight = next(iter(cross_attention(base).items()))
    save_file({name: spoil(weight)}, tmp_path / "edit.safetensors")
    with pytest.raises(ValueError, match=f"edit.safetensors: {name} {words}"):
        WeightEdit.load(tmp_path / "edit.safetensors")


def test_edited_weights_of_another_model_or_precision_are_refused_before_drawing(base, tmp_path):
    weights = cross_attention(base)
    name = next(iter(weights))
    edit = WeightEdit({**weights, "unet.absent.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"edit\.safetensors: the UNet has no parameter unet\.absent\.weight"):
        edit.check(base, "edit.safetensors")
    plain = draw(base)
    base.to(dtype=torch.float16)
    with pytest.raises(ValueError, match=f"{name} holds .*float16 ends at"), WeightEdit({name: weights[name] * 1e7}).on(base):
        pass
    base.to(dtype=torch.float32)
    assert np.abs(draw(base) - plain).max() < 0.1


# --- LoRA -----------------------------------------------------------------------------------------------------------------


def peft_state(pipe, components=("unet",), names=("to_q", "to_v", "q_proj", "k_proj", "v_proj", "out_proj")):
    """Random low-rank updates in diffusers' own layout."""
    generator = torch.Generator().manual_seed(4)
    state = {}
    for prefix in components:
        for name, module in getattr(pipe, prefix).named_modules():
            if name.endswith(names):
                state[f"{prefix}.{name}.lora_A.weight"] = torch.randn(4, module.in_features, generator=generator)
                state[f"{prefix}.{name}.lora_B.weight"] = 0.3 * torch.randn(module.out_features, 4, generator=generator)
    return state


def kohya(state, alpha=2.0):
    """The same in the layout of kohya-ss, with an alpha for each layer."""
    found = {}
    xl = any(key.startswith("text_encoder_2") for key in state)
    prefixes = {"unet": "lora_unet_", "text_encoder": f"lora_te{'1' * xl}_text_model_", "text_encoder_2": "lora_te2_text_model_"}
    for key, value in state.items():
        component, _, rest = key.partition(".")
        name, half = rest.rsplit(".lora_", 1)
        stem = prefixes[component] + name.removeprefix("text_model.").replace(".", "_")
        found[f"{stem}.lora_{'down' if half.startswith('A') else 'up'}.weight"] = value
        found[f"{stem}.alpha"] = torch.tensor(alpha)
    return found


def old_diffusers(state):
    """The same in the layout of diffusers before peft."""
    found = {}
    for key, value in state.items():
        name = "lora" if key.startswith("unet") else "lora_linear_layer"
        found[key.replace("lora_A", f"{name}.down").replace("lora_B", f"{name}.up")] = value
    return found


LAYOUTS = {"peft": dict, "kohya": kohya, "old diffusers": old_diffusers}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("components", [("unet",), ("unet", "text_encoder")])
def test_a_whole_lora_of_every_layout_loads_as_in_diffusers(pipe, base, tmp_path, layout, components):
    save_file(LAYOUTS[layout](peft_state(base, components)), tmp_path / "lora.safetensors")
    for source in (tmp_path / "lora.safetensors", tmp_path):
        plain = draw(base)
        pipe.load_lora_weights(source)
        base.load_lora_weights(str(tmp_path / "lora.safetensors"))
        assert np.array_equal(draw(pipe, value=None), draw(base)) and not np.array_equal(draw(base), plain)
        assert sorted(lora_modules(pipe)) == sorted(components)
        for each in (pipe, base):
            each.unload_lora_weights()
        assert np.array_equal(draw(pipe, value=None), plain)


@pytest.mark.parametrize("layout", ["peft", "kohya"])
def test_a_lora_of_sdxl_is_read_and_one_of_another_model_is_not(tiny_xl, base, tmp_path, layout):
    save_file(LAYOUTS[layout](peft_state(tiny_xl)), tmp_path / "xl.safetensors")
    plain = draw(tiny_xl)
    with LoRA.read(tiny_xl, tmp_path / "xl.safetensors").on(tiny_xl):
        assert not np.array_equal(draw(tiny_xl), plain)
    assert np.array_equal(draw(tiny_xl), plain)
    plain = draw(base)
    with pytest.raises(ValueError, match=r"xl\.safetensors"):
        LoRA.read(base, tmp_path / "xl.safetensors")
    assert np.array_equal(draw(base), plain) and not lora_modules(base)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lora_of_sdxl_for_both_text_encoders_loads_as_in_diffusers(tiny_xl_checkpoint, tmp_path, layout):
    ours, theirs = (
        cls.from_pretrained(tiny_xl_checkpoint, dtype=torch.float32) for cls in (LiVOXLPipeline, StableDiffusionXLPipeline)
    )
    save_file(LAYOUTS[layout](peft_state(ours, ("unet", "text_encoder", "text_encoder_2"))), tmp_path / "lora.safetensors")
    plain = draw(theirs)
    for pipe in (ours, theirs):
        pipe.load_lora_weights(str(tmp_path / "lora.safetensors"))
    assert sorted(lora_modules(ours)) == ["text_encoder", "text_encoder_2", "unet"]
    assert np.array_equal(draw(ours, value=None), draw(theirs)) and not np.array_equal(draw(theirs), plain)


def test_a_dora_whose_scales_diffusers_leaves_out_is_refused(base, tmp_path):
    state = kohya(peft_state(base))
    scale = next(iter(state)).split(".")[0] + ".dora_scale"
    save_file(state | {scale: torch.ones(1, 16)}, tmp_path / "dora.safetensors")
    with pytest.raises(ValueError, match=f"{scale}: diffusers leaves the scales of a DoRA out"):
        LoRA.read(base, tmp_path / "dora.safetensors")


def test_a_textual_inversion_that_is_not_finite_is_refused_and_a_sound_one_loads(pipe, tmp_path):
    file = tmp_path / "learned_embeds.safetensors"
    save_file({"<cat>": torch.full((32,), torch.nan)}, file)
    for source in (file, tmp_path, {"<cat>": torch.full((32,), torch.nan)}):
        with pytest.raises(ValueError, match="<cat> is not finite"):
            pipe.load_textual_inversion(source)
    save_file({"<cat>": torch.ones(32)}, file)
    pipe.load_textual_inversion(str(tmp_path))
    assert "<cat>" in pipe.tokenizer.get_vocab()


def renamed(state, number):
    """The last `number` keys with a layer that no UNet has."""
    keys = list(state)
    return {key.replace("attentions", "attentionz") if key in keys[-number:] else key: value for key, value in state.items()}


MISFITS = {
    "half of the keys": (lambda state: renamed(state, len(state) // 2), "attentionz"),
    "no key": (lambda state: renamed(state, len(state)), "down_blocks.0.attentionz|down_blocks_0_attentionz"),
    "one stray key": (lambda state: state | {"unet.stray.lora_A.weight": torch.ones(4, 4)}, "stray"),
    "another prefix": (lambda state: {f"model.{key}": value for key, value in state.items()}, "model.(unet|lora_unet)"),
    "one half of a pair": (
        lambda state: {
            key: value for key, value in state.items() if key not in [k for k in state if "lora_B" in k or "lora_up" in k][-1:]
        },
        "is there and .*(lora_B|lora_up|alpha).* is not",
    ),
    "not a lora": (lambda state: {"conv.weight": torch.ones(2)}, "conv.weight belongs to no layer"),
    "not finite": (lambda state: {key: filled(value, torch.nan) for key, value in state.items()}, "is not finite"),
    "integer": (lambda state: {key: value.int() for key, value in state.items()}, "not floating point"),
}


@pytest.mark.parametrize("layout", ["peft", "kohya"])
@pytest.mark.parametrize("kind", MISFITS)
def test_a_lora_that_fits_in_part_or_not_at_all_is_refused_in_one_line(pipe, base, tmp_path, kind, layout):
    spoil, words = MISFITS[kind]
    state = peft_state(base)
    state = kohya(spoil(state)) if layout == "kohya" and kind in ("half of the keys", "no key") else spoil(LAYOUTS[layout](state))
    file = tmp_path / "lora.safetensors"
    save_file(state, file)
    plain = draw(base)
    for each, load in ((base, lambda: LoRA.read(base, file)), (pipe, lambda: pipe.load_lora_weights(file))):
        with pytest.raises(ValueError, match=words) as caught:
            load()
        assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)
        assert not lora_modules(each)
    assert np.array_equal(draw(base), plain) and np.array_equal(draw(pipe, value=None), plain)


def test_a_refused_lora_leaves_the_one_that_was_there(pipe, base):
    state = peft_state(base)
    pipe.load_lora_weights(state, adapter_name="first")
    before = draw(pipe, value=None)
    with pytest.raises(ValueError, match="attentionz"):
        pipe.load_lora_weights(renamed(state, 6), adapter_name="second")
    assert lora_modules(pipe) == {"unet": ["first"]}
    assert np.array_equal(draw(pipe, value=None), before)
    with pytest.raises(ValueError, match="has that LoRA already"):
        pipe.load_lora_weights(state, adapter_name="first")
    with pytest.raises(ValueError, match="holds the LoRA first already: call unload_lora_weights first"):
        LoRA.read(pipe, "lora.safetensors")


def test_a_lora_that_changes_no_weight_is_refused(tiny_checkpoint, base, tmp_path):
    other = type(base).from_pretrained(tiny_checkpoint)
    LoRAAdapter(other, 16, rank=2).save(tmp_path)
    with pytest.raises(ValueError, match="changes no weight"):
        LoRA.read(base, tmp_path)


def test_a_folder_of_several_loras_asks_which(pipe, base, tmp_path):
    state = peft_state(base)
    for name in ("a", "b"):
        save_file(state, tmp_path / f"{name}.safetensors")
    with pytest.raises(
        ValueError, match=r"several .safetensors files \(a\.safetensors, b\.safetensors\); name one with weight_name"
    ):
        pipe.load_lora_weights(tmp_path)
    pipe.load_lora_weights(tmp_path, weight_name="b.safetensors")
    assert lora_modules(pipe)


def test_evaluate_refuses_a_method_whose_weights_do_not_fit(papertown, tmp_path):
    from livo.cli.evaluate import _method

    save_file({"absent.weight": torch.zeros(2)}, tmp_path / "edit.safetensors")
    with pytest.raises(ValueError, match=r"the UNet has no parameter absent\.weight"):
        _method(f"weights={tmp_path}/edit.safetensors", papertown)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"absent\.weight belongs to no layer"):
        _method(f"lora={tmp_path}/edit.safetensors", papertown)
