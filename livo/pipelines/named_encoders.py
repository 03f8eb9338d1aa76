"""NamedEncoders: the value encoders of a pipeline, each with a name and a scale, as LoRA adapters have."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from livo.pipelines.selection import checked_scale
from livo.utils.arguments import strict
from livo.utils.weights import check_module
from livo.value_encoder.encoder import ValueEncoder, check_fit, check_tokenizer

logger = logging.getLogger(__name__)

DEFAULT = "default"  # the component `value_encoder`; an encoder named "mine" is the component `value_encoder_mine`
PREFIX = "value_encoder_"


def component(name: str) -> str:
    """The component of the pipeline, and the folder of a saved one, that holds the encoder of this name."""
    return "value_encoder" if name == DEFAULT else PREFIX + name


class NamedEncoders:
    """The part of ValueMixin that holds value encoders. One is the simple case: it is `pipe.value_encoder`, and its name is "default".

    Each value is carried out by the encoder that its principle names (`encoder:`), else by the first, in the order of
    `value_encoders`, that was trained with all its directions, or with its statement. A statement that no encoder lists goes to the
    first that came without a training record, else to the first.
    """

    unet: torch.nn.Module
    text_encoder: CLIPTextModel | None
    tokenizer: CLIPTokenizer | None
    value_encoder: CLIPTextModel | None
    _encoder_scales: dict[str, float]

    @classmethod
    def _get_signature_keys(cls, obj):
        """See the base class. The named encoders of a pipeline are components like those in its constructor."""
        expected, optional = super()._get_signature_keys(obj)
        config = {} if isinstance(obj, type) else getattr(obj, "_internal_dict", {})
        return sorted({*expected, *(key for key in config if key.startswith(PREFIX))}), optional

    @property
    def value_encoders(self) -> dict[str, CLIPTextModel]:
        """The encoders by name: the default one first, then in the order in which they were loaded."""
        named = {key.removeprefix(PREFIX): getattr(self, key) for key in self.config if key.startswith(PREFIX)}
        return ({} if self.value_encoder is None else {DEFAULT: self.value_encoder}) | named

    @strict
    def load_value_encoder(self, source: str | Path | CLIPTextModel, name: str = DEFAULT) -> None:
        """Load a value encoder beside those of other names, or in place of the one of this name.

        Args:
            source: Hub id, folder, .safetensors file (see `ValueEncoder.load`), or a CLIPTextModel. In a folder or repository that
                holds several, the one of this name is taken.
            name: Letters, digits, "_" and "-".

        Raises:
            ValueError: it does not fit the backbone, or the name is not one. FileNotFoundError: nothing is there. All stays as it was.
        """
        encoder = self._loaded(source, name)
        self.register_modules(**{component(name): encoder})
        for other, known in self.value_encoders.items():
            both = set(getattr(known, "statements", None) or ()) & set(getattr(encoder, "statements", None) or ())
            if other != name and both:
                first, _ = (n for n in self.value_encoders if n in (name, other))
                logger.warning(
                    "value encoders %s and %s both know %s: %s, loaded first, carries them out where a principle does not name one "
                    "(`encoder: %s`)",
                    *(other, name, "; ".join(sorted(both)), first, other if first == name else name),
                )

    @strict
    def unload_value_encoder(self, name: str | None = None) -> None:
        """Remove the encoder of this name, or all of them: without any, images are the base pipeline's, bit for bit.

        Raises:
            ValueError: no encoder of this name is loaded.
        """
        loaded = self.value_encoders
        if name is not None and name not in loaded:
            raise ValueError(f"no value encoder {name!r} is loaded: there are {', '.join(loaded) or 'none'}")
        for gone in [name] if name is not None else list(loaded):
            self._encoder_scales.pop(gone, None)
            if gone == DEFAULT:
                self.register_modules(value_encoder=None)
            else:
                self._forget(component(gone))

    @property
    def value_scale(self) -> float:
        """Strength of the value token where a call gives none: 0 is the base, 1 is what was trained. It is saved with the pipeline."""
        return self.config.value_scale

    @property
    def value_encoder_scales(self) -> dict[str, float]:
        """By encoder name, what the scale of its tokens is multiplied by. They are saved with the pipeline."""
        return {name: self._encoder_scales.get(name, 1.0) for name in self.value_encoders}

    @strict
    def set_value_scale(self, scale: float, encoder: str | None = None) -> None:
        """Set `value_scale`, or with a name the scale of one encoder, which multiplies that of every call.

        Raises:
            ValueError: the scale is negative or no number, or no encoder of this name is loaded.
        """
        if encoder is None:
            self.register_to_config(value_scale=checked_scale(scale))
        elif encoder in self.value_encoders:
            self._encoder_scales[encoder] = checked_scale(scale)
        else:
            raise ValueError(f"no value encoder {encoder!r} is loaded: there are {', '.join(self.value_encoders) or 'none'}")

    def _load_all(self, source: str | Path | CLIPTextModel | Mapping) -> None:
        """Load one encoder as the default, or several by name; all of them or none."""
        sources = source if isinstance(source, Mapping) else {DEFAULT: source}
        encoders = {name: self._loaded(one, name) for name, one in sources.items()}
        for name, encoder in encoders.items():
            self.load_value_encoder(encoder, name)

    def _loaded(self, source: str | Path | CLIPTextModel, name: str) -> CLIPTextModel:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise ValueError(f"the name of a value encoder is {name!r}: write it in letters, digits, '_' and '-'")
        self._check_tokenizer(f"value encoder {name!r}")
        if isinstance(source, (str, Path)):
            return ValueEncoder.load(source, self.text_encoder, self._width, self.tokenizer, component(name))
        if not isinstance(source, CLIPTextModel):
            raise TypeError(f"value encoder {name!r} is {source!r}: give a hub id, a path, or a CLIPTextModel")
        self._check(source, f"the given value encoder {name!r}")
        return source

    def _forget(self, *names: str) -> None:
        """Take attributes out of the pipeline and its configuration."""
        for name in names:
            self.__dict__.pop(name, None)
        self._internal_dict = type(self._internal_dict)({k: v for k, v in self._internal_dict.items() if k not in names})

    @property
    def _width(self) -> int:
        width = self.unet.config.cross_attention_dim
        return width if isinstance(width, int) else width[0]

    def _check_tokenizer(self, name: str) -> None:
        if self.tokenizer is None:
            raise ValueError(f"{name} reads text, and the pipeline has no tokenizer: load the pipeline with its tokenizer")

    def _check(self, encoder: CLIPTextModel, name: str) -> None:
        self._check_tokenizer(name)
        check_module(encoder, name)
        check_fit(encoder, self.text_encoder, name, self._width)
        check_tokenizer(encoder, self.tokenizer, name)
