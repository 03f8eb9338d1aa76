"""LiVOPipeline: Stable Diffusion that keeps to stated values, with its backbone frozen."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from inspect import signature
from numbers import Real
from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from livo.assignment import ValueLedger, share_out, token_shares
from livo.calibration import Calibration
from livo.conditioning import attention_bias, biased_cross_attention, encode_value, fuse, value_text
from livo.files import replacing
from livo.principles import RESERVED, ValuePrinciple, bundled_principles
from livo.retriever import ValueDecision, ValueRetriever
from livo.value_encoder import ValueEncoder, check_fit

logger = logging.getLogger(__name__)

PAPERTOWN = Path(__file__).parent / "papertown" / "weights"
PRINCIPLES_FILE = "value_principles.yaml"  # beside the components of a saved pipeline
RETRIEVER_FOLDER = "value_retriever"  # there too, where the retriever was fitted


@dataclass
class LiVOPipelineOutput(StableDiffusionPipelineOutput):
    """As StableDiffusionPipelineOutput, and `decisions`: one ValueDecision for each image."""

    decisions: list[ValueDecision] | None = None


class LiVOPipeline(StableDiffusionPipeline):
    """A StableDiffusionPipeline with a value encoder and a retriever in front of it.

    Every argument of StableDiffusionPipeline is there and means the same; with no value in play the images are the same, bit
    for bit. Create it with `from_pretrained`.
    """

    _optional_components = [*StableDiffusionPipeline._optional_components, "value_encoder"]
    model_cpu_offload_seq = "text_encoder->value_encoder->image_encoder->unet->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker,
        feature_extractor: CLIPImageProcessor,
        image_encoder: CLIPVisionModelWithProjection = None,
        requires_safety_checker: bool = True,
        value_encoder: CLIPTextModel = None,
    ):
        super().__init__(
            vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder, requires_safety_checker
        )
        self.register_modules(value_encoder=value_encoder)
        self.retriever: ValueRetriever | None = None
        self.value_scale = 1.0
        self._value_rows: list[list[tuple[str, float]]] | None = None

    # --- loading and saving ---------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        value_encoder: str | Path | CLIPTextModel | None = None,
        value_principles: str | Path | Sequence[ValuePrinciple] | None = None,
        **kwargs,
    ) -> LiVOPipeline:
        """Load any Stable Diffusion checkpoint, or a saved LiVOPipeline, or the embedded "papertown".

        Args:
            value_encoder: Hub id, folder, or .safetensors file (see `ValueEncoder.load`). A saved LiVOPipeline has its own.
            value_principles: File, folder, or list. By default those saved with the pipeline, else the paper's five.
            **kwargs: As in `DiffusionPipeline.from_pretrained` (`dtype`, `safety_checker`, ...).
        """
        source = pretrained_model_name_or_path
        if not isinstance(value_encoder, (str, Path, CLIPTextModel, type(None))):
            raise TypeError(f"value_encoder is a {type(value_encoder).__name__}: give a hub id, a path, or a CLIPTextModel")
        if str(source) == "papertown":
            source = PAPERTOWN
            if "torch_dtype" not in kwargs:
                kwargs.setdefault("dtype", torch.float32)  # stored in half precision, which CPUs are slow at
        kwargs.setdefault("use_safetensors", True)  # no pickle
        pipe = super().from_pretrained(source, **kwargs)
        if isinstance(value_encoder, CLIPTextModel):
            check_fit(value_encoder, pipe.text_encoder, "the given value encoder")
            pipe.register_modules(value_encoder=value_encoder)
        elif value_encoder is not None:
            pipe.load_value_encoder(value_encoder)
        saved = Path(source) / PRINCIPLES_FILE
        if value_principles is None:
            value_principles = saved if saved.is_file() else bundled_principles()
        pipe.load_value_principles(value_principles)
        fitted = Path(source) / RETRIEVER_FOLDER
        if value_principles == saved and fitted.is_dir():
            pipe.retriever = ValueRetriever.load(fitted, pipe.principles)
        return pipe

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """As the base's, with the value encoder, the principles and a fitted retriever; `from_pretrained` of the folder has them again."""
        if self.principles:  # first, so that a push to the hub takes them along
            documents = [_plain(principle) for principle in self.principles]
            text = yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=120)
            with replacing(Path(save_directory) / PRINCIPLES_FILE) as temporary:
                temporary.write_text(text, encoding="utf-8")
        if self.retriever is not None and self.retriever.fitted:
            self.retriever.save(Path(save_directory) / RETRIEVER_FOLDER)
        super().save_pretrained(save_directory, **kwargs)

    def load_value_encoder(self, source: str | Path) -> None:
        """Take the value encoder from a hub id, a folder, or one .safetensors file. On an error the present one stays."""
        self.register_modules(value_encoder=ValueEncoder.load(source, like=self.text_encoder))

    def unload_value_encoder(self) -> None:
        """Go back to the base pipeline, bit for bit."""
        self.register_modules(value_encoder=None)

    def load_value_principles(self, source: str | Path | Sequence[ValuePrinciple]) -> None:
        """Replace the principles. On an error the present ones stay."""
        self.retriever = self.retriever.with_principles(source) if self.retriever else ValueRetriever(source)

    @property
    def principles(self) -> list[ValuePrinciple]:
        return self.retriever.principles if self.retriever else []

    def set_value_scale(self, scale: float) -> None:
        """Strength of the value token where a call gives none: 0 is the base, 1 is what was trained."""
        self.value_scale = _checked_scale(scale)

    # --- generation -----------------------------------------------------------------------------------------------------

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *args,
        value: str | tuple[str, ...] | Sequence[str | tuple[str, ...] | None] | None = "auto",
        value_scale: float | Mapping[str, float] | Sequence[float | Mapping[str, float]] | None = None,
        ledger: ValueLedger | None = None,
        **kwargs,
    ) -> LiVOPipelineOutput | tuple:
        """Generate images that keep to the values their prompts call for.

        Args:
            prompt: As in StableDiffusionPipeline, and so are all its other arguments.
            value: "auto" lets the retriever choose the principles of each prompt, or none; a principle's id, or any other
                statement, is used as it is; a tuple of them acts together; None is the base pipeline. A list gives one for each prompt.
            value_scale: Strength of the token, one for all or one for each prompt: 0 is the base, 1 what was trained. A mapping
                gives one for each principle's id.
            ledger: Balances directions over successive calls too, so that calls of one image each meet the target together.

        Returns:
            `images`, `nsfw_content_detected` and `decisions` (one for each image), or the three as a tuple with
            `return_dict=False`.

        Raises:
            ValueError: a value was asked for that cannot be honoured; the message says what to do.
        """
        call = signature(super().__call__).bind(prompt, *args, **kwargs)
        return_dict = call.arguments.get("return_dict", True)  # False gives a tuple of three, where the base gives two
        call.arguments["return_dict"] = True
        decisions = self._decide(prompt, value, value_scale, ledger, call.arguments)
        rows = [[(value_text(d.statement, d.prompt), d.scale) for d in (image, *image.also) if d.applied] for image in decisions]
        if not any(rows):
            out = super().__call__(*call.args, **call.kwargs)
        else:
            most = max(map(len, rows))
            scales = [[scale for _, scale in row] + [0.0] * (most - len(row)) for row in rows]
            unconditional = [[0.0] * most] * len(rows)  # never sees a token
            bias = attention_bias(unconditional + scales, most + self.tokenizer.model_max_length)
            self._value_rows = rows
            try:
                with biased_cross_attention(self.unet, bias):
                    out = super().__call__(*call.args, **call.kwargs)
            finally:
                self._value_rows = None
        if ledger is not None:  # the images are there now
            for decision in (d for image in decisions for d in (image, *image.also) if d.statement):
                ledger.add((decision.prompt, decision.id or decision.statement), [decision.direction or decision.applied])
        out = LiVOPipelineOutput(out.images, out.nsfw_content_detected, decisions)
        return out if return_dict else (out.images, out.nsfw_content_detected, out.decisions)

    def encode_prompt(self, *args, **kwargs):
        """As the base's; within a call that applies values, both halves are as many tokens longer as a prompt has principles."""
        prompt_embeds, negative_embeds = super().encode_prompt(*args, **kwargs)
        if self._value_rows is None:
            return prompt_embeds, negative_embeds
        texts = list(dict.fromkeys(text for row in self._value_rows for text, _ in row))
        tokens = encode_value(self.value_encoder, self.tokenizer, texts, self._execution_device)
        encoded = dict(zip(texts, tokens, strict=True))
        most = max(map(len, self._value_rows))
        fused = prompt_embeds.new_zeros(len(self._value_rows), most, prompt_embeds.shape[-1])
        for i, row in enumerate(self._value_rows):
            for j, (text, _) in enumerate(row):
                fused[i, j] = encoded[text].to(fused)
        if negative_embeds is not None:
            negative_embeds = fuse(torch.zeros_like(fused), negative_embeds)
        return fuse(fused, prompt_embeds), negative_embeds

    # --- decisions ------------------------------------------------------------------------------------------------------

    def _decide(self, prompt, value, value_scale, ledger, given: dict) -> list[ValueDecision]:
        """One decision for each image, prompt by prompt. `given` holds the call's other arguments."""
        number, generator = given.get("num_images_per_prompt") or 1, given.get("generator")
        if prompt is None:
            embeds = given.get("prompt_embeds")
            if value is not None and not (isinstance(value, str) and value == "auto" and self.value_encoder is None):
                raise ValueError(f"value={value!r} needs the text of the prompt: pass `prompt`, or value=None with `prompt_embeds`")
            why = "value=None" if value is None else "no value encoder is loaded"
            return [_none("", why)] * (number * (1 if embeds is None else len(embeds)))
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        values = _one_each(value, prompts, "value", (str, tuple, ValuePrinciple, type(None)))
        scales = _one_each(self.value_scale if value_scale is None else value_scale, prompts, "value_scale", (Real, str, Mapping))
        if isinstance(generator, (list, tuple)) and len(generator) != len(prompts) * number:
            raise ValueError(f"{len(generator)} generators for {len(prompts) * number} images: give one for all, or one each")
        retrieved = iter(self._retrieve([text for text, wish in zip(prompts, values, strict=True) if wish == "auto"]))
        decisions = []
        for i, (text, wish, scale) in enumerate(zip(prompts, values, scales, strict=True)):
            chosen = next(retrieved) if wish == "auto" else self._honour_all(text, wish)
            chosen = [(replace(d, scale=self._scale_of(d, scale)) if d.statement else d, p) for d, p in chosen]
            one_each = isinstance(generator, (list, tuple))
            seed = (self._seed(generator[i * number]), 0) if one_each else (self._seed(generator), i)
            decisions += self._assigned(chosen, number, seed, ledger)
        return decisions

    def _scale_of(self, decision: ValueDecision, scale) -> float:
        if isinstance(scale, Mapping):
            unknown = set(scale) - {principle.id for principle in self.principles} - {decision.id}
            if unknown:
                raise ValueError(f"value_scale names {', '.join(sorted(map(repr, unknown)))}, and no principle has that id")
            scale = scale.get(decision.id, self.value_scale)
        return _checked_scale(scale)

    def _assigned(
        self,
        chosen: list[tuple[ValueDecision, ValuePrinciple | None]],
        number: int,
        seed: tuple[int, int],
        ledger: ValueLedger | None,
    ) -> list[ValueDecision]:
        """The decision for each of a prompt's images: its directions, or whether it receives the plain token."""
        if chosen[0][0].statement is None:
            return [chosen[0][0]] * number
        targets, plans = [], []
        for i, (decision, principle) in enumerate(chosen):
            directions = principle.directions if principle is not None else {}
            known = getattr(self.value_encoder, "statements", None)
            if directions and set(directions.values()) - set(known or ()):
                rate = f"{principle.apply_rate:.0%} of the images get the plain token"
                why = f"{decision.why}; the value encoder was not trained with its directions, so {rate}"
                if principle.target:
                    logger.warning(
                        "%s: the value encoder was not trained with its directions, so its target is not met", principle.id
                    )
                decision, directions = replace(decision, why=why), {}
            if not directions and known is not None and decision.statement not in known:
                logger.warning("the value encoder was not trained with %r; it knows: %s", decision.statement, "; ".join(known))
                decision = replace(decision, why=f"{decision.why}; the value encoder was not trained with these words")
            rate = 1.0 if principle is None else principle.apply_rate
            if directions:
                decision, shares = self._calibrated(decision, principle)
            plain = token_shares(rate, number, (*seed, i)) if ledger is None else {True: rate, False: 1 - rate}
            targets.append(shares if directions else plain)
            plans.append((decision, directions))
        keys = [(decision.prompt, decision.id or decision.statement) for decision, _ in plans]
        images = []
        for classes in share_out(number, targets, seed, ledger, keys):
            parts = [
                replace(decision, statement=directions[name], direction=name, applied=decision.scale > 0)
                if directions
                else replace(decision, applied=bool(name and decision.scale > 0))
                for (decision, directions), name in zip(plans, classes, strict=True)
            ]
            images.append(replace(parts[0], also=tuple(parts[1:])))
        return images

    def _calibrated(self, decision: ValueDecision, principle: ValuePrinciple) -> tuple[ValueDecision, dict[str, float]]:
        """The shares of a principle's directions: its target, or what meets it by the encoder's calibration."""
        measured = getattr(self.value_encoder, "calibrations", {}).get(principle.id)
        if measured is None or set(measured["classes"]) != set(principle.directions) or decision.scale != 1:
            return decision, principle.shares  # it was measured at the strength that was trained
        shares, miss = Calibration.from_dict(measured).shares(principle.shares)
        why = f"{decision.why}; shares of the directions calibrated by {measured['judge']}"
        if miss > 0.05:
            why += f", which can come no nearer to the target than {miss:.0%} in its worst class"
            logger.warning("%s: the encoder's directions miss the target by %.0f%% in its worst class", principle.id, 100 * miss)
        return replace(decision, why=why), shares

    def _retrieve(self, prompts: list[str]) -> list[list[tuple[ValueDecision, ValuePrinciple | None]]]:
        """What the retriever chooses for each prompt."""
        if not prompts:
            return []
        if self.value_encoder is None:
            logger.warning("no value encoder is loaded: these are the base pipeline's images (load_value_encoder, or value=None)")
            return [[(_none(prompt, "no value encoder is loaded"), None)] for prompt in prompts]
        if self.retriever is None:
            raise ValueError("value='auto' needs principles: call load_value_principles first, or pass value=None")
        by_id = {principle.id: principle for principle in self.principles}
        return [[(decision, by_id.get(decision.id)) for decision in found] for found in self.retriever.retrieve_batch(prompts)]

    def _honour_all(self, prompt: str, wish) -> list[tuple[ValueDecision, ValuePrinciple | None]]:
        """What was asked for by name: one value, or a tuple of values that act together."""
        if not isinstance(wish, tuple):
            return [self._honour(prompt, wish)]
        if not wish or None in wish or "auto" in wish or len(set(map(str, wish))) < len(wish):
            raise ValueError(f"value is {wish!r}: a tuple names principles or statements that act together, each once")
        return [self._honour(prompt, one) for one in wish]

    def _seed(self, generator: torch.Generator | None) -> int:
        """A digest of the generator's state, or of the global one's. Neither is advanced, but each call's noise advances it."""
        if generator is not None:
            state = generator.get_state()
        else:
            state = getattr(getattr(torch, self._execution_device.type), "get_rng_state", torch.get_rng_state)()
        return int.from_bytes(hashlib.sha256(state.cpu().numpy().tobytes()).digest()[:8], "little")

    def _honour(self, prompt: str, wish: str | ValuePrinciple | None) -> tuple[ValueDecision, ValuePrinciple | None]:
        """The same for a value that was asked for by name."""
        if wish is None:
            return _none(prompt, "value=None"), None
        if self.value_encoder is None:
            raise ValueError(f"value={wish!r} needs a value encoder: call load_value_encoder first, or pass value=None")
        if not isinstance(wish, (str, ValuePrinciple)):
            raise ValueError(f"value is {wish!r}: give 'auto', a principle's id, a statement, or None")
        by_name = {p.statement: p for p in self.principles} | {p.id: p for p in self.principles}
        wish = by_name.get(wish, wish) if isinstance(wish, str) else wish
        if isinstance(wish, ValuePrinciple):
            return ValueDecision(prompt, wish.id, wish.statement, None, None, None, f"{wish.id} was asked for"), wish
        if not wish.strip() or wish.lower() in RESERVED:
            raise ValueError(f"value is {wish!r}: give 'auto', a principle's id or a statement, or None for the base pipeline")
        ids = [principle.id for principle in self.principles]
        if re.fullmatch(r"\w*_\w*", wish) or get_close_matches(wish, ids, cutoff=0.8):
            raise ValueError(f"no principle has the id {wish!r}: there are {', '.join(ids)}; load a file that has it")
        return ValueDecision(prompt, None, wish, None, None, None, "the statement was asked for"), None


def _checked_scale(scale) -> float:
    try:
        number = float(scale)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ValueError(f"value_scale is {scale!r}: give a number from 0 (the base) upwards; 1 is what was trained")
    return number


def _one_each(given, prompts: list[str], name: str, single) -> list:
    if isinstance(given, single) or not isinstance(given, Sequence):
        return [given] * len(prompts)
    given = list(given)
    if len(given) != len(prompts):
        raise ValueError(f"{name} has {len(given)} entries for {len(prompts)} prompts: give one for all, or one each")
    return given


def _none(prompt: str, why: str) -> ValueDecision:
    return ValueDecision(prompt, None, None, None, None, None, why)


def _plain(principle: ValuePrinciple) -> dict:
    """As a principle file writes it: without what is empty, except where empty means something."""
    return _without_empty(asdict(principle)) | {"forbidden_by": list(principle.forbidden_by)}


def _without_empty(values: Mapping) -> dict:
    found = {}
    for name, value in values.items():
        value = _without_empty(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
        if value is not None and value != {} and value != []:
            found[name] = value
    return found
