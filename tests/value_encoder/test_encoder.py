import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from livo import ValueEncoder
from livo.value_encoder.token import encode_value

TEXTS = ["gender equality, a photo of a doctor", "bloody considered inappropriate, a bloody warrior"]


def tokens(encoder, pipe):
    with torch.no_grad():
        return encode_value(encoder, pipe.tokenizer, TEXTS)


def legacy_state(encoder):
    """The layout of the published weights: keys with the `text_model.` prefix, and a position buffer."""
    state = {f"text_model.{k.removeprefix('text_model.')}": v.clone().contiguous() for k, v in encoder.state_dict().items()}
    return state | {"text_model.embeddings.position_ids": torch.arange(77)[None]}


def test_a_new_encoder_is_a_copy_with_its_own_weights(pipe):
    encoder = ValueEncoder.from_text_encoder(pipe.text_encoder)
    assert torch.equal(tokens(encoder, pipe), tokens(pipe.text_encoder, pipe))
    with torch.no_grad():
        next(encoder.parameters()).zero_()
    assert next(pipe.text_encoder.parameters()).abs().sum() > 0


def test_a_folder_a_nested_folder_and_a_file_give_the_same_tokens(pipe, tmp_path):
    pipe.value_encoder.save_pretrained(tmp_path / "value_encoder")
    sources = [tmp_path / "value_encoder", tmp_path, tmp_path / "value_encoder" / "model.safetensors", str(tmp_path)]
    for source in sources:
        assert torch.equal(tokens(ValueEncoder.load(source, pipe.text_encoder), pipe), tokens(pipe.value_encoder, pipe))


def test_the_folder_loads_with_transformers_alone(pipe, tmp_path):
    pipe.value_encoder.save_pretrained(tmp_path)
    assert torch.equal(tokens(CLIPTextModel.from_pretrained(tmp_path), pipe), tokens(pipe.value_encoder, pipe))


def test_the_legacy_layout_is_read_from_a_file_and_from_a_folder(pipe, tmp_path):
    save_file(legacy_state(pipe.value_encoder), tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = pipe.value_encoder.config.to_dict() | {"eos_token_id": 2, "architectures": ["CLIPTextModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for source in (tmp_path / "model.safetensors", tmp_path):
        assert torch.equal(tokens(ValueEncoder.load(source, pipe.text_encoder), pipe), tokens(pipe.value_encoder, pipe))


def test_the_record_of_statements_travels_with_the_folder_and_not_with_a_bare_file(pipe, tmp_path):
    pipe.value_encoder.config.value_statements = ["gender equality"]
    pipe.value_encoder.save_pretrained(tmp_path)
    assert ValueEncoder.load(tmp_path, pipe.text_encoder).statements == ("gender equality",)
    assert ValueEncoder.load(tmp_path / "model.safetensors", pipe.text_encoder).statements is None


def test_what_does_not_fit_is_named(pipe, tmp_path):
    wide = CLIPTextModel(CLIPTextConfig(vocab_size=len(pipe.tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2))
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match="hidden_size is 64 and vocab_size 1051, the backbone's text encoder has 32"):
        ValueEncoder.load(tmp_path / "wide", pipe.text_encoder)
    with pytest.raises(ValueError, match=r"has shape"):
        ValueEncoder.load(tmp_path / "wide" / "model.safetensors", pipe.text_encoder)
    state = load_file(tmp_path / "wide" / "model.safetensors")
    state.pop(sorted(state)[0])
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="missing"):
        ValueEncoder.load(tmp_path / "part.safetensors", pipe.text_encoder)
    save_file({"unet.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="missing"):
        ValueEncoder.load(tmp_path / "other.safetensors", pipe.text_encoder)
    (tmp_path / "broken.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="no safetensors file, or a damaged one"):
        ValueEncoder.load(tmp_path / "broken.safetensors", pipe.text_encoder)
    for absent in (tmp_path / "absent.safetensors", tmp_path / "absent", tmp_path):
        with pytest.raises(FileNotFoundError):
            ValueEncoder.load(absent, pipe.text_encoder)


def test_pickled_weights_are_refused(pipe, tmp_path):
    pipe.value_encoder.config.save_pretrained(tmp_path)
    torch.save(pipe.value_encoder.state_dict(), tmp_path / "pytorch_model.bin")
    for source in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(ValueError, match="pickled, and reading a pickle can run code"):
            ValueEncoder.load(source, pipe.text_encoder)
