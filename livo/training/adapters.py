"""What is trained next to the frozen backbone: a value encoder, or a LoRA of the UNet. One interface for every objective."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch.nn.grad import conv2d_input

from livo.data.embedding_cache import PromptEmbeddings
from livo.pipelines.stable_diffusion import LiVOPipeline, LiVOXLPipeline
from livo.utils.hashing import lora_hash, stored_hash
from livo.value_encoder.encoder import ValueEncoder, vocabulary_hash
from livo.value_encoder.token import encode_value, fuse

LORA_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
_SHORT = 16 * 16  # positions of a latent whose attention maps are small enough to keep for the backward pass


class Adapter:
    """The trained model (`predict`) and the frozen one (`reference`). Both return the UNet's output.

    Args:
        pipe: The pipeline. Its UNet is frozen, and made to keep fewer activations.
        resolution: The side of the images in pixels.

    Attributes:
        name: The adapter's name in files: "value_encoder" or "lora".
        modules: What is trained, by the names that checkpoints use.
    """

    name: str
    modules: dict[str, nn.Module]

    def __init__(self, pipe: LiVOPipeline | LiVOXLPipeline, resolution: int):
        self.pipe, self.unet, self.resolution = pipe, pipe.unet.requires_grad_(False), resolution
        _save_memory(self.unet, resolution // pipe.vae_scale_factor)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """The trained parameters, by the names that checkpoints use."""
        return [(f"{m}.{n}", p) for m, module in self.modules.items() for n, p in module.named_parameters() if p.requires_grad]

    def _call(self, noisy, t, embeds: torch.Tensor, pooled: torch.Tensor | None) -> torch.Tensor:
        extra = {}
        if pooled is not None:
            side = float(self.resolution)
            ids = noisy.new_tensor([[side, side, 0, 0, side, side]]).expand(len(noisy), -1)
            extra = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
        dtype = self.unet.dtype
        return self.unet(noisy.to(dtype), t, embeds.to(dtype), **extra).sample

    def predict(self, noisy: torch.Tensor, t: torch.Tensor, embeddings: PromptEmbeddings, texts: Sequence[str]) -> torch.Tensor:
        """The prediction of the trained model, (N, C, h, w).

        Args:
            noisy: Noisy latents, (N, C, h, w).
            t: Timesteps in the backbone's unit, (N,).
            embeddings: The prompt embeddings of each row.
            texts: What the value encoder reads for each row (`value_text`). A LoRA does not use it.
        """
        raise NotImplementedError

    @torch.no_grad()
    def reference(self, noisy: torch.Tensor, t: torch.Tensor, embeddings: PromptEmbeddings) -> torch.Tensor:
        """The prediction of the frozen backbone, (N, C, h, w).

        Args:
            noisy, t, embeddings: As in `predict`.
        """
        return self._call(noisy, t, embeddings.embeds, embeddings.pooled)

    def sampling(self) -> AbstractContextManager[LiVOPipeline | LiVOXLPipeline]:
        """A context in which the pipeline generates with the adapter."""
        raise NotImplementedError

    def identifier(self) -> str:
        """The hash of the weights that `save` writes, as records name them."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the trained weights.

        Args:
            folder: An empty folder, or one that does not exist yet.
        """
        raise NotImplementedError


class _FrozenConvolution(torch.autograd.Function):
    """A convolution with frozen weights. Unlike PyTorch's own, it does not keep its input for the backward pass."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        return nn.Conv2d.forward(layer, x)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        layer = ctx.layer
        how = layer.stride, layer.padding, layer.dilation, layer.groups
        return conv2d_input(ctx.shape, layer.weight.to(gradient.dtype), gradient, *how).to(ctx.dtype), None


def _save_memory(unet: nn.Module, side: int) -> None:
    """Keep fewer activations for the backward pass. `side` is that of the latents.

    Small latents on a CPU use plain attention: the backward pass of PyTorch's fused attention takes twice as long there.
    """
    for layer in unet.modules():
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
            layer.forward = partial(_frozen_convolution, layer)
    if unet.device.type == "cpu" and side**2 <= _SHORT:
        unet.set_attn_processor(AttnProcessor())


def _frozen_convolution(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return _FrozenConvolution.apply(x, layer)


class ValueEncoderAdapter(Adapter):
    """A value encoder: one token in front of the prompt embeddings, trained in float32 whatever the backbone's dtype.

    Where cross-attention is wider than the copied text encoder, as in SDXL, the projection after it is trained too.

    Args:
        pipe: The pipeline, as in `Adapter`.
        resolution: The side of the images in pixels.
        statements: The statements that the data teach. They are stored with the weights.
        freeze_embeddings: Whether the token and position embeddings stay as they are.
        start: The value encoder to start from: a hub id, a folder or a .safetensors file; "" for a copy of the text encoder.
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

        super().__init__(pipe, resolution)
        width = pipe.unet.config.cross_attention_dim
        if start:
            encoder = ValueEncoder.load(start, pipe.text_encoder, width, pipe.tokenizer)
            encoder.config.value_calibration = encoder.config.value_training = None  # these describe the weights to start from
        else:
            encoder = ValueEncoder.from_text_encoder(pipe.text_encoder, width)
        self.encoder = encoder.float().requires_grad_(True).train()
        self.encoder.config.value_statements = sorted({*statements, *(encoder.statements or ())})
        self.encoder.config.value_tokenizer = vocabulary_hash(pipe.tokenizer)
        if freeze_embeddings:
            for name, parameter in self.encoder.named_parameters():
                parameter.requires_grad_("embeddings." not in name)
        self.modules = {"value_encoder": self.encoder}

    def predict(self, noisy: torch.Tensor, t: torch.Tensor, embeddings: PromptEmbeddings, texts: Sequence[str]) -> torch.Tensor:
        unique = {text: i for i, text in enumerate(dict.fromkeys(texts))}  # each is encoded once
        tokens = encode_value(self.encoder, self.pipe.tokenizer, list(unique))[[unique[text] for text in texts]]
        return self._call(noisy, t, fuse(tokens, embeddings.embeds), embeddings.pooled)

    @contextmanager
    def sampling(self):
        before = self.pipe.value_encoder
        self.encoder.eval()
        self.pipe.register_modules(value_encoder=self.encoder)
        try:
            yield self.pipe
        finally:
            self.encoder.train()
            self.pipe.register_modules(value_encoder=before)

    def identifier(self) -> str:
        return stored_hash(self.encoder)

    def save(self, folder: Path) -> None:
        """Write a folder that `LiVOPipeline.load_value_encoder` loads. See the base class."""
        self.encoder.save_pretrained(folder)


class LoRAAdapter(Adapter):
    """Low-rank updates of the UNet's attention, through peft: what PopAlign, Diffusion-DPO and SafetyDPO train.

    Args:
        pipe: The pipeline, as in `Adapter`.
        resolution: The side of the images in pixels.
        rank: The rank of the updates; their scale is 1.

    Raises:
        ValueError: peft is not installed.
    """

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

    def predict(self, noisy: torch.Tensor, t: torch.Tensor, embeddings: PromptEmbeddings, texts: Sequence[str]) -> torch.Tensor:
        return self._call(noisy, t, embeddings.embeds, embeddings.pooled)

    @torch.no_grad()
    def reference(self, noisy: torch.Tensor, t: torch.Tensor, embeddings: PromptEmbeddings) -> torch.Tensor:
        self.unet.disable_adapters()
        try:
            return super().reference(noisy, t, embeddings)
        finally:
            self.unet.enable_adapters()

    @contextmanager
    def sampling(self):
        yield self.pipe

    def identifier(self) -> str:
        return lora_hash({"unet": self.unet}, "default")

    def save(self, folder: Path) -> None:
        """Write a folder that `pipe.load_lora_weights` loads. See the base class."""
        from peft.utils import get_peft_model_state_dict

        state = {key: value.contiguous() for key, value in get_peft_model_state_dict(self.unet).items()}
        self.pipe.save_lora_weights(folder, unet_lora_layers=state)
