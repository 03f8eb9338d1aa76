import copy
import itertools
import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from livo.training.config import LoopConfig
from livo.training.loop import Diverged, training_loop

CONFIG = LoopConfig(steps=20, lr=0.1, save_every=5, log_every=1, warmup=3)


def sampler(step, micro):
    return step, torch.randn(16, 3, generator=torch.Generator().manual_seed(step))


def run(module, checkpoints, *, poison=None, guard=None, **options):
    """The training loop on a linear regression; its loss is nan at the step `poison`."""

    def training_step(batch):
        step, x = batch
        value = (module(x) - x.sum(1, keepdim=True)).square().mean()
        return value * (float("nan") if step == poison else 1.0), {"half": value.detach() / 2}

    return training_loop({"m": module}, sampler, training_step, replace(CONFIG, **options), checkpoints, guard=guard)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_fused"])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path, ema, optimizer):
    torch.manual_seed(0)
    first = nn.Linear(3, 1)
    second, third = copy.deepcopy(first), copy.deepcopy(first)
    settings = {"ema": ema, "optimizer": optimizer}
    whole = list(run(first, tmp_path / "a", **settings))
    list(itertools.islice(run(second, tmp_path / "b", **settings), 12))
    rest = list(run(third, tmp_path / "b", **settings))
    assert [r["step"] for r in rest] == list(range(11, 21))
    assert [r["loss"] for r in rest] == [r["loss"] for r in whole[10:]]
    assert torch.equal(first.weight, third.weight) and torch.equal(first.bias, third.bias)
    assert whole[-1]["loss"] < whole[0]["loss"]


def test_a_record_holds_the_means_since_the_last_one(tmp_path):
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    twin = copy.deepcopy(module)
    single = list(run(module, tmp_path / "a"))
    grouped = list(run(twin, tmp_path / "b", log_every=4))
    assert [r["step"] for r in grouped] == [4, 8, 12, 16, 20]
    for i, record in enumerate(grouped):
        part = single[4 * i : 4 * i + 4]
        for name in ("loss", "half", "grad_norm"):
            assert record[name] == pytest.approx(sum(r[name] for r in part) / 4, rel=1e-4)


def test_the_learning_rate_warms_up_and_then_decays(tmp_path):
    module = nn.Linear(3, 1)
    rates = [r["lr"] for r in run(module, tmp_path)]
    assert rates[0] == pytest.approx(0.1 / 3) and max(rates) == rates[2] and rates[-1] < 0.01 * max(rates)


def test_a_loss_that_is_not_finite_stops_at_the_last_good_checkpoint(tmp_path):
    module = nn.Linear(3, 1)
    with pytest.raises(Diverged, match=r"nan at step 13.*step-0000010"):
        list(run(module, tmp_path, poison=12))
    good = copy.deepcopy(module.state_dict())
    assert all(value.isfinite().all() for value in good.values())
    rest = list(run(module, tmp_path))
    assert rest[0]["step"] == 11


def test_nothing_is_saved_when_the_guard_objects(tmp_path):
    module = nn.Linear(3, 1)
    with pytest.raises(Diverged, match=r"the model is lost at step 1, .* there is no checkpoint yet"):
        list(run(module, tmp_path, guard=lambda record: "the model is lost"))
    assert not list(tmp_path.glob("*.safetensors"))


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    module = nn.Linear(3, 1)
    list(run(module, tmp_path, keep=2))
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["step-0000015.safetensors", "step-0000020.safetensors"]


def test_a_broken_checkpoint_gets_a_warning_and_the_one_before_is_used(tmp_path, caplog):
    module = nn.Linear(3, 1)
    list(itertools.islice(run(module, tmp_path, keep=2), 11))
    newest = tmp_path / "step-0000010.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        rest = list(run(module, tmp_path, keep=2))
    assert rest[0]["step"] == 6 and "step-0000010.safetensors cannot be read" in caplog.text


def test_a_checkpoint_with_other_weights_is_refused(tmp_path):
    module, other = nn.Linear(3, 1), nn.Linear(3, 1, bias=False)
    list(run(module, tmp_path))
    with pytest.raises(ValueError, match="holds other weights"):
        list(run(other, tmp_path))


def test_a_missing_optimizer_package_is_named(tmp_path):
    module = nn.Linear(3, 1)
    with pytest.raises(ValueError, match="bitsandbytes"):
        next(run(module, tmp_path, optimizer="adamw_8bit"))
