"""Fair Diffusion (Friedrich et al., arXiv 2302.10893), on semantic guidance, SEGA (Brack et al., arXiv 2301.12247)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from livo.baselines.guidance import GuidanceEdit


@dataclass(frozen=True)
class FairDiffusion(GuidanceEdit):
    """Guides each image towards one class of every attribute, in turn, so that each class gets exactly its share.

    For each concept e of an image, d_e = +-s_e (eps_e - eps_empty), kept where |d_e| is at or above its `quantile` in that channel; then

        G = sum w_e d_e + s_m nu;    nu <- b_m nu + (1 - b_m) G;    eps = eps_empty + s_g (eps_p - eps_empty) + G

    The last equation holds after the warm-up; nu is updated from the first step. w_e is 1. An attribute with two classes also guides away
    from the other class, as in the paper ("male person" and "female person", one of them reversed); one with more classes does not.

    Args:
        attributes: For each attribute, the concepts of its classes: (("male person", "female person"),).
        scale: s_e, the strength of the guidance; 0 changes nothing.
        quantile: The share of latent positions, in each channel, that are not edited.
        warmup: Steps without an edit.
        momentum_scale: s_m.
        momentum: b_m, from 0 to below 1.
    """

    attributes: tuple[tuple[str, ...], ...]
    scale: float = 4.0
    quantile: float = 0.95
    warmup: int = 5
    momentum_scale: float = 0.5
    momentum: float = 0.6

    method = "fair diffusion"

    def texts(self) -> list[str]:
        return list(dict.fromkeys(concept for classes in self.attributes for concept in classes))

    def idle(self) -> bool:
        return not self.texts() or self.scale == 0

    def chosen(self, row: int) -> list[int]:
        """The class of each attribute for an image: all combinations in turn.

        Args:
            row: The number of the image since `on` began.
        """
        found = []
        for classes in self.attributes:
            row, place = divmod(row, len(classes))
            found.append(place)
        return found

    def concepts(self, row: int) -> list[str]:
        return [text for text, _ in self._signed(row)]

    def _signed(self, row: int) -> list[tuple[str, int]]:
        signed = []
        for classes, place in zip(self.attributes, self.chosen(row), strict=True):
            signed.append((classes[place], 1))
            if len(classes) == 2:
                signed.append((classes[1 - place], -1))
        return signed

    def term(self, step, empty, prompt, concepts, scale, memory, rows) -> torch.Tensor:
        signs = torch.tensor([[sign for _, sign in self._signed(row)] for row in rows], device=concepts.device)
        d = self.scale * signs[..., None, None, None] * (concepts - empty.unsqueeze(1))
        size = d.abs()
        d = d * (size >= torch.quantile(size.flatten(3), self.quantile, dim=3)[..., None, None])
        nu = memory.get("nu", 0.0)
        edit = d.sum(1) + self.momentum_scale * nu
        memory["nu"] = self.momentum * nu + (1 - self.momentum) * edit
        return edit if step >= self.warmup else torch.zeros_like(edit)
