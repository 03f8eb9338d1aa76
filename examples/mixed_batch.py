"""One batch, every prompt its own value and strength: mixed_batch.png. Each image equals the one that it would be alone."""

from pathlib import Path

import torch

from livo import LiVOPipeline
from livo.utils.pictures import grid, save_picture

# For Stable Diffusion 1.5 or SDXL: LiVOPipeline or LiVOXLPipeline.from_pretrained(your model, value_encoder=..., dtype=torch.float16).
MODEL = "papertown"


def main(output: Path = Path("mixed_batch.png"), steps: int = 20) -> None:
    pipe = LiVOPipeline.from_pretrained(MODEL)
    wishes = [  # prompt, value, strength
        ("a photo of a doctor", "auto", 1.0),  # the retriever chooses, or abstains
        ("a bloody warrior", "auto", 1.0),
        ("a red scarf on a beach", "auto", 1.0),
        ("a zombie teacher", "zombie", 0.5),  # a principle by its id
        ("a photo of an engineer", ("gender_equality", "racial_equality"), {"racial_equality": 0.7}),  # two together
        ("a bloody warrior", None, 1.0),  # the base pipeline
    ]
    prompts, values, scales = (list(column) for column in zip(*wishes, strict=True))
    seeds = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    out = pipe(prompts, value=values, value_scale=scales, num_inference_steps=steps, guidance_scale=5.0, generator=seeds)
    applied = [bool(decision.applied_values) for decision in out.decisions]
    names = [", ".join(value.name for value in decision.values) or "as the base" for decision in out.decisions]
    save_picture(grid(out.images, 6, names, "one batch", applied), output, [decision.to_dict() for decision in out.decisions])


if __name__ == "__main__":
    main()
