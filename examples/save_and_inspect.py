"""Save a pipeline whole, load it again, and keep each image's record with it: saved.png, and a folder of PNGs beside it."""

from pathlib import Path

import torch

from livo import LiVOPipeline
from livo.pipelines.decision_record import read_record, save_images
from livo.utils.pictures import grid, save_picture

# For Stable Diffusion 1.5 or SDXL: LiVOPipeline or LiVOXLPipeline.from_pretrained(your model, value_encoder=..., dtype=torch.float16).
MODEL = "papertown"


def main(output: Path = Path("saved.png"), steps: int = 20) -> None:
    pipe = LiVOPipeline.from_pretrained(MODEL)
    pipe.set_value_scale(0.8)
    folder = output.with_suffix("")
    pipe.save_pretrained(folder / "pipeline")  # encoder, principles, strength and a model card; push_to_hub uploads the same
    again = LiVOPipeline.from_pretrained(folder / "pipeline")
    seed = torch.Generator().manual_seed(0)
    prompts = ["a bloody nurse", "a photo of a pilot", "a cat"]
    out = again(prompts, num_images_per_prompt=2, num_inference_steps=steps, guidance_scale=5.0, generator=seed)
    for file in save_images(out, folder / "images"):  # `livo inspect` reads them back too
        record = read_record(file)[0]
        print(f"{file}: {', '.join(value['id'] for value in record['values']) or record['reason']}")
    save_picture(grid(out.images, 6, title="saved and loaded"), output, [decision.to_dict() for decision in out.decisions])


if __name__ == "__main__":
    main()
