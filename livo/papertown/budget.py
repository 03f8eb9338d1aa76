"""What the benchmark may spend: its options on the command line and the command in its report are made from these fields."""

from __future__ import annotations

from dataclasses import dataclass, field


def _amount(default: int, help: str) -> int:
    return field(default=default, metadata={"help": f"{help} (default {default})"})


@dataclass(frozen=True)
class Budget:
    """How much is spent. The defaults are the report's."""

    images: int = _amount(50, "images a prompt in the table")
    tries: int = _amount(8, "images a training prompt when baselines are tuned, and in a round of UCE's loop")
    rounds: int = _amount(12, "rounds of UCE's debias loop; its authors ran up to 30")
    train_steps: int = _amount(800, "of Diffusion-DPO and PopAlign")
    ablation_steps: int = _amount(300, "of Concept Ablation")
    study_steps: int = _amount(400, "of each training run of the figures")

    def command(self) -> str:
        return "livo benchmark papertown " + " ".join(f"{option(name)} {value}" for name, value in vars(self).items())


def option(name: str) -> str:
    """A field's name on the command line."""
    return "--" + name.replace("_", "-")
