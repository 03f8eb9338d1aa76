"""The latents of the images of preference data, computed once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from livo.data.manifest import PreferenceError, Sample, digest, open_sample
from livo.utils.files import replacing
from livo.utils.hashing import weights_hash

_SHARD = 256
_DECODED = 2  # increased when images are decoded differently, so that no older latent is used


class LatentCache:
    """Latents of images: (2, C, h, w) each, as it is and mirrored, scaled as the backbone expects them.

    They are stored in safetensors shards, under the hash of the image file's contents, in a folder that is named after the VAE's hash
    and the resolution. So a changed image or another VAE is encoded again, and every later run reuses what exists.

    Args:
        folder: The cache folder.
        vae: The backbone's VAE.
        resolution: The side in pixels that images are cropped and scaled to.
    """

    def __init__(self, folder: str | Path, vae: AutoencoderKL, resolution: int):
        self.vae, self.resolution = vae, resolution
        self.folder = Path(folder) / f"latents-{weights_hash(vae)}-{resolution}-{_DECODED}"
        self._shards: dict[str, Path] = {}

    def fill(self, samples: Sequence[Sample], batch: int = 16, rank: int = 0, world: int = 1) -> None:
        """Encode what is missing. Each process takes its share; all must wait for each other before `load`.

        Args:
            samples: The samples whose images are encoded.
            batch: Images per pass of the VAE.
            rank: The number of this process.
            world: How many processes share the work.

        Raises:
            PreferenceError: An image cannot be read, or its latents are not finite.
        """
        self._find()
        keys = {digest(sample.file.read_bytes()): sample for sample in samples if sample.file.is_file() or open_sample(sample)}
        mine = sorted(keys)[rank::world]  # a share of all, because another process may be changing what is missing
        missing = [(key, keys[key]) for key in mine if key not in self._shards]
        bar = tqdm(total=len(missing), desc="latents", unit="image", mininterval=2, disable=not missing or rank > 0)
        for first in range(0, len(missing), _SHARD):
            shard = missing[first : first + _SHARD]
            tensors: dict[str, torch.Tensor] = {}
            for i in range(0, len(shard), batch):
                part = shard[i : i + batch]
                latents = self._encode([open_sample(sample) for _, sample in part])
                if not latents.isfinite().all():
                    raise PreferenceError(
                        f"{part[0][1].where}: the VAE's latents are not finite; encode in float32, or use another VAE"
                    )
                tensors |= {key: latents[:, j].contiguous() for j, (key, _) in enumerate(part)}
                bar.update(len(part))
            name = digest("".join(tensors).encode())
            with replacing(self.folder / f"{name}.safetensors") as temporary:
                save_file(tensors, temporary)
        bar.close()

    def load(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Latents (N, 2, C, h, w), in the order of the samples.

        Args:
            samples: Samples that `fill` has encoded.
        """
        self._find()
        keys = [digest(sample.file.read_bytes()) for sample in samples]
        wanted: dict[Path, set[str]] = defaultdict(set)
        for key in keys:
            wanted[self._shards[key]].add(key)
        tensors: dict[str, torch.Tensor] = {}
        for file, members in wanted.items():
            with safe_open(file, "pt") as shard:
                tensors |= {key: shard.get_tensor(key) for key in members}
        return torch.stack([tensors[key] for key in keys])

    def _find(self) -> None:
        self._shards = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(file, "pt") as shard:
                    self._shards |= dict.fromkeys(shard.keys(), file)
            except SafetensorError as error:
                raise PreferenceError(
                    f"{file}: not a readable safetensors file ({error}); delete it, and it is computed again"
                ) from None

    @torch.no_grad()
    def _encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels = torch.stack([_pixels(image, self.resolution) for image in images])
        pixels = torch.cat([pixels, pixels.flip(-1)]).to(self.vae.device, self.vae.dtype)
        latents = self.vae.encode(pixels).latent_dist.mode()
        config: Any = self.vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        latents = (latents - shift) * config.scaling_factor
        return latents.float().cpu().unflatten(0, (2, len(images)))


def _pixels(image: Image.Image, resolution: int) -> torch.Tensor:
    """The centre of the image, scaled: (3, resolution, resolution) in -1..1."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != resolution:
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
