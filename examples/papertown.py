"""The same prompts from the frozen backbone and with values, side by side in papertown.png."""

from pathlib import Path

import torch

from livo import LiVOPipeline
from livo.utils.pictures import grid, save_picture, stack

# For Stable Diffusion 1.5 or SDXL: LiVOPipeline or LiVOXLPipeline.from_pretrained(your model, value_encoder=..., dtype=torch.float16).
MODEL = "papertown"


def main(output: Path = Path("papertown.png"), steps: int = 20) -> None:
    pipe = LiVOPipeline.from_pretrained(MODEL)
    sheets, record = [], []
    for prompt in ("a photo of an engineer", "a bloody teacher in a library", "a female pilot"):
        for value in (None, "auto"):
            seed = torch.Generator().manual_seed(0)
            out = pipe(prompt, value=value, num_images_per_prompt=6, num_inference_steps=steps, guidance_scale=5.0, generator=seed)
            applied = [bool(decision.applied_values) for decision in out.decisions]
            title = f"{'base' if value is None else 'LiVO'}: {prompt}"
            sheets.append(grid(out.images, 6, title=title, marked=applied, note=out.decisions[0].summary))
            record += [decision.to_dict() for decision in out.decisions]
    save_picture(stack(sheets), output, record)


if __name__ == "__main__":
    main()
