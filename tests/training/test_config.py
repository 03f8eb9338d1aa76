"""Options that contradict each other, or are out of range."""

from dataclasses import fields, replace

import pytest

from livo.training.config import LoopConfig


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "ppo"}, "objective is 'ppo'"),
        ({"steps": 0}, "steps is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"caption_dropout": 1.0}, "caption_dropout"),
        ({"prompt_swap": 1.5}, "prompt_swap is 1.5"),
        ({"prompt_swap": 0.5, "adapter": "lora"}, "a LoRA has no value encoder"),
        ({"value_encoder": "mine", "adapter": "lora"}, "a LoRA cannot start from"),
        ({"contrary_prompt": -0.1}, "contrary_prompt is -0.1"),
        ({"objective": "distillation", "guidance": 2.0}, "guidance is 2.0: distillation"),
        ({"objective": "distillation", "caption_dropout": 0.1}, "caption_dropout is 0.1, but the objective is distillation"),
        ({"beta": -100.0}, "beta is -100"),
        ({"alpha": -50.0}, "alpha is -50"),
        ({"gamma_1": -1.0}, "gamma_1 is -1"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"validation_images": 0}, "validation_images is 0"),
        ({"freeze_embeddings": True, "adapter": "lora"}, "a LoRA trains no embeddings"),
        ({"data": ""}, "data is empty"),
    ],
)
def test_options_out_of_range_or_in_contradiction_are_refused(config, changes, words):
    with pytest.raises(ValueError, match=words):
        replace(config, **changes)


def test_the_options_of_the_loop_are_those_of_the_run(config):
    config = replace(config, ema=0.5, keep=7, accumulation=3)
    assert all(getattr(config.loop, f.name) == getattr(config, f.name) for f in fields(LoopConfig))
