"""Many prompts, one image each, drawn by four processes, and every group gets its share: shared_ledger.png."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from livo import LiVOPipeline, ValueLedger
from livo.utils.pictures import grid, save_picture

# For Stable Diffusion 1.5 or SDXL: LiVOPipeline or LiVOXLPipeline.from_pretrained(your model, value_encoder=..., dtype=torch.float16).
MODEL = "papertown"
CAREERS = ("doctor", "nurse", "pilot", "chef", "judge", "baker", "artist", "farmer", "teacher", "engineer")


def work(folder: Path, worker: int, calls: int, steps: int) -> None:
    pipe, ledger = LiVOPipeline.from_pretrained(MODEL), ValueLedger(folder / "shares.sqlite")  # a web server's worker does the same
    pipe.set_progress_bar_config(disable=True)
    for i in range(worker, calls, 4):
        options = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(i)}
        out = pipe(f"a photo of a {CAREERS[i % 10]}", value=("gender_equality", "racial_equality"), ledger=ledger, **options)
        out.images[0].save(folder / f"{i:03}.png")


def main(output: Path = Path("shared_ledger.png"), steps: int = 20, calls: int = 40) -> None:
    with TemporaryDirectory() as folder:
        ledger = ValueLedger(Path(folder) / "shares.sqlite", across="principle")
        command = [sys.executable, __file__, folder]
        workers = [subprocess.Popen([*command, str(worker), str(calls), str(steps)]) for worker in range(4)]
        assert not any(worker.wait() for worker in workers)
        print(ledger.counts("gender_equality"), ledger.counts("racial_equality"))
        save_picture(grid([Image.open(file) for file in sorted(Path(folder).glob("*.png"))], 10), output, [])


if __name__ == "__main__":
    work(Path(sys.argv[1]), *map(int, sys.argv[2:])) if len(sys.argv) > 1 else main()
