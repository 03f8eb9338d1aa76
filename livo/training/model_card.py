"""The model card of trained weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from huggingface_hub import ModelCard, ModelCardData

from livo.pipelines.model_card import limits
from livo.training.config import TrainingConfig

_CARD = """---
{{ card_data }}
---

# {{ config.adapter }} for {{ config.model }}, trained with {{ config.objective }}

Load it with `pipe.{{ load }}(folder)`. Records call its weights {{ record["weights"] }}.

It was trained on {{ record["pairs"] }} pairs (data {{ record["data"] }}) of these statements:
{{ statements }}. The backbone ({{ record["backbone"] }}) was frozen. training.json holds every option and version.

## Intended use

It steers a text-to-image model towards stated values. It is not a security boundary: anyone with the weights can leave it out.

## Limits

{{ limits }}

Run `livo evaluate` on held-out prompts before relying on it.
"""


def weights_card(config: TrainingConfig, record: Mapping, statements: Sequence[str]) -> str:
    """README.md of a trained value encoder or LoRA: its use, its training and its known limits.

    Args:
        config: The run's options.
        record: The training record.
        statements: The statements that were trained.
    """
    card = ModelCard.from_template(
        ModelCardData(
            library_name="livo", base_model=config.model, tags=["text-to-image", "preference-optimisation", config.objective]
        ),
        template_str=_CARD,
        config=config,
        record=record,
        load="load_value_encoder" if config.adapter == "value_encoder" else "load_lora_weights",
        statements=", ".join(statements),
        limits=limits(record),
    )
    return str(card)
