"""Values beside a ControlNet: controlnet.png. Papertown has no trained one, so this one is a fresh copy of the UNet's first half."""

from pathlib import Path

import diffusers
import torch
from PIL import Image

import livo
from livo import LiVOPipeline
from livo.utils.pictures import grid, save_picture, stack

# For Stable Diffusion 1.5 or SDXL: load your model here, and a ControlNetModel.from_pretrained(...) that was trained for it.
MODEL = "papertown"


def main(output: Path = Path("controlnet.png"), steps: int = 20) -> None:
    text = LiVOPipeline.from_pretrained(MODEL)
    controlnet = diffusers.ControlNetModel.from_unet(text.unet, conditioning_embedding_out_channels=(16, 32, 64))
    pipe = livo.aligned(diffusers.StableDiffusionControlNetPipeline).from_pipe(text, controlnet=controlnet)
    sheets, record = [], []
    for value in (None, "auto"):
        seed = torch.Generator().manual_seed(0)
        out = pipe(
            "a bloody pilot",
            image=Image.new("RGB", (64, 64)),
            value=value,
            num_images_per_prompt=5,
            num_inference_steps=steps,
            guidance_scale=5.0,
            generator=seed,
        )
        sheets.append(grid(out.images, 5, title="base" if value is None else "LiVO", note=out.decisions[0].summary))
        record += [decision.to_dict() for decision in out.decisions]
    save_picture(stack(sheets), output, record)


if __name__ == "__main__":
    main()
