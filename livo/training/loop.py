"""The training loop that every job shares: AdamW, a cosine schedule, checkpoints that resume bit for bit, a guard against divergence."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from livo.training.config import OPTIMIZERS
from livo.utils.files import remove, replacing, sweep

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

Loss = Callable[[int, int], tuple[torch.Tensor, dict[str, torch.Tensor]]]
Record = dict[str, float]
Autocast = Callable[[], AbstractContextManager]


class Diverged(ValueError):
    """The loss is no longer finite, or the model no longer denoises. The message names the last good checkpoint."""


def optimise(
    modules: dict[str, nn.Module],
    loss: Loss,
    *,
    steps: int,
    lr: float,
    checkpoints: Path,
    keep: int = 1,
    save_every: int = 250,
    log_every: int = 10,
    warmup: int = 100,
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    accumulation: int = 1,
    ema: float = 0.0,
    optimizer: str = "adamw",
    autocast: Autocast = nullcontext,
    accelerator: Accelerator | None = None,
    guard: Callable[[Record], str | None] | None = None,
) -> Iterator[Record]:
    """Minimise `loss(step, micro)` over the trainable parameters of `modules`; yield a record every `log_every` steps.

    `loss` must draw its randomness from its arguments alone: then a run that was killed and restarted from `checkpoints` gives the
    weights of a run that was not, bit for bit on a CPU. A step takes the mean over `accumulation` micro-batches and over the
    processes of `accelerator`. Records hold the means since the last one. With `ema` > 0 the modules hold the averaged weights when
    the iterator ends. `loss` is computed inside `autocast()`. `guard` looks at the means before anything is saved and says what is
    wrong, or None.

    Raises:
        Diverged: loss or weights are not finite, or `guard` objects; the modules are left at the last good
            checkpoint, which is never overwritten.
    """
    names, parameters = zip(
        *((f"{m}.{n}", p) for m, module in modules.items() for n, p in module.named_parameters() if p.requires_grad), strict=True
    )
    adam = _optimizer(optimizer, parameters, lr, weight_decay)
    average = [p.detach().clone() for p in parameters] if ema else []
    state = _State(checkpoints, keep, names, parameters, adam, average)
    first = state.load()
    device = parameters[0].device
    scaler = getattr(accelerator, "scaler", None)
    if scaler is not None and state.scaler:
        scaler.load_state_dict(state.scaler)
    sums: dict[str, torch.Tensor] = {}
    since = first
    for step in range(first, steps):
        for group in adam.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for micro in range(accumulation):
            with autocast():
                value, statistics = loss(step, micro)
            value = value / accumulation
            (scaler.scale(value) if scaler is not None else value).backward()
            for name, number in {"loss": value.detach() * accumulation, **statistics}.items():
                sums[name] = sums.get(name, 0.0) + torch.as_tensor(number, device=device).detach().float() / accumulation
        _average_gradients(parameters, accelerator)
        if scaler is not None:
            scaler.unscale_(adam)
        sums["grad_norm"] = sums.get("grad_norm", 0.0) + nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        if scaler is not None:
            scaler.step(adam)
            scaler.update()
        else:
            adam.step()
        adam.zero_grad(set_to_none=True)
        if ema:
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(ema, (1 + step) / (10 + step)))
        done = step + 1
        logging_step = done % log_every == 0 or done == steps
        if logging_step or done % save_every == 0:  # the only steps at which the host waits for the device
            record = _means(sums, done - since, accelerator)
            wrong = guard(record) if guard else None
            if not math.isfinite(record["loss"]):
                wrong = f"the loss is {record['loss']}"
            if wrong:
                raise Diverged(state.restore(f"{wrong} at step {done}"))
        if logging_step:  # before the checkpoint: a record that was lost to a kill is then made again
            yield {"step": done, "lr": adam.param_groups[0]["lr"], **record}
            sums, since = {}, done
        if done % save_every == 0 or done == steps:
            if not all(torch.isfinite(p).all() for p in parameters):
                raise Diverged(state.restore(f"weights are not finite at step {done}"))
            if accelerator is None or accelerator.is_main_process:
                state.save(done, scaler.state_dict() if scaler is not None else {})
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=bool(average)):
            parameter.copy_(mean)


def _means(sums: dict[str, torch.Tensor], steps: int, accelerator: Accelerator | None) -> Record:
    values = torch.stack([sums[name].reshape(()) for name in sums]) / steps
    if accelerator is not None:
        values = accelerator.reduce(values, "mean")
    return dict(zip(sums, values.tolist(), strict=True))


def _average_gradients(parameters, accelerator: Accelerator | None) -> None:
    """One message for all gradients: the modules stay plain, without a wrapper."""
    if accelerator is None or accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = accelerator.reduce(nn.utils.parameters_to_vector(gradients), "mean")
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _optimizer(name: str, parameters, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    settings = {"lr": lr, "betas": (0.9, 0.99), "weight_decay": weight_decay}
    if name == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise ValueError(
                "optimizer adamw_8bit needs the package bitsandbytes: pip install bitsandbytes, or choose adamw"
            ) from None
        return AdamW8bit(parameters, **settings)
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer is {name!r}: choose one of {', '.join(OPTIMIZERS)}")
    return torch.optim.AdamW(parameters, fused=name == "adamw_fused", **settings)


class _State:
    """Weights, averages and moments in one safetensors file a checkpoint, written beside and renamed."""

    def __init__(self, folder: Path, keep: int, names, parameters, optimizer, average):
        self.folder, self.keep = folder, keep
        self.names, self.parameters, self.optimizer, self.average = names, parameters, optimizer, average
        self.scaler: dict = {}

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))

    def save(self, step: int, scaler: dict) -> None:
        tensors = {f"parameter/{n}": p.detach() for n, p in zip(self.names, self.parameters, strict=True)}
        tensors |= {f"average/{n}": a for n, a in zip(self.names, self.average, strict=bool(self.average))}
        numbers: dict[str, float] = {}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            for key, value in self.optimizer.state[parameter].items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{key}/{name}"] = value
                else:
                    numbers[f"{key}/{name}"] = value
        metadata = {"step": str(step), "scaler": json.dumps(scaler), "numbers": json.dumps(numbers)}
        with replacing(self.folder / f"step-{step:07}.safetensors") as temporary:
            # clones, because 8-bit optimisers share tables between parameters and safetensors refuses shared memory
            save_file({key: value.clone().contiguous() for key, value in tensors.items()}, temporary, metadata=metadata)
        for old in self.files()[: -self.keep]:
            remove(old)

    def load(self) -> int:
        """Take up the newest checkpoint that can be read; the number of steps behind it."""
        sweep(self.folder)
        for file in reversed(self.files()):
            try:
                with safe_open(file, "pt") as state:
                    return self._take(state)
            except SafetensorError as error:
                logger.warning("%s cannot be read (%s): the checkpoint before it is used", file, error)
        return 0

    def restore(self, why: str) -> str:
        """Go back to the newest checkpoint and say so."""
        back = f"the last good checkpoint is {self.files()[-1]}" if self.files() else "there is no checkpoint yet"
        if self.files():
            self.load()
        return f"{why}, so training stopped; {back}. Lower the learning rate or beta in a run of its own"

    @torch.no_grad()
    def _take(self, state) -> int:
        keys, metadata = set(state.keys()), state.metadata()
        numbers = json.loads(metadata["numbers"])
        self.scaler = json.loads(metadata["scaler"])
        own = {f"parameter/{name}" for name in self.names}
        if {key for key in keys if key.startswith("parameter/")} != own:
            raise ValueError(f"the checkpoint in {self.folder} is of other weights than those trained here; give another folder")
        for i, (name, parameter) in enumerate(zip(self.names, self.parameters, strict=True)):
            parameter.copy_(state.get_tensor(f"parameter/{name}"))
            if self.average:
                self.average[i].copy_(state.get_tensor(f"average/{name}"))
            moments = {key.split("/", 1)[0]: key for key in keys if key.split("/", 1)[1] == name}
            loaded = {kind: state.get_tensor(key) for kind, key in moments.items() if kind not in ("parameter", "average")}
            on_host = {"step"} if not self.optimizer.defaults.get("fused") else set()
            loaded = {kind: value if kind in on_host else value.to(parameter.device) for kind, value in loaded.items()}
            loaded |= {key.split("/", 1)[0]: value for key, value in numbers.items() if key.split("/", 1)[1] == name}
            self.optimizer.state[parameter] = loaded
        return int(metadata["step"])
