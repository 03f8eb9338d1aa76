"""Baselines that add a term to classifier-free guidance at every step: Safe Latent Diffusion and Fair Diffusion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline

from livo.baselines.weights import encode
from livo.pipelines.settings import noted


@dataclass(frozen=True)
class GuidanceEdit:
    """eps = eps_empty + s_g (eps_p - eps_empty) + term, with `term` from further passes of the UNet on concepts.

    The pipeline computes its guidance itself, so the prompt's prediction is moved by term / s_g, which has the same effect. The methods are
    written for eps. A velocity differs from eps by the factor alpha_t and a part that is the same for all prompts, so differences are
    multiplied by alpha_t. A subclass is a dataclass with the `concepts` of each image and a `term` of differences of predictions.
    """

    method = "guidance"

    def texts(self) -> list[str]:
        """All concepts. Without any, the edit is empty."""
        raise NotImplementedError

    def concepts(self, row: int) -> list[str]:
        """The concepts of an image, the same number for each.

        Args:
            row: The number of the image since `on` began.
        """
        raise NotImplementedError

    def term(self, step: int, empty, prompt, concepts, scale: float, memory: dict, rows: range) -> torch.Tensor:
        """The term of one step, (B, C, h, w).

        Args:
            step: The denoising step, counted from 0.
            empty: The unconditional predictions, (B, C, h, w).
            prompt: The predictions for the prompts, (B, C, h, w).
            concepts: The predictions for the concepts, (B, K, C, h, w).
            scale: The guidance scale s_g.
            memory: Kept between the steps of one generation.
            rows: The numbers of the images since `on` began.
        """
        raise NotImplementedError

    def idle(self) -> bool:
        """Whether the term is zero at every step. Then the UNet is not changed at all."""
        return not self.texts()

    def record(self) -> dict[str, Any]:
        """The method and its settings, for results."""
        return {"method": self.method, **asdict(self)}

    @noted
    @contextmanager
    def on(self, pipe: DiffusionPipeline) -> Iterator[None]:
        """A context in which the pipeline generates with this edit.

        Args:
            pipe: A Stable Diffusion or SDXL pipeline.

        Raises:
            ValueError: A call has no classifier-free guidance, or the scheduler predicts neither epsilon nor velocity.
        """
        if self.idle():
            yield
            return
        embeds, pooled = encode(pipe, self.texts())
        place = {text: i for i, text in enumerate(self.texts())}
        state: dict[str, Any] = {"first": 0, "rows": 0, "step": 0, "memory": {}}
        unet, scheduler, forward, set_timesteps = pipe.unet, pipe.scheduler, pipe.unet.forward, pipe.scheduler.set_timesteps

        def begin(*args, **kwargs):  # every call of a pipeline sets its timesteps once
            state.update(first=state["first"] + state["rows"], rows=0, step=0, memory={})
            return set_timesteps(*args, **kwargs)

        def guided(sample, timestep, encoder_hidden_states, *args, return_dict=True, **kwargs):
            out = forward(sample, timestep, encoder_hidden_states, *args, return_dict=return_dict, **kwargs)
            if not pipe.do_classifier_free_guidance:
                raise ValueError(f"{self.method} acts through classifier-free guidance: set guidance_scale above 1")
            noise = out[0]
            empty, prompt = noise.chunk(2)
            count = len(prompt)
            state["rows"] = count
            rows = range(state["first"], state["first"] + count)
            chosen = torch.tensor([[place[text] for text in self.concepts(row)] for row in rows])
            more = _second_half(kwargs, 2 * count, chosen.shape[1])
            if pooled is not None:
                more["added_cond_kwargs"]["text_embeds"] = pooled[chosen.flatten().to(pooled.device)]
            hidden = embeds[chosen.flatten().to(embeds.device)].to(encoder_hidden_states)
            of_row = _second_half(sample, 2 * count, chosen.shape[1])
            found = forward(of_row, timestep, hidden, *args, return_dict=False, **more)[0].unflatten(0, tuple(chosen.shape))
            scale, alpha = float(pipe.guidance_scale), _alpha(scheduler, timestep)
            zero, asked, concept = (alpha * x.float() for x in (empty, prompt, found))
            term = self.term(state["step"], zero, asked, concept, scale, state["memory"], rows)
            state["step"] += 1
            noise = torch.cat([empty, prompt + (term / (alpha * scale)).to(prompt)])
            return type(out)(noise) if return_dict else (noise, *out[1:])

        unet.forward, scheduler.set_timesteps = guided, begin
        try:
            yield
        finally:
            del unet.forward, scheduler.set_timesteps


def _alpha(scheduler, timestep) -> float:
    """The factor that turns differences of the UNet's predictions into differences of eps."""
    if scheduler.config.get("prediction_type", "epsilon") == "epsilon":
        return 1.0
    if scheduler.config.prediction_type != "v_prediction":
        raise ValueError(
            f"the scheduler predicts {scheduler.config.prediction_type!r}: this baseline supports epsilon and v_prediction"
        )
    product = scheduler.alphas_cumprod[round(float(torch.as_tensor(timestep).flatten()[0]))]
    return max(float(product) ** 0.5, 1e-3)  # with zero terminal SNR the first one is 0


def _second_half(value, rows: int, times: int):
    """The prompts' half of what belongs to a batch of `rows` empty and prompt rows, each row `times` times; other values unchanged."""
    if isinstance(value, torch.Tensor):
        halved = value.ndim > 0 and len(value) == rows
        return value[rows // 2 :].repeat_interleave(times, dim=0) if halved else value
    if isinstance(value, dict):
        return {key: _second_half(item, rows, times) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        make: Callable[..., Any] = type(value)
        return make(_second_half(item, rows, times) for item in value)
    return value
