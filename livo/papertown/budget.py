"""What the benchmark may spend: its options on the command line and the command in its report are made from these fields."""

from __future__ import annotations

from dataclasses import dataclass

from livo.training.config import flag, option
from livo.utils.precision import HELP, PRECISIONS


@dataclass(frozen=True)
class Budget:
    """How much is spent. The defaults are the report's."""

    images: int = option(50, "images a prompt in the table")
    tries: int = option(8, "images a training prompt when baselines are tuned, and in a round of UCE's loop")
    rounds: int = option(12, "rounds of UCE's debias loop; its authors ran up to 30")
    train_steps: int = option(800, "of Diffusion-DPO and PopAlign")
    ablation_steps: int = option(300, "of Concept Ablation")
    study_steps: int = option(400, "of each training run of the figures")
    precision: str = option("auto", HELP, choices=PRECISIONS)

    def command(self) -> str:
        return "livo benchmark papertown " + " ".join(f"{flag(name)} {value}" for name, value in vars(self).items())
