"""Values in a pipeline that is there already, and out of it again: attach.png shows before, with values, and after."""

from pathlib import Path

import diffusers
import torch

import livo
from livo import LiVOPipeline
from livo.papertown import WEIGHTS
from livo.utils.pictures import grid, save_picture, stack

# For Stable Diffusion 1.5 or SDXL: load your own pipeline of either, and give attach(value_encoder=...) the encoder trained for it.
MODEL, ENCODER = "papertown", WEIGHTS / "value_encoder"


def main(output: Path = Path("attach.png"), steps: int = 20) -> None:
    town = LiVOPipeline.from_pretrained(MODEL)
    town.unload_value_encoder()
    pipe = diffusers.StableDiffusionPipeline.from_pipe(town)  # a pipeline of diffusers alone

    def draw(**kwargs):
        seed = torch.Generator().manual_seed(0)
        options = {"num_images_per_prompt": 6, "num_inference_steps": steps, "guidance_scale": 5.0}
        return pipe("a bloody warrior", generator=seed, **options, **kwargs)

    sheets = [grid(draw().images, 6, title="the pipeline as it was")]
    livo.attach(pipe, value_encoder=ENCODER)
    out = draw()
    sheets.append(grid(out.images, 6, title="with values attached", note=out.decisions[0].summary))
    livo.detach(pipe)
    sheets.append(grid(draw().images, 6, title="detached: the first row again, bit for bit"))
    save_picture(stack(sheets), output, [decision.to_dict() for decision in out.decisions])


if __name__ == "__main__":
    main()
