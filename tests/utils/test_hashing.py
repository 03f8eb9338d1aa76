"""One identifier of weights: what it depends on, and what it does not."""

import copy
import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from livo import LiVOPipeline, ValueEncoder
from livo.utils.hashing import lora_hash, stored_hash, tensors_hash, weights_hash


def write_in_place(encoder):
    with torch.no_grad():
        next(encoder.parameters()).mul_(1.01)


def write_through_data(encoder):
    next(encoder.parameters()).data.view(-1)[7] += 1e-6


def swap_rows_through_data(encoder):
    data = next(encoder.parameters()).data
    data.copy_(data.flip(0))


def replace_data(encoder):
    first = next(encoder.parameters())
    first.data = 1.01 * first.data


def assign_a_state(encoder):
    encoder.load_state_dict({name: 1.01 * tensor for name, tensor in encoder.state_dict().items()}, assign=True)


@pytest.mark.parametrize("change", [write_in_place, write_through_data, swap_rows_through_data, replace_data, assign_a_state])
def test_every_changed_weight_changes_the_identifier(pipe, change):
    before, states = weights_hash(pipe.value_encoder), copy.deepcopy(pipe.value_encoder.state_dict())
    change(pipe.value_encoder)
    assert weights_hash(pipe.value_encoder) not in (before, None)
    pipe.value_encoder.load_state_dict(states)
    assert weights_hash(pipe.value_encoder) == before


def test_the_identifier_is_sha256_over_names_and_float32_values():
    tensors = {"b": torch.tensor([1.0, 2.0], dtype=torch.float16), "a": torch.tensor([[3.0]])}
    by_hand = hashlib.sha256(b"a" + torch.tensor([3.0]).numpy().tobytes() + b"b" + torch.tensor([1.0, 2.0]).numpy().tobytes())
    assert tensors_hash(tensors) == by_hand.hexdigest()[:16]


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_file_folder_object_and_pipeline_have_one_identifier(pipe, tmp_path, prefix):
    name = weights_hash(pipe.value_encoder)
    pipe.value_encoder.save_pretrained(tmp_path / "encoder")
    tensors = load_file(tmp_path / "encoder" / "model.safetensors")
    plain = {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}
    save_file({prefix + key: tensor for key, tensor in plain.items()}, tmp_path / "encoder.safetensors")
    for source in (tmp_path / "encoder", tmp_path / "encoder.safetensors", copy.deepcopy(pipe.value_encoder)):
        pipe.load_value_encoder(source)
        assert weights_hash(pipe.value_encoder) == name
    pipe.save_pretrained(tmp_path / "pipe")
    assert weights_hash(LiVOPipeline.from_pretrained(tmp_path / "pipe").value_encoder) == name
    assert name in (tmp_path / "pipe" / "README.md").read_text()


def test_a_narrower_dtype_keeps_the_identifier_of_the_file(pipe, tmp_path):
    name = weights_hash(pipe.value_encoder)
    pipe.save_pretrained(tmp_path / "pipe")
    for dtype in (torch.float16, torch.bfloat16):
        again = LiVOPipeline.from_pretrained(tmp_path / "pipe", dtype=dtype)
        assert again.value_encoder.dtype == dtype and weights_hash(again.value_encoder) == name
        again.load_value_encoder(tmp_path / "pipe")
        assert weights_hash(again.value_encoder) == name
    converted = LiVOPipeline.from_pretrained(tmp_path / "pipe").to(torch.float16)
    assert weights_hash(converted.value_encoder) == name
    write_through_data(converted.value_encoder.float())
    assert weights_hash(converted.value_encoder) != name


def test_a_copy_saved_in_half_precision_is_named_by_what_is_in_it(pipe, tmp_path):
    name = weights_hash(pipe.value_encoder)
    pipe.to(torch.float16).save_pretrained(tmp_path)
    again = LiVOPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    stored = weights_hash(again.value_encoder)
    assert stored == stored_hash(pipe.value_encoder) != name and stored in (tmp_path / "README.md").read_text()
    assert weights_hash(LiVOPipeline.from_pretrained(tmp_path, dtype=torch.float16).value_encoder) == stored  # it was exact


def test_another_encoder_and_a_projection_have_other_identifiers(pipe):
    names = {weights_hash(pipe.value_encoder), weights_hash(ValueEncoder.from_text_encoder(pipe.text_encoder))}
    names.add(weights_hash(ValueEncoder.from_text_encoder(pipe.text_encoder, width=48)))
    assert len(names) == 3


def test_an_unfused_lora_leaves_the_backbone_its_identifier(base):
    peft = pytest.importorskip("peft")
    backbone = weights_hash(base.unet)
    for name in ("first", "second"):
        torch.manual_seed(0)
        base.unet.add_adapter(peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q"]), adapter_name=name)
    assert weights_hash(base.unet) == backbone
    assert lora_hash({"unet": base.unet}, "first") == lora_hash({"unet": base.unet}, "second") != tensors_hash({})
    base.set_adapters(["second"])
    next(p for n, p in base.unet.named_parameters() if ".lora_B.second" in n).data.add_(0.01)
    assert lora_hash({"unet": base.unet}, "first") != lora_hash({"unet": base.unet}, "second")
