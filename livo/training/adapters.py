"""What is trained beside the frozen backbone: a value encoder, or a LoRA on the UNet. One interface for every objective."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch.nn.grad import conv2d_input

from livo.pipelines.stable_diffusion import LiVOPipeline, LiVOXLPipeline
from livo.utils.hashing import lora_hash, stored_hash
from livo.value_encoder.encoder import ValueEncoder, vocabulary_hash
from livo.value_encoder.token import encode_value, fuse, tokenize

LORA_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
_SHORT = 16 * 16  # positions of a latent whose attention maps are small enough to keep for the way back


@dataclass(frozen=True)
class Condition:
    """What the frozen text encoders make of prompts: embeddings (N, length, width), and SDXL's pooled ones (N, width)."""

    embeds: torch.Tensor
    pooled: torch.Tensor | None = None

    def __getitem__(self, rows) -> Condition:
        return Condition(self.embeds[rows], None if self.pooled is None else self.pooled[rows])

    def repeat(self, times: int) -> Condition:
        return Condition(self.embeds.repeat(times, 1, 1), None if self.pooled is None else self.pooled.repeat(times, 1))

    def to(self, device: torch.device) -> Condition:
        return Condition(self.embeds.to(device), None if self.pooled is None else self.pooled.to(device))


@torch.no_grad()
def encode_texts(pipe: DiffusionPipeline, texts: Sequence[str], device: torch.device) -> Condition:
    """Encode prompts as the pipeline itself does, padded to full length."""
    if isinstance(pipe, StableDiffusionXLPipeline):
        embeds, _, pooled, _ = pipe.encode_prompt(list(texts), device=device, do_classifier_free_guidance=False)
        return Condition(embeds, pooled)
    return Condition(pipe.text_encoder(tokenize(pipe.tokenizer, texts).to(device)).last_hidden_state)


class _Adapter:
    """`predict` is the model that is trained, `reference` the frozen one; both map (noisy, t, condition) to the UNet's output."""

    name: str
    modules: dict[str, nn.Module]

    def __init__(self, pipe: LiVOPipeline | LiVOXLPipeline, resolution: int):
        self.pipe, self.unet, self.resolution = pipe, pipe.unet.requires_grad_(False), resolution
        _ease_backward(self.unet, resolution // pipe.vae_scale_factor)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(f"{m}.{n}", p) for m, module in self.modules.items() for n, p in module.named_parameters() if p.requires_grad]

    def _call(self, noisy, t, embeds: torch.Tensor, pooled: torch.Tensor | None) -> torch.Tensor:
        extra = {}
        if pooled is not None:
            side = float(self.resolution)
            ids = noisy.new_tensor([[side, side, 0, 0, side, side]]).expand(len(noisy), -1)
            extra = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
        dtype = self.unet.dtype
        return self.unet(noisy.to(dtype), t, embeds.to(dtype), **extra).sample

    @torch.no_grad()
    def reference(self, noisy: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        return self._call(noisy, t, condition.embeds, condition.pooled)


class _FrozenConvolution(torch.autograd.Function):
    """A convolution whose weights are not trained, which therefore need not keep its input for the way back, as PyTorch's own does."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        return nn.Conv2d.forward(layer, x)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        layer = ctx.layer
        how = layer.stride, layer.padding, layer.dilation, layer.groups
        return conv2d_input(ctx.shape, layer.weight.to(gradient.dtype), gradient, *how).to(ctx.dtype), None


def _ease_backward(unet: nn.Module, side: int) -> None:
    """The same mathematics with less kept, and on a CPU faster: there PyTorch's fused attention goes backward at half the speed.

    `side` is that of the latents.
    """
    for layer in unet.modules():
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
            layer.forward = partial(_frozen_convolution, layer)
    if unet.device.type == "cpu" and side**2 <= _SHORT:
        unet.set_attn_processor(AttnProcessor())


def _frozen_convolution(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return _FrozenConvolution.apply(x, layer)


class ValueEncoderAdapter(_Adapter):
    """LiVO's: one token in front of the prompt embeddings, in float32 whatever the backbone's dtype.

    Where cross-attention is wider than the text encoder that is copied, as in SDXL, a projection behind it is trained too.
    """

    name = "value_encoder"

    def __init__(
        self,
        pipe: LiVOPipeline | LiVOXLPipeline,
        resolution: int,
        statements: Sequence[str],
        freeze_embeddings: bool = False,
        start: str = "",
    ):
        """`start` is a value encoder to go on from, by default a copy of the text encoder."""
        super().__init__(pipe, resolution)
        width = pipe.unet.config.cross_attention_dim
        if start:
            encoder = ValueEncoder.load(start, pipe.text_encoder, width, pipe.tokenizer)
            encoder.config.value_calibration = encoder.config.value_training = None  # they are of the weights before
        else:
            encoder = ValueEncoder.from_text_encoder(pipe.text_encoder, width)
        self.encoder = encoder.float().requires_grad_(True).train()
        self.encoder.config.value_statements = sorted({*statements, *(encoder.statements or ())})
        self.encoder.config.value_tokenizer = vocabulary_hash(pipe.tokenizer)
        if freeze_embeddings:
            for name, parameter in self.encoder.named_parameters():
                parameter.requires_grad_("embeddings." not in name)
        self.modules = {"value_encoder": self.encoder}

    def predict(self, noisy: torch.Tensor, t: torch.Tensor, condition: Condition, texts: Sequence[str]) -> torch.Tensor:
        """`texts` are those of `value_text`, one a row; each is encoded once."""
        once = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        tokens = encode_value(self.encoder, self.pipe.tokenizer, list(once))[[once[text] for text in texts]]
        return self._call(noisy, t, fuse(tokens, condition.embeds), condition.pooled)

    @contextmanager
    def sampling(self):
        """Within this context `pipe` generates with the adapter."""
        before = self.pipe.value_encoder
        self.encoder.eval()
        self.pipe.register_modules(value_encoder=self.encoder)
        try:
            yield self.pipe
        finally:
            self.encoder.train()
            self.pipe.register_modules(value_encoder=before)

    def identifier(self) -> str:
        """The hash of what `save` writes, as records name it."""
        return stored_hash(self.encoder)

    def save(self, folder: Path) -> None:
        """A folder that `LiVOPipeline.load_value_encoder` takes."""
        self.encoder.save_pretrained(folder)


class LoRAAdapter(_Adapter):
    """Low-rank updates of the UNet's attention, through peft: what PopAlign, Diffusion-DPO and SafetyDPO train."""

    name = "lora"

    def __init__(self, pipe: LiVOPipeline | LiVOXLPipeline, resolution: int, rank: int):
        super().__init__(pipe, resolution)
        try:
            from peft import LoraConfig
        except ImportError:
            raise ValueError("a LoRA needs the package peft: pip install livo[train]") from None
        config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(LORA_LAYERS))
        self.unet.add_adapter(config)
        for parameter in self.unet.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        self.modules = {"unet": self.unet}

    def predict(self, noisy: torch.Tensor, t: torch.Tensor, condition: Condition, texts: Sequence[str]) -> torch.Tensor:
        return self._call(noisy, t, condition.embeds, condition.pooled)

    @torch.no_grad()
    def reference(self, noisy: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        self.unet.disable_adapters()
        try:
            return super().reference(noisy, t, condition)
        finally:
            self.unet.enable_adapters()

    @contextmanager
    def sampling(self):
        """Within this context `pipe` generates with the adapter: it does so all the time."""
        yield self.pipe

    def identifier(self) -> str:
        """The hash of what `save` writes, as records name it."""
        return lora_hash({"unet": self.unet}, "default")

    def save(self, folder: Path) -> None:
        """A folder that `load_lora_weights` of the pipeline takes."""
        from peft.utils import get_peft_model_state_dict

        state = {key: value.contiguous() for key, value in get_peft_model_state_dict(self.unet).items()}
        self.pipe.save_lora_weights(folder, unet_lora_layers=state)
