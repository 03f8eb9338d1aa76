"""Concept Ablation (Kumari et al., arXiv 2303.13516): a concept is trained to be drawn as its anchor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from livo.baselines.weights import WeightEdit, cross_attention, encode
from livo.training.loop import Record, optimise
from livo.training.noise import Noising
from livo.utils.files import differing, write_json
from livo.utils.hashing import weights_hash
from livo.utils.precision import for_pipeline


class ConceptAblation(WeightEdit):
    """Minimises || eps(x_t, target) - stopgrad eps(x_t, anchor) ||^2 (equation 5) over the cross-attention's keys and values.

    x_t are noised images of the anchor that the model drew itself.
    """

    method = "concept ablation"

    @classmethod
    def train(
        cls,
        pipe: DiffusionPipeline,
        pairs: Sequence[tuple[str, str]],
        folder: Path,
        steps: int = 400,
        lr: float = 2e-6,
        batch: int = 8,
        images: int = 4,
        guidance: float = 5.0,
        sampler_steps: int = 20,
        seed: int = 0,
        precision: str = "auto",
    ) -> Iterator[Record | ConceptAblation]:
        """Yields training's records and, at the end, the edit. A run that was killed goes on from `folder`.

        Raises:
            ValueError: `folder` holds a run of other pairs, settings or weights.

        Args:
            pairs: Target and anchor prompts: ("a bloody doctor", "a doctor").
            images: Images drawn for each anchor.
            precision: Of drawing and training, as in `livo.utils.precision.resolve`.
        """
        settings = {"pairs": len(pairs), "steps": steps, "lr": lr, "batch": batch, "images": images, "seed": seed}
        own = cross_attention(pipe)
        if not steps or not pairs:
            yield cls({name: weight.clone() for name, weight in own.items()}, settings)
            return
        of = {"pairs": [list(pair) for pair in pairs], "guidance": guidance, "sampler_steps": sampler_steps}
        claimed = settings | of | {"unet": weights_hash(pipe.unet)}
        if changed := differing(folder / "ablation.json", claimed):
            raise ValueError(f"{folder} holds an ablation with other {', '.join(changed)}: give another folder")
        found = for_pipeline(precision, pipe, file=folder / "ablation.json")
        settings["precision"] = found.record()
        autocast = partial(found.autocast, pipe.unet.device)
        write_json(folder / "ablation.json", claimed | {"precision": found.record()})
        anchors = sorted({anchor for _, anchor in pairs})
        with autocast():
            latents = _images(pipe, anchors, images, guidance, sampler_steps, seed)
        texts = sorted({text for pair in pairs for text in pair})
        embeds, pooled = encode(pipe, texts)
        place = {text: i for i, text in enumerate(texts)}
        drawn = {anchor: range(i * images, (i + 1) * images) for i, anchor in enumerate(anchors)}
        rows = torch.tensor([[place[target], place[anchor], image] for target, anchor in pairs for image in drawn[anchor]])
        noising, device = Noising(pipe.scheduler), pipe.unet.device

        def predict(noisy, t, which):
            extra = {}
            if pooled is not None:
                side = float(pipe.default_sample_size * pipe.vae_scale_factor)
                ids = noisy.new_tensor([[side, side, 0, 0, side, side]]).expand(len(noisy), -1)
                extra = {"added_cond_kwargs": {"text_embeds": pooled[which], "time_ids": ids}}
            return pipe.unet(noisy.to(pipe.unet.dtype), t, embeds[which], **extra).sample.float()

        def loss(step: int, micro: int):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            target, anchor, image = rows[torch.randint(len(rows), (batch,), generator=generator)].T
            t = torch.randint(noising.steps, (batch,), generator=generator).to(device)
            noise = torch.randn((batch, *latents.shape[1:]), generator=generator).to(device)
            noisy, _ = noising(latents[image].to(device), noise, t)
            told = noising.timestep(t)
            with torch.no_grad():
                wanted = predict(noisy, told, anchor.to(device))
            return (predict(noisy, told, target.to(device)) - wanted).square().mean(), {}

        before = {name: p.requires_grad for name, p in pipe.unet.named_parameters()}
        edit = cls({name: weight.clone() for name, weight in own.items()}, settings)
        with edit.on(pipe):
            try:
                for name, parameter in pipe.unet.named_parameters():
                    parameter.requires_grad_(name in own)
                run = {"steps": steps, "lr": lr, "checkpoints": folder / "checkpoints", "warmup": 1, "autocast": autocast}
                yield from optimise({"unet": pipe.unet}, loss, **run)
                edit.weights = {name: p.detach().clone() for name, p in pipe.unet.named_parameters() if name in own}
            finally:
                for name, parameter in pipe.unet.named_parameters():
                    parameter.requires_grad_(before[name])
                    parameter.grad = None
        yield edit


def _images(pipe, prompts: Sequence[str], images: int, guidance: float, steps: int, seed: int) -> torch.Tensor:
    """Latents (prompts x images, C, h, w) that the model draws, as the UNet sees them."""
    parts = []
    together = max(1, 32 // images)
    for i in range(0, len(prompts), together):
        options = {"num_images_per_prompt": images, "num_inference_steps": steps, "guidance_scale": guidance}
        generator = torch.Generator().manual_seed((seed * 1_000_003 + i) % 2**32)
        value = {"value": None} if hasattr(pipe, "value_encoder") else {}
        out = pipe(list(prompts[i : i + together]), output_type="latent", generator=generator, **options, **value)
        parts.append(out.images.float().cpu())
    return torch.cat(parts)
