"""ValueMixin: what LiVO adds to a diffusers pipeline, whichever of the Stable Diffusion family it is."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import cache
from inspect import signature

import torch
from transformers import CLIPTextModel

from livo.pipelines.decision_record import ImageDecision, with_decisions
from livo.pipelines.family import check_family, constructor
from livo.pipelines.finite import check_images, check_tokens, watching
from livo.pipelines.ledger import Reservation, ValueLedger
from livo.pipelines.loading import ValuePersistenceMixin
from livo.pipelines.named_encoders import PREFIX
from livo.pipelines.selection import NO_ENCODER, NO_VALUE, ValueRequest, ValueSelector, checked_scale
from livo.pipelines.settings import checked_draw, draw_seed, model_record, noise_of, settings_of, size_of
from livo.pipelines.sharing import PrivateTokenizer, one_call, private_copy
from livo.pipelines.value_call import ValueCall
from livo.retrieval.retriever import ValueRetriever
from livo.utils.arguments import by_name, method_arguments, positional_arguments, refuse_unknown
from livo.utils.files import refuse_half
from livo.utils.hashing import weights_hash
from livo.utils.logs import warn_once
from livo.value_encoder.attention import ValueAttention, join, running
from livo.value_encoder.encoder import check_fit
from livo.value_encoder.token import cut_off, encode_value, fuse, value_text

logger = logging.getLogger(__name__)

PADDINGS = ("max_length", "do_not_pad")
_ELSEWHERE = {  # what is no argument of a call
    "prompt_padding": "it is a setting of the pipeline, so give it to from_pretrained or livo.attach",
    "value_encoder": "call load_value_encoder before",
    "value_principles": "call load_value_principles before",
}


class ValueMixin(ValuePersistenceMixin):
    """Values in front of a pipeline: `class LiVOPipeline(ValueMixin, StableDiffusionPipeline)`.

    Everything else (samplers, callbacks, adapters, offloading) is the base class's own code. The constructor takes the arguments of the
    base class and those of `plug_in`. What a call needs while it runs is in a `ValueCall`.
    """

    _attention: ValueAttention

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if ValueMixin not in cls.__bases__:
            return
        cls.base_class = next(base for base in cls.__bases__ if base is not ValueMixin)
        check_family(cls.base_class)
        cls._optional_components = [*cls.base_class._optional_components, "value_encoder"]
        cls.model_cpu_offload_seq = f"value_encoder->{cls.base_class.model_cpu_offload_seq}"  # it is run first
        cls.__init__ = constructor(cls.base_class)

    def plug_in(
        self, value_encoder: CLIPTextModel | None = None, value_scale: float = 1.0, prompt_padding: str = "max_length"
    ) -> None:
        """Give the pipeline what values need; its constructor and `livo.attach` call this.

        Args:
            value_encoder: The default value encoder.
            value_scale: Strength of the value token where a call gives none, 0 to 1000.
            prompt_padding: "max_length" is the layout of training, "do_not_pad" that of the official inference script.

        Raises ValueError or TypeError where an argument is none of these.
        """
        if prompt_padding not in PADDINGS:
            raise ValueError(f"prompt_padding is {prompt_padding!r}: choose one of {', '.join(PADDINGS)}")
        if prompt_padding == "do_not_pad" and "prompt_2" in signature(self.base_class.encode_prompt).parameters:
            raise ValueError(f"prompt_padding 'do_not_pad' is Stable Diffusion 1.x's; {type(self).__name__} has 'max_length' alone")
        if not isinstance(value_encoder, (CLIPTextModel, type(None))):
            raise TypeError(f"value_encoder is {value_encoder!r}: give a CLIPTextModel; load_value_encoder reads one from a file")
        self.register_modules(value_encoder=value_encoder)
        self.register_to_config(value_scale=checked_scale(value_scale), prompt_padding=prompt_padding)
        self._encoder_scales: dict[str, float] = {}
        self.retriever: ValueRetriever | None = None
        self._attention = ValueAttention()
        weakref.finalize(self, self._attention.remove)  # the networks may outlive the pipeline
        self._hook()

    def unplug(self) -> None:
        """Take all of it away again, hooks, modules and settings, as far as it is there; `livo.detach` calls this."""
        if "_attention" in self.__dict__:
            self._attention.remove()
        named = [key for key in self.config if key.startswith(PREFIX)]
        self._forget("value_encoder", *named, "value_scale", "prompt_padding", "_encoder_scales", "retriever", "_attention")
        self.__class__ = self.base_class

    def _hook(self) -> None:
        for name in ("unet", "controlnet"):
            network = getattr(self, name, None)
            if isinstance(network, torch.nn.Module):
                self._attention.put_on(network, f"the pipeline's {name}")

    # --- loading and saving ---------------------------------------------------------------------------------------------

    def enable_sequential_cpu_offload(self, *args, **kwargs) -> None:
        """See the base class."""
        model_record(self)  # as long as the weights are in reach: their hashes are remembered
        for encoder in self.value_encoders.values():
            weights_hash(encoder)
        super().enable_sequential_cpu_offload(*args, **kwargs)

    # --- generation -----------------------------------------------------------------------------------------------------

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *args,
        value: str | tuple[str, ...] | Sequence[str | tuple[str, ...] | None] | None = "auto",
        value_scale: float | Mapping[str, float] | Sequence[float | Mapping[str, float]] | None = None,
        value_start: float | Sequence[float] = 0.0,
        value_end: float | Sequence[float] = 1.0,
        ledger: ValueLedger | None = None,
        **kwargs,
    ):
        """Generate images with the values that apply to their prompts.

        Args:
            prompt: One text, or a list. With `prompt_embeds`, only the value encoder and the retriever read it.
            *args: All other arguments of the base class, in its order.
            value: "auto" lets the retriever choose the principles of each prompt, or none; a principle, its id or any other statement
                is applied as it is; a tuple of these acts together; None is the base pipeline. A list has one for each prompt.
            value_scale: Strength of the token, 0 (the base) to 1000, where 1 is what was trained; one for all prompts, or a list. A mapping
                gives a strength to each principle's id. None is the pipeline's `value_scale`.
            value_start: Share of the sampler's steps after which the token acts, 0 to 1; one for all prompts, or a list.
            value_end: Share of the sampler's steps after which the token no longer acts, 0 to 1; one for all prompts, or a list.
            ledger: Balances images over successive calls, in one process or many, so that calls of one image each meet the target
                together (see `ValueLedger`). Without one, the seed and the prompt's text decide.
            **kwargs: All other arguments of the base class, by name.

        Returns:
            What the base class returns, with `decisions`, one ImageDecision for each image, as its last field; with
            `return_dict=False` a tuple of the same.

        Raises:
            ValueError: a value was asked for that cannot be honoured; the message says what to do.
        """
        given = self._arguments(args, kwargs)
        for name, text in {"prompt": prompt, "value": value, **given}.items():
            refuse_half(name, text)
        if not isinstance(ledger, (ValueLedger, type(None))):
            raise ValueError(f"ledger is {ledger!r}: give a ValueLedger, such as ValueLedger('shares.sqlite')")
        reserving = nullcontext() if ledger is None else ledger.reserving()  # counted once the images are there
        with one_call(self, given), watching(self) as finite, reserving as reservation:
            decisions = self._decide(prompt, (value, value_scale, value_start, value_end), reservation, given)
            call = self._value_call(decisions)
            drawn_with = self._drawn_with(given, len(decisions))
            if call is not None:
                hashes = {name: weights_hash(encoder) for name, encoder in self.value_encoders.items()}
                decisions = [decision.with_encoders(hashes) for decision in decisions]
            out = self._draw(prompt, given, call)
            check_images(self, finite, out[0], with_values=call is not None)
        return self._with_decisions(out, decisions, drawn_with, given.get("return_dict", True))

    def _draw(self, prompt: str | list[str] | None, given: Mapping[str, object], call: ValueCall | None):
        """What the base class's call returns for these arguments, with the values of `call` or without any."""
        text = None if given.get("prompt_embeds") is not None else prompt  # the base takes one of them
        if call is None:
            with running(None):
                return super().__call__(text, **{**given, "return_dict": True})
        self._hook()
        arguments = {**given, "return_dict": True, **call.step_arguments(self, given)}
        with self._attention.holding(call):
            out = super().__call__(text, **arguments)
            call.check_acted(type(self).__name__)
        return out

    def _with_decisions(self, out, decisions: Sequence[ImageDecision], drawn_with: Sequence[tuple], return_dict: bool):
        """The base class's output with the decisions behind its fields, or a tuple of the same."""
        first = (out.frames[0] if hasattr(out, "frames") else out[0])[0]  # all are of one size
        size = size_of(first, self.vae_scale_factor)
        found = [
            replace(decision, seed=seed, image=number, settings=settings | {"size": size})
            for decision, (seed, number, settings) in zip(decisions, drawn_with, strict=True)
        ]
        values = {field.name: getattr(out, field.name) for field in fields(out)} | {"decisions": found}
        return with_decisions(type(out))(**values) if return_dict else tuple(values.values())

    @property
    def _call(self) -> ValueCall | None:
        """The call with values that runs on this pipeline in this thread."""
        state = self._attention.state
        return state if isinstance(state, ValueCall) else None

    def _arguments(self, args: tuple, kwargs: dict) -> dict:
        """The arguments behind `prompt` by name. Raises UnknownArgument (a TypeError and ValueError) where the base has no such one."""
        cls, name = self.base_class, f"{type(self).__name__}()"
        ours = {p.name for p in signature(ValueMixin.__call__).parameters.values() if p.kind is p.KEYWORD_ONLY}
        refuse_unknown(kwargs, method_arguments(cls, "__call__") | ours, name, _ELSEWHERE)
        return by_name(positional_arguments(cls, "__call__")[1:], args, kwargs, name)

    def encode_prompt(self, *args, **kwargs):
        """See the base class; within a call that applies values, both halves are as many tokens longer as a prompt has value tokens."""
        call = self._call
        if call is None:
            return self._encode(*args, **kwargs)
        if call.rows is not None:
            if signature(super().encode_prompt).bind(*args, **kwargs).arguments.get("prompt_embeds") is not None:
                return self._encode(*args, **kwargs)  # what it returned before, with the tokens
            raise ValueError(
                f"{type(self).__name__} encodes more than one text a call, and a value belongs to one prompt: pass value=None"
            )
        if self.config.prompt_padding == "do_not_pad":
            return self._encode_unpadded(call, *args, **kwargs)
        embeds, negative, *rest = self._encode(*args, **kwargs)
        tokens = call.tokens.to(embeds)
        if negative is not None and len(negative) == len(embeds):  # without guidance it may be what the caller gave
            negative = fuse(torch.zeros_like(tokens), negative)
        embeds = fuse(tokens, embeds)
        call.begin(torch.cat([torch.zeros_like(tokens), tokens]), call.blend_at(0.0, embeds.shape[1]).to(embeds))
        return embeds, negative, *rest

    def _encode(self, *args, length: int | None = None, **kwargs):
        """The base's `encode_prompt`, with texts cut and padded to `length`. No tokenizer or text encoder is changed by it."""
        self._check_texts(signature(super().encode_prompt).bind(*args, **kwargs).arguments)
        private = private_copy(self, length)
        found = super(ValueMixin, private).encode_prompt(*args, **kwargs)
        if "_lora_scale" in vars(private):  # the base keeps it for the next LoRA that is loaded
            self._lora_scale = private._lora_scale
        return found

    def _encode_unpadded(self, call: ValueCall, *args, **kwargs):
        """The layout of the official inference script: [value; prompt] without padding, cut at 76 tokens, against an unconditional
        text that is padded to the same length and has no value token. Images without a value keep the base's layout."""
        bound = signature(super().encode_prompt).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        if given["prompt_embeds"] is not None or given["negative_prompt_embeds"] is not None:
            raise ValueError("prompt_padding 'do_not_pad' needs texts: pass prompts in place of embeddings, or use 'max_length'")
        prompts = [given["prompt"]] if isinstance(given["prompt"], str) else list(given["prompt"])
        negatives, number = given["negative_prompt"] or "", given["num_images_per_prompt"]
        negatives = [negatives] * len(prompts) if isinstance(negatives, str) else list(negatives)
        common = {"device": given["device"], "num_images_per_prompt": 1, "lora_scale": given["lora_scale"]}

        @cache
        def encoded(text: str, length: int, clip_skip: int | None) -> torch.Tensor:
            kwargs = {"prompt": text, "do_classifier_free_guidance": False, "clip_skip": clip_skip, **common}
            return self._encode(length=length, **kwargs)[0][0]

        tokenizer = PrivateTokenizer(self.tokenizer)
        limit = tokenizer.model_max_length
        conditional, unconditional, scales = [], [], []
        for image, row in enumerate(call.values):
            text, negative = prompts[image // number], negatives[image // number]
            tokens = call.tokens[image, : call.counts[image]]
            read = self.maybe_convert_prompt(text, tokenizer)
            length = min(len(tokenizer(read, verbose=False).input_ids), limit - 1) if row else limit
            embeds = encoded(text, length, given["clip_skip"])
            conditional.append(torch.cat([tokens.to(embeds), embeds]))
            unconditional.append(encoded(negative, min(length + len(tokens), limit), None))
            scales.append(call.scales(image, 0)[: len(tokens)])
        guided = given["do_classifier_free_guidance"]
        embeds, blend = join([*unconditional, *conditional], [*([()] * len(scales)), *scales])
        call.begin(embeds, blend if bool(blend.bias[:, 0 if guided else len(scales) :].any()) else None)
        return embeds[len(scales) :], embeds[: len(scales)] if guided else None

    # --- decisions ------------------------------------------------------------------------------------------------------

    def _decide(self, prompt, asked: tuple, reservation: Reservation | None, given: dict) -> list[ImageDecision]:
        """One decision for each image, prompt by prompt. `given` holds the call's other arguments."""
        value, scale, start, end = asked
        number, generator = checked_draw(given)
        if prompt is None:
            embeds = given.get("prompt_embeds")
            if value is not None and not (isinstance(value, str) and value == "auto" and not self.value_encoders):
                raise ValueError(
                    f"value={value!r} needs the text of the prompt: pass `prompt` beside `prompt_embeds`, or value=None"
                )
            why = NO_VALUE if value is None else NO_ENCODER
            return [ImageDecision("", reason=why)] * (number * (1 if embeds is None else len(embeds)))
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, list) or not prompts or not all(isinstance(text, str) for text in prompts):
            raise ValueError(f"prompt is {prompt!r}: give a text, or a list of texts")
        request = ValueRequest.for_prompts(prompts, value, self.value_scale if scale is None else scale, start, end)
        if request.limited and self.config.prompt_padding == "do_not_pad":
            raise ValueError(
                "value_start and value_end need prompt_padding 'max_length': without padding no step can be the base's"
            )
        one_each = isinstance(generator, list)
        images = len(prompts) * number
        embeds = given.get("prompt_embeds")
        if embeds is not None and len(embeds) != len(prompts):
            raise ValueError(
                f"prompt_embeds make {len(embeds) * number} images and the prompts {images}: give a text for each of them"
            )
        if one_each and len(generator) != images:
            raise ValueError(f"{len(generator)} generators for {images} images: give one for all, or one each")
        # With one generator for all, a text that comes again draws again.
        again = [0 if one_each else prompts[:i].count(text) for i, text in enumerate(prompts)]
        generators = generator[::number] if one_each else [generator] * len(prompts)
        seeds = [(draw_seed(g, self._execution_device), n) for g, n in zip(generators, again, strict=True)]
        selector = ValueSelector(self.retriever, self.value_encoders, self.value_scale, self._encoder_scales)
        return selector.select(prompts, request, number, seeds, reservation)

    def decide(self, prompt: str | list[str], value="auto", value_scale=None) -> list[ImageDecision]:
        """The decision for each prompt's first image without drawing it, as a call with these arguments would make it.

        Args:
            prompt: One text, or a list.
            value: See `__call__`.
            value_scale: See `__call__`.

        Raises:
            ValueError: a value was asked for that cannot be honoured; the message says what to do.
        """
        return self._decide(prompt, (value, value_scale, 0.0, 1.0), None, {})

    def _drawn_with(self, given: dict, images: int) -> list[tuple[int, int, dict]]:
        """For each image its seed, its number among those of the generator, and the settings of the call, before it begins."""
        each = given.get("num_images_per_prompt") or 1
        settings = settings_of(self, given, images // each)
        noise = noise_of(given.get("generator"), images, self._execution_device)
        return [(n["seed"], n["image"], settings[i // each] | {"generator": n["generator"]}) for i, n in enumerate(noise)]

    @torch.no_grad()
    def _value_call(self, decisions: Sequence[ImageDecision]) -> ValueCall | None:
        """The call that carries out the decisions, with its value tokens encoded; None where no value is applied."""
        wanted: dict[str, dict[str, None]] = {}  # texts by encoder, each once
        for decision in decisions:
            for value in decision.applied_values:
                wanted.setdefault(value.encoder_name, {})[value_text(value.statement, decision.prompt)] = None
        if not wanted:
            return None
        encoded = {}
        for name, texts in wanted.items():
            tokens = self._encode_values(name, list(texts))
            encoded |= dict(zip([(name, text) for text in texts], tokens, strict=True))
        return ValueCall(decisions, encoded)

    def _encode_values(self, name: str, texts: list[str]) -> torch.Tensor:
        """The tokens (texts, k, width) of one encoder."""
        encoder = self.value_encoders[name]
        check_fit(encoder, self.text_encoder, f"the value encoder {name!r}", self._width)
        for text in texts:
            if rest := cut_off(self.tokenizer, text):
                warn_once(logger, "%r is too long for the value encoder, which does not read its end: %r", text, rest)
        hooked = any(hasattr(module, "_hf_hook") for module in encoder.modules())
        tokens = encode_value(encoder, self.tokenizer, texts, self._execution_device if hooked else encoder.device)
        check_tokens(encoder, tokens)
        return tokens if tokens.dim() == 3 else tokens[:, None]
