"""Checkpoints of the training loop: weights, averages and optimiser state in one safetensors file each.

Accelerate's `save_state` is not used, because it pickles the optimiser, and because a checkpoint must appear whole or not at all: it
is written under a temporary name and then renamed.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from livo.training.update import Update
from livo.utils.files import remove, replacing, sweep

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints in a folder, for one `Update`.

    Args:
        folder: Where they are.
        keep: How many of them are kept, the newest.
        update: What they hold the state of.
    """

    def __init__(self, folder: Path, keep: int, update: Update):
        self.folder, self.keep, self.update = folder, keep, update

    def files(self) -> list[Path]:
        """All checkpoints, the oldest first."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def save(self, step: int) -> None:
        """Write a checkpoint and remove the oldest ones.

        Args:
            step: The number of steps that are done.
        """
        update = self.update
        tensors = {f"parameter/{n}": p.detach() for n, p in zip(update.names, update.parameters, strict=True)}
        tensors |= {f"average/{n}": a for n, a in zip(update.names, update.average, strict=bool(update.average))}
        numbers: dict[str, float] = {}
        for name, parameter in zip(update.names, update.parameters, strict=True):
            for key, value in update.optimizer.state[parameter].items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{key}/{name}"] = value
                else:
                    numbers[f"{key}/{name}"] = value
        scaler = update.scaler.state_dict() if update.scaler is not None else {}
        metadata = {"step": str(step), "scaler": json.dumps(scaler), "numbers": json.dumps(numbers)}
        with replacing(self.folder / f"step-{step:07}.safetensors") as temporary:
            # clones, because 8-bit optimisers share tables between parameters and safetensors refuses shared memory
            save_file({key: value.clone().contiguous() for key, value in tensors.items()}, temporary, metadata=metadata)
        for old in self.files()[: -self.keep]:
            remove(old)

    def load(self) -> int:
        """Restore the newest readable checkpoint, if there is one, and return the number of steps that are done.

        Raises:
            ValueError: The checkpoint holds other weights than those that are trained.
        """
        sweep(self.folder)
        for file in reversed(self.files()):
            try:
                with safe_open(file, "pt") as state:
                    return self._restore(state)
            except SafetensorError as error:
                logger.warning("%s cannot be read (%s): using the checkpoint before it", file, error)
        return 0

    def go_back(self, why: str) -> str:
        """Restore the newest checkpoint after a failure, and return the error message.

        Args:
            why: What went wrong.
        """
        files = self.files()
        if files:
            self.load()
        back = f"the last good checkpoint is {files[-1]}" if files else "there is no checkpoint yet"
        return f"{why}, so training stopped; {back}. Lower the learning rate or beta in a new run"

    @torch.no_grad()
    def _restore(self, state) -> int:
        update, keys, metadata = self.update, set(state.keys()), state.metadata()
        numbers = json.loads(metadata["numbers"])
        if {key for key in keys if key.startswith("parameter/")} != {f"parameter/{name}" for name in update.names}:
            raise ValueError(f"the checkpoint in {self.folder} holds other weights than those trained here; give another folder")
        on_host = {"step"} if not update.optimizer.defaults.get("fused") else set()
        for i, (name, parameter) in enumerate(zip(update.names, update.parameters, strict=True)):
            parameter.copy_(state.get_tensor(f"parameter/{name}"))
            if update.average:
                update.average[i].copy_(state.get_tensor(f"average/{name}"))
            moments = {key.split("/", 1)[0]: key for key in keys if key.split("/", 1)[1] == name}
            loaded = {kind: state.get_tensor(key) for kind, key in moments.items() if kind not in ("parameter", "average")}
            loaded = {kind: value if kind in on_host else value.to(parameter.device) for kind, value in loaded.items()}
            loaded |= {key.split("/", 1)[0]: value for key, value in numbers.items() if key.split("/", 1)[1] == name}
            update.optimizer.state[parameter] = loaded
        if update.scaler is not None and (scaler := json.loads(metadata["scaler"])):
            update.scaler.load_state_dict(scaler)
        return int(metadata["step"])
