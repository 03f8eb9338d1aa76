import copy
import itertools
from functools import partial

import pytest
import torch
from torch import nn

from livo import ValueEncoder
from livo.objectives import livo
from livo.training import optimise, train_value_encoder


def regression(module):
    def loss(step):
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
        return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}

    return loss


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_that_was_killed_and_restarted_equals_one_that_was_not(tmp_path, ema):
    torch.manual_seed(0)
    first = nn.Linear(3, 1)
    second, third = copy.deepcopy(first), copy.deepcopy(first)
    settings = {"steps": 20, "lr": 0.1, "ema": ema, "save_every": 5, "bf16": False, "warmup": 3}
    whole = list(optimise({"m": first}, regression(first), state_file=tmp_path / "a", **settings))
    list(itertools.islice(optimise({"m": second}, regression(second), state_file=tmp_path / "b", **settings), 12))
    rest = list(optimise({"m": third}, regression(third), state_file=tmp_path / "b", **settings))
    assert [r["step"] for r in rest] == list(range(11, 21))
    assert [r["loss"] for r in rest] == [r["loss"] for r in whole[10:]]
    assert torch.equal(first.weight, third.weight)
    assert whole[-1]["loss"] < whole[0]["loss"]


def pairs(count=8):
    generator = torch.Generator().manual_seed(0)
    rows = [{"prompt": "a photo of a doctor", "value": "gender equality"}] * count
    winner, loser = torch.randn(4, 8, 8, generator=generator), torch.randn(4, 8, 8, generator=generator)
    return rows, winner.expand(count, -1, -1, -1), loser.expand(count, -1, -1, -1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_training_moves_the_encoder_towards_the_aligned_images_and_never_the_backbone(pipe, tmp_path, prediction):
    pipe.scheduler.register_to_config(prediction_type=prediction)
    before = {k: v.clone() for k, v in (pipe.unet.state_dict() | pipe.text_encoder.state_dict()).items()}
    encoder = ValueEncoder.from_text_encoder(pipe.text_encoder)
    objective = partial(livo, beta=100.0, alpha=50.0)
    settings = {"steps": 60, "lr": 2e-2, "batch": 8, "state_file": tmp_path / "state"}
    records = list(train_value_encoder(encoder, pipe, *pairs(), objective, **settings))
    early, late = (sum(r["winner_gain"] + r["loser_push"] for r in part) for part in (records[:10], records[-10:]))
    assert late > early + 1e-4 and records[-1]["loss"] < records[0]["loss"]
    after = pipe.unet.state_dict() | pipe.text_encoder.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_before_training_the_errors_are_those_of_a_token_that_changes_little(pipe, tmp_path):
    """The record's gains are measured against the same UNet without a token."""
    encoder = ValueEncoder.from_text_encoder(pipe.text_encoder)
    settings = {"steps": 1, "lr": 0.0, "batch": 1, "state_file": tmp_path / "state"}
    record = next(iter(train_value_encoder(encoder, pipe, *pairs(), livo, **settings)))
    assert abs(record["winner_gain"]) < 0.05 and record["loss"] == pytest.approx(
        max(0, 1 - 1000 * record["winner_gain"]) + max(0, 0.5 - 500 * record["loser_push"]), rel=1e-3
    )
