"""Values in image-to-image and inpainting, made of one loaded pipeline: image_to_image.png."""

from pathlib import Path

import diffusers
import torch
from PIL import Image

import livo
from livo import LiVOPipeline
from livo.utils.pictures import grid, save_picture, stack

# For Stable Diffusion 1.5 or SDXL: load your model here, and name the StableDiffusion(XL) classes of your pipeline below.
MODEL = "papertown"


def main(output: Path = Path("image_to_image.png"), steps: int = 20) -> None:
    text = LiVOPipeline.from_pretrained(MODEL)
    prompt, common = "a bloody chef", {"num_inference_steps": steps, "guidance_scale": 5.0}
    start = text(prompt, value=None, generator=torch.Generator().manual_seed(1), **common).images[0]
    mask = Image.new("L", start.size)
    mask.paste(255, (0, start.height // 4, start.width, start.height))
    image = livo.aligned(diffusers.StableDiffusionImg2ImgPipeline).from_pipe(text)  # shares all weights, keeps values
    inpaint = livo.aligned(diffusers.StableDiffusionInpaintPipeline).from_pipe(text)
    size = {"height": start.height, "width": start.width}
    sheets, record = [grid([start], 5, title="start; inpainting replaces the lower three quarters")], []
    for name, pipe, inputs in (
        ("image to image", image, {"image": [start] * 5, "strength": 0.8}),
        ("inpainting", inpaint, {"image": start, "strength": 1.0, "mask_image": mask, **size}),
    ):
        for title, value in ((f"{name}, base", None), (f"{name}, LiVO", "auto")):
            seed = torch.Generator().manual_seed(0)
            out = pipe(prompt, value=value, num_images_per_prompt=5, generator=seed, **inputs, **common)
            sheets.append(grid(out.images, 5, title=title, note=out.decisions[0].summary))
            record += [decision.to_dict() for decision in out.decisions]
    save_picture(stack(sheets), output, record)


if __name__ == "__main__":
    main()
