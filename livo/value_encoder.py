"""ValueEncoder: a trainable copy of the backbone's text encoder, and where its weights come from."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import CLIPTextModel, PreTrainedModel

__all__ = ["PreTrainedModel", "ValueEncoder"]  # diffusers finds out how to load a component by this base class's name here


class ValueEncoder(CLIPTextModel):
    """E_v of LiVO: reads "statement, prompt", its output at EOS is the value token (`livo.conditioning.encode_value`).

    It is a CLIPTextModel in every respect and loads as one with transformers alone. `config.value_statements` is the training
    record: the statements it was trained with, or nothing where that is not known. `config.value_calibration` holds what
    `livo calibrate` measured.
    """

    @property
    def statements(self) -> tuple[str, ...] | None:
        """The statements it was trained with; None where the weights came without a record."""
        known = getattr(self.config, "value_statements", None)
        return tuple(known) if known is not None else None

    @property
    def calibrations(self) -> dict[str, dict]:
        """By principle id, what `livo calibrate` measured of its directions; empty where nothing was."""
        return dict(getattr(self.config, "value_calibration", None) or {})

    @classmethod
    def from_text_encoder(cls, text_encoder: CLIPTextModel) -> ValueEncoder:
        """A copy with its own weights: where training starts."""
        encoder = cls(copy.deepcopy(text_encoder.config))
        encoder.load_state_dict(text_encoder.state_dict())
        return encoder.to(text_encoder.device, text_encoder.dtype)

    @classmethod
    def load(cls, source: str | Path, like: CLIPTextModel) -> ValueEncoder:
        """Weights from a hub id, a folder, or one .safetensors file, ready to stand beside the text encoder `like`.

        A folder or repository may hold the encoder itself or, as the published one does, a `value_encoder` subfolder. A single
        file has no configuration, so it must have the architecture of `like`. Both key layouts of CLIPTextModel are read, with
        and without the `text_model.` prefix. Only safetensors are.

        Raises:
            FileNotFoundError: nothing is there. ValueError: it does not fit `like`; the message says in what.
        """
        path = Path(source)
        if path.suffix == ".safetensors" and not path.is_dir():
            encoder = cls._from_file(path, like)
        elif path.is_dir():
            nested = path / "value_encoder"
            folder = path if (path / "config.json").is_file() else nested
            if not (folder / "config.json").is_file():
                raise FileNotFoundError(f"{path}: no config.json here or in its value_encoder folder, so no value encoder")
            encoder = cls._from_folder(folder)
        elif path.exists() or path.is_absolute() or str(source).startswith("."):
            raise FileNotFoundError(f"{path}: a value encoder is a folder or a .safetensors file, and this is neither")
        else:
            try:
                encoder = cls._from_folder(str(source), subfolder="value_encoder")
            except OSError:
                encoder = cls._from_folder(str(source))
        check_fit(encoder, like, f"value encoder {source}")
        return encoder.to(like.device, like.dtype).eval()

    @classmethod
    def _from_folder(cls, folder: str | Path, **where) -> ValueEncoder:
        # CLIPTextModel knows the legacy keys and a subclass does not; the two differ in methods alone.
        try:
            encoder, report = CLIPTextModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **where)
        except SafetensorError as error:
            raise ValueError(f"value encoder {folder}: its weights cannot be read ({error}); save or download it again") from error
        encoder.__class__ = cls
        if report["missing_keys"]:
            raise ValueError(f"value encoder {folder}: {_some(report['missing_keys'])} missing; is it the whole encoder?")
        return encoder

    @classmethod
    def _from_file(cls, file: Path, like: CLIPTextModel) -> ValueEncoder:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; give a value encoder's .safetensors file or folder")
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file}: not a readable safetensors file ({error}); save or download it again") from error
        encoder = cls.from_text_encoder(like)
        encoder.config.value_statements = None
        expected = encoder.state_dict()
        prefix = "text_model."
        flat = {key.removeprefix(prefix): value for key, value in tensors.items() if not key.endswith("position_ids")}
        state = {key: flat.pop(key.removeprefix(prefix), None) for key in expected if not key.endswith("position_ids")}
        missing = [key for key, value in state.items() if value is None]
        if missing or flat:
            what = f"{_some(missing)} missing" if missing else f"{_some(list(flat))} unknown"
            raise ValueError(f"{file}: {what}; it does not hold a value encoder of this backbone's architecture")
        for key, value in state.items():
            if value.shape != expected[key].shape:
                raise ValueError(
                    f"{file}: {key} has shape {tuple(value.shape)}, this backbone's text encoder has "
                    f"{tuple(expected[key].shape)}; load the encoder that was trained for this backbone"
                )
        encoder.load_state_dict({key: value.to(torch.float32) for key, value in state.items()}, strict=False)
        return encoder


def check_fit(encoder: CLIPTextModel, like: CLIPTextModel, name: str) -> None:
    """Raise ValueError unless `encoder` reads the tokens of `like` and writes its width."""
    width, vocabulary = encoder.config.hidden_size, encoder.config.vocab_size
    if width != like.config.hidden_size or vocabulary > like.config.vocab_size:
        raise ValueError(
            f"{name}: hidden_size is {width} and vocab_size {vocabulary}, the backbone's text encoder has "
            f"{like.config.hidden_size} and {like.config.vocab_size}; load the encoder that was trained for this backbone"
        )


def _some(keys: list[str]) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
