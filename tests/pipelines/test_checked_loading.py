"""Checkpoints as people have them: one file, half of the components, half precision, an adapter in the layers, a folder that moved."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from livo import LiVOPipeline, LiVOXLPipeline, ValueEncoder
from livo.pipelines.stable_diffusion import load_pipeline
from livo.utils.hashing import weights_hash
from tests.conftest import PRINCIPLES, WordEmbedder
from tests.utils.test_weights import draw, peft_state


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    if getattr(pipe, "retriever", None) is not None:
        pipe.retriever._embedder = WordEmbedder()
    return pipe


def original(folder):
    """The checkpoint of `folder` as one state dict in the layout of Stable Diffusion's authors; its two blocks have one layer each."""
    parts = {name: load_file(folder / name / "diffusion_pytorch_model.safetensors") for name in ("unet", "vae")}
    unet = [
        *[("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2")],
        *[("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2")],
        *[("norm1.", "in_layers.0."), ("conv1.", "in_layers.2."), ("norm2.", "out_layers.0."), ("conv2.", "out_layers.3.")],
        *[("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection")],
        *[("mid_block.resnets.0", "middle_block.0"), ("mid_block.attentions.0", "middle_block.1")],
        *[("mid_block.resnets.1", "middle_block.2"), ("down_blocks.0.downsamplers.0.conv", "input_blocks.2.0.op")],
        *[(f"down_blocks.{i}.resnets.0", f"input_blocks.{2 * i + 1}.0") for i in range(2)],
        *[(f"down_blocks.{i}.attentions.0", f"input_blocks.{2 * i + 1}.1") for i in range(2)],
        *[(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{2 * i + j}.0") for i in range(2) for j in range(2)],
        *[(f"up_blocks.{i}.attentions.{j}", f"output_blocks.{2 * i + j}.1") for i in range(2) for j in range(2)],
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.1.1.conv"),
    ]
    vae = [
        *[("mid_block.attentions.0", "mid.attn_1"), ("conv_shortcut", "nin_shortcut"), ("conv_norm_out", "norm_out")],
        *[("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")],
        *[(f"mid_block.resnets.{i}", f"mid.block_{i + 1}") for i in range(2)],
        *[(f"down_blocks.{i}.resnets", f"down.{i}.block") for i in range(2)],
        *[(f"up_blocks.{i}.resnets", f"up.{1 - i}.block") for i in range(2)],
        *[("down_blocks.0.downsamplers.0", "down.0.downsample"), ("up_blocks.0.upsamplers.0", "up.1.upsample")],
    ]
    found = {}
    for name, prefix, renames in (("unet", "model.diffusion_model.", unet), ("vae", "first_stage_model.", vae)):
        for key, tensor in parts[name].items():
            attention = "transformer_blocks" in key
            for ours, theirs in renames:
                if not (attention and ours.startswith(("norm", "conv", "to_"))):
                    key = key.replace(ours, theirs)
            flat = name == "vae" and ".attn_1." in key and tensor.dim() == 2
            found[prefix + key] = tensor[:, :, None, None].contiguous() if flat else tensor
    for key, tensor in load_file(folder / "text_encoder" / "model.safetensors").items():
        found[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = tensor
    found["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return found


@pytest.fixture
def single(tiny_checkpoint, tmp_path):
    file = tmp_path / "single.safetensors"
    save_file(original(tiny_checkpoint), file)
    return file


# --- one file ---------------------------------------------------------------------------------------------------------------


def test_a_single_file_takes_an_encoder_principles_and_settings(pipe, base, tiny_checkpoint, single, tmp_path):
    pipe.value_encoder.save_pretrained(tmp_path / "encoder")
    found = quiet(
        LiVOPipeline.from_single_file(
            single,
            config=str(tiny_checkpoint),
            value_encoder=tmp_path / "encoder",
            value_principles=PRINCIPLES,
            value_scale=0.7,
            prompt_padding="do_not_pad",
        )
    )
    assert (found.value_scale, found.config.prompt_padding, found.principles) == (0.7, "do_not_pad", PRINCIPLES)
    assert weights_hash(found.value_encoder) == weights_hash(pipe.value_encoder)
    assert np.array_equal(draw(found, value=None), draw(base))
    assert found(PRINCIPLES[0].exemplars[0], num_inference_steps=1).decisions[0].settings["model"]["name"] == "single.safetensors"
    pipe.register_to_config(prompt_padding="do_not_pad")
    assert np.array_equal(draw(found, value_scale=1.0), draw(pipe)) and not np.array_equal(draw(found), draw(base))
    found.save_pretrained(tmp_path / "folder")
    assert np.array_equal(draw(quiet(LiVOPipeline.from_pretrained(tmp_path / "folder"))), draw(found))


def test_a_single_file_beside_a_saved_pipeline_takes_its_values(pipe, single, tmp_path):
    pipe.save_pretrained(tmp_path / "aligned")
    found = quiet(LiVOPipeline.from_single_file(str(single), config=str(tmp_path / "aligned")))
    assert found.principles == PRINCIPLES and weights_hash(found.value_encoder) == weights_hash(pipe.value_encoder)
    assert np.array_equal(draw(found), draw(pipe))


def test_a_single_file_and_a_pipeline_without_text_encoder_take_all_saved_encoders(pipe, single, tmp_path):
    pipe.load_value_encoder(ValueEncoder.from_text_encoder(pipe.text_encoder), name="mine")
    pipe.set_value_scale(0.5, "default")
    pipe.save_pretrained(tmp_path / "aligned")
    for found in (
        LiVOPipeline.from_single_file(single, config=str(tmp_path / "aligned")),
        LiVOPipeline.from_pretrained(tmp_path / "aligned", text_encoder=None),
    ):
        assert found.value_encoder_scales == {"default": 0.5, "mine": 1.0}
        assert {name: weights_hash(each) for name, each in found.value_encoders.items()} == {
            name: weights_hash(each) for name, each in pipe.value_encoders.items()
        }


def test_a_single_file_without_values_has_the_bundled_principles_and_no_encoder(base, tiny_checkpoint, single):
    found = quiet(LiVOPipeline.from_single_file(single, config=str(tiny_checkpoint), dtype=torch.bfloat16))
    assert found.value_encoder is None and found.principles and found.unet.dtype is torch.bfloat16


def test_a_single_file_that_cannot_be_read_or_is_loaded_otherwise_is_one_clear_line(pipe, tiny_checkpoint, single, tmp_path):
    pickled = tmp_path / "model.ckpt"
    torch.save({"state_dict": {}}, pickled)
    for load in (LiVOPipeline.from_single_file, LiVOPipeline.from_pretrained, load_pipeline):
        with pytest.raises(ValueError, match=r"model\.ckpt is pickled"):
            load(str(pickled))
    for load in (LiVOPipeline.from_pretrained, load_pipeline):
        with pytest.raises(ValueError, match=r"single\.safetensors is a single file: load it with LiVOPipeline\.from_single_file"):
            load(str(single))
    with pytest.raises((TypeError, ValueError), match="value_principle"):
        LiVOPipeline.from_single_file(single, config=str(tiny_checkpoint), value_principle=PRINCIPLES)
    wide = ValueEncoder.from_text_encoder(pipe.text_encoder, width=48)
    with pytest.raises(ValueError, match="value_width is 48"):
        LiVOPipeline.from_single_file(single, config=str(tiny_checkpoint), value_encoder=wide)
    single.write_bytes(single.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"single\.safetensors: no safetensors file, or a damaged one"):
        LiVOPipeline.from_single_file(single, config=str(tiny_checkpoint))


# --- half of the components -----------------------------------------------------------------------------------------------


def test_without_a_text_encoder_ready_embeddings_work_or_what_is_needed_is_said(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    found = quiet(LiVOPipeline.from_pretrained(tmp_path, text_encoder=None))
    prompt = "a bloody warrior"
    embeds, negative = pipe.encode_prompt(prompt, "cpu", 1, True)
    ready = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    assert np.array_equal(draw(found, prompt, **ready), draw(pipe, prompt))
    assert np.array_equal(draw(found, None, value=None, **ready), draw(pipe, prompt, value=None))
    with pytest.raises(
        ValueError, match="has no text_encoder: pass negative_prompt_embeds, or load the pipeline with its text encoder"
    ):
        draw(found, prompt, prompt_embeds=embeds)
    for value in (None, "bloody"):
        with pytest.raises(ValueError, match="has no text_encoder: pass prompt_embeds and negative_prompt_embeds"):
            draw(found, prompt, value=value)
    assert draw(found, prompt, prompt_embeds=embeds, guidance_scale=1.0) is not None
    found.load_value_encoder(tmp_path)
    assert np.array_equal(draw(found, prompt, **ready), draw(pipe, prompt))
    with pytest.raises(
        ValueError, match=r"model\.safetensors has no configuration, and the pipeline no text encoder.*give a folder"
    ):
        found.load_value_encoder(tmp_path / "value_encoder" / "model.safetensors")
    with pytest.raises(ValueError, match="its tokens are 48 wide, the backbone's cross-attention 32"):
        found.load_value_encoder(ValueEncoder.from_text_encoder(pipe.text_encoder, width=48))
    found.save_pretrained(tmp_path / "again")
    again = quiet(LiVOPipeline.from_pretrained(tmp_path / "again", text_encoder=None))
    assert np.array_equal(draw(again, prompt, **ready), draw(pipe, prompt))


def test_without_a_tokenizer_values_say_what_is_needed(pipe, tiny_checkpoint, tmp_path):
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="reads text, and the pipeline has no tokenizer: load the pipeline with its tokenizer"):
        LiVOPipeline.from_pretrained(tmp_path, tokenizer=None)
    bare = LiVOPipeline.from_pretrained(tiny_checkpoint, tokenizer=None)
    for source in (tmp_path, pipe.value_encoder):
        with pytest.raises(ValueError, match="reads text, and the pipeline has no tokenizer"):
            bare.load_value_encoder(source)


def test_an_sdxl_with_its_second_text_encoder_alone_draws_as_the_base_does(tiny_xl_checkpoint):
    alone = {"text_encoder": None, "tokenizer": None, "dtype": torch.float32}
    ours, theirs = (quiet(cls.from_pretrained(tiny_xl_checkpoint, **alone)) for cls in (LiVOXLPipeline, StableDiffusionXLPipeline))
    embeds = torch.randn(1, 77, 64)
    ready = {"prompt_embeds": embeds, "pooled_prompt_embeds": torch.randn(1, 32)}
    ready |= {"negative_prompt_embeds": torch.zeros_like(embeds), "negative_pooled_prompt_embeds": torch.zeros(1, 32)}
    assert np.array_equal(draw(ours, None, value=None, **ready), draw(theirs, None, **ready))
    with pytest.raises(ValueError, match="no tokenizer"):
        ours.load_value_encoder(ValueEncoder.from_text_encoder(LiVOXLPipeline.from_pretrained(tiny_xl_checkpoint).text_encoder, 64))


# --- saving with a LoRA -----------------------------------------------------------------------------------------------------


def plain_lora(pipe):
    pipe.load_lora_weights(peft_state(pipe))


def two_loras_and_a_text_encoder(pipe):
    pipe.load_lora_weights(peft_state(pipe), adapter_name="one")
    pipe.load_lora_weights(peft_state(pipe, ("unet", "text_encoder")), adapter_name="two")


def disabled_lora(pipe):
    plain_lora(pipe)
    pipe.disable_lora()


def dora(pipe):
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=2, use_dora=True, init_lora_weights=False, target_modules=["to_q", "to_v"]), "dora")


def fused_lora(pipe):
    plain_lora(pipe)
    pipe.fuse_lora()


def text_encoder_lora(pipe):
    pipe.load_lora_weights(peft_state(pipe, ("text_encoder",)))


@pytest.mark.parametrize("load", [plain_lora, two_loras_and_a_text_encoder, disabled_lora, dora, fused_lora, text_encoder_lora])
def test_a_pipeline_with_a_lora_in_its_layers_is_not_saved_and_fused_it_comes_back(pipe, tmp_path, monkeypatch, load):
    uploaded = []
    monkeypatch.setattr("livo.pipelines.loading.upload", lambda *args, **kwargs: uploaded.append(args))
    load(pipe)
    for save, done in ((lambda: pipe.save_pretrained(tmp_path / "saved"), "saved"), (lambda: pipe.push_to_hub("a/b"), "uploaded")):
        with pytest.raises(ValueError, match=f"holds the LoRA .* and {done} now it would load with random weights: call fuse_lora"):
            save()
    assert not (tmp_path / "saved").exists() and not uploaded
    pipe.push_to_hub("a/b", encoder_only=True)
    assert uploaded
    before = draw(pipe)
    if load not in (fused_lora, disabled_lora):
        pipe.fuse_lora(components=[name for name in ("unet", "text_encoder") if hasattr(getattr(pipe, name), "peft_config")])
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "saved")
    again = quiet(LiVOPipeline.from_pretrained(tmp_path / "saved"))
    assert np.abs(draw(again) - before).max() < 1e-3


# --- precision, variants, places ---------------------------------------------------------------------------------------------


def test_a_variant_in_half_precision_and_shards_come_back(pipe, tmp_path):
    pipe.to(dtype=torch.float16)
    pipe.save_pretrained(tmp_path / "variant", variant="fp16")
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "variant" / "value_encoder" / "model.fp16.safetensors").is_file()
    expected = draw(pipe)
    for folder, more in (("variant", {"variant": "fp16"}), ("shards", {})):
        again = quiet(LiVOPipeline.from_pretrained(tmp_path / folder, dtype=torch.float16, **more))
        assert np.array_equal(draw(again), expected)
    pipe.load_value_encoder(tmp_path / "variant")
    assert np.array_equal(draw(pipe), expected)


def test_a_unet_that_was_saved_in_half_precision_beside_the_rest_draws(pipe, base, tmp_path):
    pipe.save_pretrained(tmp_path)
    pipe.unet.half().save_pretrained(tmp_path / "unet")
    ours, theirs = (quiet(cls.from_pretrained(tmp_path)) for cls in (LiVOPipeline, StableDiffusionPipeline))
    assert np.array_equal(draw(ours, value=None), draw(theirs)) and not np.array_equal(draw(ours), draw(theirs))


def test_a_saved_folder_that_was_moved_loads_as_before(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "elsewhere", "elsewhere", "./elsewhere/"):
        assert np.array_equal(draw(quiet(LiVOPipeline.from_pretrained(source))), draw(pipe))
    assert np.array_equal(draw(quiet(load_pipeline("elsewhere"))), draw(pipe))
