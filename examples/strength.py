"""How strongly a value acts, and in which steps: one seed over a row of strengths and a row of step ranges, in strength.png."""

from pathlib import Path

import torch

from livo import LiVOPipeline
from livo.utils.pictures import grid, save_picture, stack

# For Stable Diffusion 1.5 or SDXL: LiVOPipeline or LiVOXLPipeline.from_pretrained(your model, value_encoder=..., dtype=torch.float16).
MODEL = "papertown"
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)  # 0 is the base, 1 what was trained
RANGES = ((0.0, 0.1), (0.0, 0.25), (0.0, 0.5), (0.25, 1.0), (0.5, 1.0), (0.0, 1.0))


def main(output: Path = Path("strength.png"), steps: int = 20) -> None:
    pipe = LiVOPipeline.from_pretrained(MODEL)
    prompts = ["a bloody pilot in a kitchen"] * 6

    def draw(**kwargs):  # one prompt each, so that each has its own strength and range
        seeds = [torch.Generator().manual_seed(0) for _ in prompts]
        return pipe(prompts, value="bloody", num_inference_steps=steps, guidance_scale=5.0, generator=seeds, **kwargs)

    by_scale = draw(value_scale=list(SCALES))
    starts, ends = (list(column) for column in zip(*RANGES, strict=True))
    by_range = draw(value_start=starts, value_end=ends)
    sheets = [
        grid(by_scale.images, 6, [f"value_scale {scale}" for scale in SCALES], "strength"),
        grid(by_range.images, 6, [f"steps {start:.0%} to {end:.0%}" for start, end in RANGES], "step range"),
    ]
    save_picture(stack(sheets), output, [decision.to_dict() for decision in (*by_scale.decisions, *by_range.decisions)])


if __name__ == "__main__":
    main()
