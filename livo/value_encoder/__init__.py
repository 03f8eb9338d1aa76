"""The value encoder, the value token it gives, and attention with value tokens."""

from livo.value_encoder.encoder import PreTrainedModel, ValueEncoder

# Saved pipelines name `livo.value_encoder.ValueEncoder`. diffusers finds out how to load it by the name of its base class in this module.
__all__ = ["PreTrainedModel", "ValueEncoder"]
