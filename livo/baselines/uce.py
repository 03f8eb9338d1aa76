"""Unified Concept Editing (Gandikota et al., arXiv 2308.14761): cross-attention weights in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from diffusers import DiffusionPipeline

from livo.baselines.weights import WeightEdit, cross_attention, last_words


class UnifiedConceptEditing(WeightEdit):
    """W = (lambda W0 + s_e sum v* c^T + s_p sum W0 c_p c_p^T) (lambda I + s_e sum c c^T + s_p sum c_p c_p^T)^-1, equation 7.

    c is the embedding of a concept's last content token. For a concept to erase, v* = W0 c_guide. For a concept to debias,
    v* = W0 c + sum_k a_k W0 c_k, where c_k are the attributes.
    """

    method = "unified concept editing"

    @classmethod
    def edit(
        cls,
        pipe: DiffusionPipeline,
        erase: Mapping[str, str] | None = None,
        debias: Mapping[str, Mapping[str, float]] | None = None,
        preserve: Sequence[str] = (),
        ridge: float = 0.5,
        erase_scale: float = 1.0,
        preserve_scale: float = 1.0,
    ) -> UnifiedConceptEditing:
        """The edit in closed form, from the pipeline's own weights.

        Args:
            pipe: The pipeline. It is not changed.
            erase: For each concept, what replaces it: {"bloody": ""}.
            debias: For each concept, the weight a_k of every attribute: {"doctor": {"female": 0.4, "male": -0.4}}.
            preserve: Concepts that stay as they are.
            ridge: lambda of the equation.
            erase_scale: s_e of the equation.
            preserve_scale: s_p of the equation.
        """
        erase, debias = dict(erase or {}), {name: dict(w) for name, w in (debias or {}).items()}
        settings = {"erase": erase, "debias": debias, "preserve": list(preserve), "ridge": ridge}
        settings |= {"erase_scale": erase_scale, "preserve_scale": preserve_scale}
        concepts = [*erase, *debias]
        if not concepts:
            return cls({}, settings)
        texts = list(dict.fromkeys([*concepts, *erase.values(), *(k for w in debias.values() for k in w), *preserve]))
        embedded = {text: vector.double() for text, vector in zip(texts, last_words(pipe, texts), strict=True)}
        c = torch.stack([embedded[name] for name in concepts])  # (N, width)
        guides = [embedded[guide] for guide in erase.values()]
        guides += [embedded[name] + sum(a * embedded[k] for k, a in w.items()) for name, w in debias.items()]
        wanted = torch.stack(guides)  # v* = W0 guide
        kept = torch.stack([embedded[name] for name in preserve]) if preserve else c[:0]
        identity = ridge * torch.eye(c.shape[1], dtype=c.dtype, device=c.device)
        protected = preserve_scale * kept.T @ kept
        right = identity + erase_scale * c.T @ c + protected
        left = identity + erase_scale * wanted.T @ c + protected  # the first bracket, without W0 in front
        moved = torch.linalg.solve(right, left, left=False)
        return cls({name: (w.double() @ moved).to(w) for name, w in cross_attention(pipe).items()}, settings)

    @classmethod
    def debias(
        cls,
        pipe: DiffusionPipeline,
        observe: Callable[[str], Mapping[str, float]],
        concepts: Sequence[str],
        targets: Sequence[Mapping[str, float]],
        rounds: int = 30,
        within: float = 0.05,
        **options,
    ) -> Iterator[UnifiedConceptEditing]:
        """The authors' loop: edit, observe each concept's images, move a_k by wanted - observed, until all are close enough.

        It yields the edit of every round; the last one is the result.

        Args:
            pipe: The pipeline. It is edited only while `observe` runs.
            observe: Returns the share of every attribute in the images of a concept.
            concepts: The concepts to debias.
            targets: The wanted shares, one distribution for each attribute family.
            rounds: The largest number of rounds.
            within: A concept is done when all its shares are this close to the wanted ones.
            options: Passed on to `edit`.
        """
        wanted = {name: share for target in targets for name, share in target.items()}
        weights = {concept: dict.fromkeys(wanted, 0.0) for concept in concepts}
        open_, edit = list(concepts), cls.edit(pipe, debias={}, **options)
        for _ in range(rounds):
            with edit.on(pipe):
                missing = {c: {name: wanted[name] - share for name, share in observe(c).items()} for c in open_}
            open_ = [c for c, gap in missing.items() if max(map(abs, gap.values())) > within]
            if not open_:
                return
            for c in open_:
                weights[c] = {name: a + missing[c][name] for name, a in weights[c].items()}
            edit = cls.edit(pipe, debias=weights, **options)
            yield edit
