"""Every group gets its share, in one call and over many calls of one image: every_group.png."""

from collections import Counter
from pathlib import Path

import torch

from livo import LiVOPipeline, ValueLedger
from livo.utils.pictures import grid, save_picture, stack

# For Stable Diffusion 1.5 or SDXL: LiVOPipeline or LiVOXLPipeline.from_pretrained(your model, value_encoder=..., dtype=torch.float16).
MODEL = "papertown"


def main(output: Path = Path("every_group.png"), steps: int = 20) -> None:
    pipe = LiVOPipeline.from_pretrained(MODEL)
    pipe.set_progress_bar_config(disable=True)
    prompt, common = "a photo of a doctor", {"num_inference_steps": steps, "guidance_scale": 5.0}
    seed = torch.Generator().manual_seed(0)
    out = pipe(prompt, num_images_per_prompt=10, generator=seed, **common)
    names = [", ".join(value.direction or value.name for value in decision.values) for decision in out.decisions]
    sheets, record = [grid(out.images, 10, names, "one call of ten images")], list(out.decisions)
    ledger, images = ValueLedger(), []  # remembers over calls what each prompt's images were given
    for i in range(10):
        single = pipe(prompt, ledger=ledger, generator=torch.Generator().manual_seed(i), **common)
        images += single.images
        record += single.decisions
    given = [decision.values[0].direction or "" for decision in record[10:]]
    sheets.append(grid(images, 10, given, "ten calls of one image, one ledger"))
    print(Counter(given))
    save_picture(stack(sheets), output, [decision.to_dict() for decision in record])


if __name__ == "__main__":
    main()
