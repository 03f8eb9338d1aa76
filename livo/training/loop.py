"""The training loop that every trained model shares: data -> batch -> loss -> update -> record.

It is our own, and not the Trainer of another library, because a run that was killed and resumed must give the weights of one that was
not, bit for bit: nothing that it computes depends on the state of a data loader or of a global random generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from livo.training.checkpoints import Checkpoints
from livo.training.config import LoopConfig
from livo.training.update import Update

if TYPE_CHECKING:
    from accelerate import Accelerator

Batch = TypeVar("Batch")
Sampler = Callable[[int, int], Batch]  # (step, micro-batch) -> batch
Step = Callable[[Batch], tuple[torch.Tensor, dict[str, torch.Tensor]]]  # batch -> (loss, statistics)
Record = dict[str, float]
Autocast = Callable[[], AbstractContextManager]


class Diverged(ValueError):
    """The loss is not finite, or the model no longer denoises. The message names the last good checkpoint."""


def training_loop(
    modules: Mapping[str, nn.Module],
    sampler: Sampler,
    training_step: Step,
    config: LoopConfig,
    checkpoints: Path,
    *,
    autocast: Autocast = nullcontext,
    accelerator: Accelerator | None = None,
    guard: Callable[[Record], str | None] | None = None,
) -> Iterator[Record]:
    """Minimise a loss over the trainable parameters of `modules`, and yield a record every `config.log_every` steps.

    A run that is restarted with the same `checkpoints` resumes from the newest one. On a CPU it then gives the weights of an
    uninterrupted run bit for bit, as long as `sampler` depends on its arguments alone.

    Args:
        modules: What is trained, by the names that checkpoints use. With `config.ema`, they hold the averaged weights at the end.
        sampler: Called with step and micro-batch, both counted from 0. It returns the batch of this process.
        training_step: Called with a batch, inside `autocast()`. It returns the loss, a scalar, and the statistics to record.
        config: The number of steps, and how weights are updated, recorded and saved.
        checkpoints: The folder of the checkpoints.
        autocast: Makes the context that losses are computed in.
        accelerator: Its processes share each step: gradients and records are averaged over them.
        guard: Looks at each record before anything is saved, and returns what is wrong or None.

    Raises:
        Diverged: Loss or weights are not finite, or `guard` objects. The modules then hold the last good checkpoint.
    """
    update = Update(modules, config, accelerator)
    saved = Checkpoints(checkpoints, config.keep, update)
    means = _Means(update.parameters[0].device, accelerator)
    first = recorded = saved.load()
    for step in range(first, config.steps):
        for micro in range(config.accumulation):
            batch = sampler(step, micro)  # data -> batch
            with autocast():
                loss, statistics = training_step(batch)  # batch -> loss
            update.backward(loss / config.accumulation)
            means.add({"loss": loss, **statistics}, config.accumulation)
        means.add({"grad_norm": update.step(step)})  # loss -> update
        done = step + 1
        logs, saves = (done % every == 0 or done == config.steps for every in (config.log_every, config.save_every))
        if logs or saves:  # the only steps at which the host waits for the device
            record = means.record(done - recorded)  # update -> record
            if fault := _fault(record, guard):
                raise Diverged(saved.go_back(f"{fault} at step {done}"))
        if logs:  # before the checkpoint: a resumed run makes a record again that a kill has lost
            yield {"step": done, "lr": update.lr, **record}
            means.clear()
            recorded = done
        if saves:
            if not update.is_finite():
                raise Diverged(saved.go_back(f"weights are not finite at step {done}"))
            if accelerator is None or accelerator.is_main_process:
                saved.save(done)
    update.use_average()


class _Means:
    """The means of statistics over the steps since the last record and over all processes; summed on the device."""

    def __init__(self, device: torch.device, accelerator: Accelerator | None):
        self.device, self.accelerator = device, accelerator
        self.clear()

    def clear(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}

    def add(self, statistics: Mapping[str, torch.Tensor], parts: int = 1) -> None:
        """Add one of the `parts` micro-batches of a step."""
        for name, value in statistics.items():
            number = torch.as_tensor(value, device=self.device).detach().float()
            self.sums[name] = self.sums.get(name, 0.0) + number / parts

    def record(self, steps: int) -> Record:
        values = torch.stack([number.reshape(()) for number in self.sums.values()]) / steps
        if self.accelerator is not None:
            values = self.accelerator.reduce(values, "mean")
        return dict(zip(self.sums, values.tolist(), strict=True))


def _fault(record: Record, guard: Callable[[Record], str | None] | None) -> str | None:
    if not math.isfinite(record["loss"]):
        return f"the loss is {record['loss']}"
    return guard(record) if guard else None
