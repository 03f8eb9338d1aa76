"""The training loop that every job shares, and the training of a value encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModel

from livo.conditioning import encode_value, fuse, tokenize, value_text
from livo.files import replacing
from livo.objectives import squared_error


def optimise(
    modules: dict[str, nn.Module],
    loss: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    *,
    steps: int,
    lr: float,
    state_file: Path,
    warmup: int = 100,
    weight_decay: float = 0.01,
    ema: float = 0.0,
    save_every: int = 250,
    bf16: bool = True,
) -> Iterator[dict[str, float]]:
    """Minimise `loss(step)` over the parameters of `modules` with AdamW and a cosine schedule; yield a record a step.

    `loss` must draw its randomness from the step number alone: then a run that was killed and restarted from `state_file`
    (safetensors, written beside and renamed) gives the weights of a run that was not. With `ema` > 0 the modules hold the
    averaged weights when the iterator ends.
    """
    names, parameters = zip(
        *((f"{m}.{n}", p) for m, module in modules.items() for n, p in module.named_parameters() if p.requires_grad), strict=True
    )
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)
    average = [p.detach().clone() for p in parameters] if ema else []
    first = _load_state(state_file, names, parameters, optimizer, average)
    device = parameters[0].device
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            value, record = loss(step)
        value.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if ema:
            decay = min(ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            _save_state(state_file, step + 1, names, parameters, optimizer, average)
        yield {"step": step + 1, "loss": value.item(), "grad_norm": norm.item(), **record}
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=bool(average)):
            parameter.copy_(mean)


def _save_state(file: Path, step: int, names, parameters, optimizer, average) -> None:
    tensors = {f"parameter/{n}": p.detach() for n, p in zip(names, parameters, strict=True)}
    tensors |= {f"average/{n}": a for n, a in zip(names, average, strict=bool(average))}
    for name, parameter in zip(names, parameters, strict=True):
        tensors |= {f"{key}/{name}": value for key, value in optimizer.state[parameter].items()}
    with replacing(file) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"step": str(step)})


def _load_state(file: Path, names, parameters, optimizer, average) -> int:
    if not file.is_file():
        return 0
    with safe_open(file, "pt") as state, torch.no_grad():
        for i, (name, parameter) in enumerate(zip(names, parameters, strict=True)):
            parameter.copy_(state.get_tensor(f"parameter/{name}"))
            if average:
                average[i].copy_(state.get_tensor(f"average/{name}"))
            moments = {key: state.get_tensor(f"{key}/{name}").to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": state.get_tensor(f"step/{name}"), **moments}
        return int(state.metadata()["step"])


def train_value_encoder(
    value_encoder: CLIPTextModel,
    pipe: StableDiffusionPipeline,
    rows: list[dict[str, str]],
    aligned: torch.Tensor,
    violating: torch.Tensor,
    objective: Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]],
    *,
    steps: int,
    state_file: Path,
    batch: int = 16,
    lr: float = 4e-4,
    seed: int = 0,
) -> Iterator[dict[str, float]]:
    """Train `value_encoder` against the frozen backbone of `pipe`; yield a record a step.

    Args:
        rows: `prompt` and `value` (the statement) of each pair.
        aligned, violating: scaled latents (N, C, H, W) of the two images of each pair.
        objective: Maps the errors (winner, winner_reference, loser, loser_reference), each (batch,), to losses and statistics.
    """
    unet, text_encoder, tokenizer = pipe.unet.requires_grad_(False), pipe.text_encoder.requires_grad_(False), pipe.tokenizer
    schedule = DDPMScheduler.from_config(pipe.scheduler.config)
    velocity = schedule.config.prediction_type == "v_prediction"
    device = unet.device
    value_encoder.train()

    def loss(step: int):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        indices = torch.randint(len(rows), (batch,), generator=generator)
        noise = torch.randn(batch, *aligned.shape[1:], generator=generator)
        t = torch.randint(schedule.config.num_train_timesteps, (batch,), generator=generator)
        t, noise = t.repeat(2), noise.repeat(2, 1, 1, 1)  # the two images of a pair share both
        x = torch.cat([aligned[indices], violating[indices]])
        target = (schedule.get_velocity(x, noise, t) if velocity else noise).to(device)
        noisy, t = schedule.add_noise(x, noise, t).to(device), t.to(device)
        chosen = [rows[i] for i in indices.tolist()]
        with torch.no_grad():
            prompt_embeds = text_encoder(tokenize(tokenizer, [row["prompt"] for row in chosen]).to(device)).last_hidden_state
            prompt_embeds = prompt_embeds.repeat(2, 1, 1)
            reference = squared_error(unet(noisy, t, prompt_embeds).sample, target)
        tokens = encode_value(value_encoder, tokenizer, [value_text(row["value"], row["prompt"]) for row in chosen], device)
        error = squared_error(unet(noisy, t, fuse(tokens.repeat(2, 1), prompt_embeds)).sample, target)
        losses, statistics = objective(error[:batch], reference[:batch], error[batch:], reference[batch:])
        return losses.mean(), {name: values.mean().item() for name, values in statistics.items()}

    return optimise({"value_encoder": value_encoder}, loss, steps=steps, lr=lr, state_file=state_file)
