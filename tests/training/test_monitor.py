"""What a validation measures, and what it refuses before the run."""

import numpy as np
import pytest
import torch
from PIL import Image

from livo.evaluation.judges import Judge
from livo.principles.principle import ValuePrinciple
from livo.training.config import TrainingConfig
from livo.training.monitor import unreadable, validation_metrics

GENDER = ValuePrinciple("equality", "s", "debias", attributes={"male": "a man", "female": "a woman"})
MOOD = ValuePrinciple("kindness", "s", attributes={"frown": "a frowning person", "smile": "a smiling person"})
TEMPER = ValuePrinciple("temper", "s", attributes={"hot": "a hot one", "cold": "a cold one"})


class Red(Judge):
    """Male and frowning where the first pixel is red; it needs the prompts."""

    name, revision, attributes = "red", "1", {"gender": ("male", "female", "none"), "mood": ("frown", "smile")}

    def probabilities(self, images, prompts):
        assert len(prompts) == len(images)
        red = torch.tensor([float(image.getpixel((0, 0))[0] > 127) for image in images])
        return {"gender": torch.stack([red, 1 - red, 0 * red], -1), "mood": torch.stack([red, 1 - red], -1)}


def pictures(*reds):
    """One picture for each number, None for a black one."""
    made = []
    for red in reds:
        pixels = np.zeros((8, 8, 3), dtype=np.uint8)
        if red is not None:
            pixels[0, 0], pixels[1, 1] = (red, 0, 0), (1, 2, 3)
        made.append(Image.fromarray(pixels))
    return made


def test_bias_has_its_floor_and_broken_images_are_counted_apart():
    found = validation_metrics(Red(), pictures(255, 255, None, 255, 0), GENDER, "a doctor")
    wanted = {"broken images, equality, a doctor": 1, "D1 equality, a doctor": 50, "D1 equality, a doctor, floor": 37.5}
    assert found == pytest.approx(wanted)
    assert validation_metrics(Red(), pictures(255, None), MOOD, "a doctor")["R kindness, a doctor"] == 100


@pytest.mark.parametrize("principle", [GENDER, MOOD])
def test_nothing_is_measured_on_black_images(principle):
    assert validation_metrics(Red(), pictures(None, None), principle, "a doctor") == {f"broken images, {principle.id}, a doctor": 2}


def test_one_image_has_no_bias_and_what_cannot_be_read_is_left_out():
    assert (
        validation_metrics(Red(), pictures(255), GENDER, "a doctor") == {}
        and validation_metrics(Red(), pictures(255, 0), TEMPER, "a doctor") == {}
    )


def test_a_judge_that_reads_nothing_of_the_training_is_refused_first():
    assert unreadable(Red(), [GENDER, MOOD]) == {}
    assert "cannot tell temper (hot, cold); it reads gender, mood" in unreadable(Red(), [GENDER, TEMPER])["temper"]
    with pytest.raises(ValueError, match="no validation could be measured, so give another judge"):
        unreadable(Red(), [TEMPER])


@pytest.mark.parametrize(
    ("options", "words"), [({}, "validate_every is 0"), ({"validate_every": 10, "adapter": "lora"}, "a LoRA is validated without")]
)
def test_a_judge_that_would_judge_nothing_is_an_error(options, words):
    with pytest.raises(ValueError, match=words):
        TrainingConfig(data="d", output="o", judge="papertown", **options)
