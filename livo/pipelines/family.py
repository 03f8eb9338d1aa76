"""Which pipeline classes take values: those whose calls bring what `encode_prompt` returns to the cross-attention of a UNet."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from inspect import Parameter, signature
from types import CodeType, FunctionType, UnionType
from typing import Union, get_args, get_origin, get_type_hints

from diffusers import DiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from livo.utils.arguments import positional_arguments

COMPONENTS = {"text_encoder": CLIPTextModel, "tokenizer": CLIPTokenizer, "unet": UNet2DConditionModel}
OTHERS = {  # arguments of calls that do more with embeddings than to draw a prompt
    "token_indices": "it counts the positions of words, which a value token shifts",
    "source_prompt": "it draws two prompts at a time",
    "source_embeds": "it adds directions to the embeddings",
}


def check_family(cls: type[DiffusionPipeline]) -> None:
    """Raise ValueError, with the reason and the remedy, unless values can act in pipelines of this class."""
    why = _why_not(cls)
    if why is not None:
        raise ValueError(
            f"{cls.__name__} cannot take values: {why}. Use StableDiffusionPipeline, or another class of Stable Diffusion 1.x, 2.x "
            "or SDXL whose calls pass the prompt through encode_prompt"
        )


def _why_not(cls: type[DiffusionPipeline]) -> str | None:
    parts, hints = signature(cls.__init__).parameters, _hints(cls)
    if missing := [name for name in COMPONENTS if name not in parts]:
        return f"it has no {missing[-1]}"
    for name, kind in COMPONENTS.items():
        kinds = _kinds(hints.get(name))
        if kinds and not any(issubclass(kind, known) for known in kinds):
            return f"its {name} is {' or '.join(known.__name__ for known in kinds)}, not {kind.__name__}"
    arguments = positional_arguments(cls, "__call__")
    if arguments[:1] != ["prompt"]:
        return f"its call does not begin with a prompt, but with {arguments[0] if arguments else 'nothing'}"
    for name, reason in OTHERS.items():
        if name in arguments:
            return f"its call takes {name}: {reason}"
    if "encode_prompt" not in _reached(cls, "__call__"):
        return "its call never calls encode_prompt, so a value token would not reach its UNet"
    return None


def _reached(cls: type, method: str) -> set[str]:
    """The names of all methods of `cls` that a call of `method` may come to, by what the code names."""
    found, left, seen = {method}, _functions(cls, method)[:1], set()
    while left:
        function = left.pop()
        if function in seen:
            continue
        seen.add(function)
        names = set(_names(function.__code__))
        for name in names:
            functions = _functions(cls, name)
            found |= {name} if functions else set()
            left += functions if "super" in names else functions[:1]
    return found


def _functions(cls: type, name: str) -> list[FunctionType]:
    """The functions of this name along the method resolution order, without their decorators."""
    found = (owner.__dict__[name] for owner in cls.__mro__ if name in owner.__dict__)
    functions = (inspect.unwrap(getattr(member, "__func__", member)) for member in found)
    return [function for function in functions if isinstance(function, FunctionType)]


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from code.co_freevars
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _hints(cls: type) -> dict[str, object]:
    """The types of the constructor's arguments; none where they cannot be resolved."""
    try:
        return get_type_hints(cls.__init__)
    except (NameError, TypeError):
        return {}


def _kinds(hint: object) -> list[type]:
    """The classes that a type hint names, without None."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [kind for kind in kinds if isinstance(kind, type) and kind is not type(None)]


def constructor(base: type[DiffusionPipeline]):
    """The base's constructor with values' arguments behind its own; diffusers reads from its signature what a pipeline is made of."""
    ours = {"value_encoder": (CLIPTextModel, None), "value_scale": (float, 1.0), "prompt_padding": (str, "max_length")}
    theirs = signature(base.__init__)
    hints = get_type_hints(base.__init__)
    parameters = [p.replace(annotation=hints.get(p.name, p.annotation)) for p in theirs.parameters.values()]
    parameters += [
        Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind) for name, (kind, default) in ours.items()
    ]
    whole = theirs.replace(parameters=parameters)

    def __init__(self, *args, **kwargs):
        given = whole.bind(self, *args, **kwargs)
        values = {name: given.arguments.pop(name) for name in ours if name in given.arguments}
        base.__init__(*given.args, **given.kwargs)
        self.plug_in(**values)

    __init__.__signature__ = whole
    __init__.__annotations__ = hints | {name: kind for name, (kind, _) in ours.items()}
    return __init__
