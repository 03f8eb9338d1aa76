import copy
import itertools
import logging

import pytest
import torch
from torch import nn

from livo.training.loop import Diverged, optimise


def regression(module, poison=None):
    def loss(step, micro):
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
        value = (module(x) - x.sum(1, keepdim=True)).square().mean()
        return value * (float("nan") if step == poison else 1.0), {"half": value.detach() / 2}

    return loss


SETTINGS = {"steps": 20, "lr": 0.1, "save_every": 5, "log_every": 1, "warmup": 3}


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_fused"])
def test_a_run_that_was_killed_and_restarted_equals_one_that_was_not(tmp_path, ema, optimizer):
    torch.manual_seed(0)
    first = nn.Linear(3, 1)
    second, third = copy.deepcopy(first), copy.deepcopy(first)
    settings = SETTINGS | {"ema": ema, "optimizer": optimizer}
    whole = list(optimise({"m": first}, regression(first), checkpoints=tmp_path / "a", **settings))
    list(itertools.islice(optimise({"m": second}, regression(second), checkpoints=tmp_path / "b", **settings), 12))
    rest = list(optimise({"m": third}, regression(third), checkpoints=tmp_path / "b", **settings))
    assert [r["step"] for r in rest] == list(range(11, 21))
    assert [r["loss"] for r in rest] == [r["loss"] for r in whole[10:]]
    assert torch.equal(first.weight, third.weight) and torch.equal(first.bias, third.bias)
    assert whole[-1]["loss"] < whole[0]["loss"]


def test_records_are_the_means_since_the_last_one(tmp_path):
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    twin = copy.deepcopy(module)
    single = list(optimise({"m": module}, regression(module), checkpoints=tmp_path / "a", **SETTINGS))
    grouped = list(optimise({"m": twin}, regression(twin), checkpoints=tmp_path / "b", **SETTINGS | {"log_every": 4}))
    assert [r["step"] for r in grouped] == [4, 8, 12, 16, 20]
    for i, record in enumerate(grouped):
        part = single[4 * i : 4 * i + 4]
        for name in ("loss", "half", "grad_norm"):
            assert record[name] == pytest.approx(sum(r[name] for r in part) / 4, rel=1e-4)


def test_the_learning_rate_warms_up_and_comes_down(tmp_path):
    module = nn.Linear(3, 1)
    rates = [r["lr"] for r in optimise({"m": module}, regression(module), checkpoints=tmp_path, **SETTINGS)]
    assert rates[0] == pytest.approx(0.1 / 3) and max(rates) == rates[2] and rates[-1] < 0.01 * max(rates)


def test_a_loss_that_is_not_finite_stops_the_run_at_its_last_good_checkpoint(tmp_path):
    module = nn.Linear(3, 1)
    with pytest.raises(Diverged, match=r"nan at step 13.*step-0000010"):
        list(optimise({"m": module}, regression(module, poison=12), checkpoints=tmp_path, **SETTINGS))
    good = copy.deepcopy(module.state_dict())
    assert all(value.isfinite().all() for value in good.values())
    rest = list(optimise({"m": module}, regression(module), checkpoints=tmp_path, **SETTINGS))
    assert rest[0]["step"] == 11


def test_nothing_is_saved_when_the_guard_objects(tmp_path):
    module = nn.Linear(3, 1)
    settings = SETTINGS | {"guard": lambda record: "the model is lost"}
    with pytest.raises(Diverged, match=r"the model is lost at step 1, .* there is no checkpoint yet"):
        list(optimise({"m": module}, regression(module), checkpoints=tmp_path, **settings))
    assert not list(tmp_path.glob("*.safetensors"))


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    module = nn.Linear(3, 1)
    list(optimise({"m": module}, regression(module), checkpoints=tmp_path, keep=2, **SETTINGS))
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["step-0000015.safetensors", "step-0000020.safetensors"]


def test_a_broken_checkpoint_is_said_aloud_and_the_one_before_it_used(tmp_path, caplog):
    module = nn.Linear(3, 1)
    list(itertools.islice(optimise({"m": module}, regression(module), checkpoints=tmp_path, keep=2, **SETTINGS), 11))
    newest = tmp_path / "step-0000010.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        rest = list(optimise({"m": module}, regression(module), checkpoints=tmp_path, keep=2, **SETTINGS))
    assert rest[0]["step"] == 6 and "step-0000010.safetensors cannot be read" in caplog.text


def test_a_checkpoint_of_other_weights_is_refused(tmp_path):
    module, other = nn.Linear(3, 1), nn.Linear(3, 1, bias=False)
    list(optimise({"m": module}, regression(module), checkpoints=tmp_path, **SETTINGS))
    with pytest.raises(ValueError, match="of other weights"):
        list(optimise({"m": other}, regression(other), checkpoints=tmp_path, **SETTINGS))


def test_an_optimizer_that_is_not_there_is_named(tmp_path):
    module = nn.Linear(3, 1)
    with pytest.raises(ValueError, match="bitsandbytes"):
        next(optimise({"m": module}, regression(module), checkpoints=tmp_path, optimizer="adamw_8bit", **SETTINGS))
