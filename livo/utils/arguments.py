"""Keyword arguments: which names a function takes, and an error that suggests the closest name for any other."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter
from typing import Any


class UnknownArgument(TypeError, ValueError):
    """A keyword argument that is not there: a TypeError like Python's own, and a ValueError like all bad input of LiVO."""


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str, places: Mapping[str, str] | None = None) -> None:
    """Check the names of keyword arguments.

    Args:
        given: The names that were given.
        known: The names that exist.
        where: What takes them, for the message, as in "LiVOPipeline()".
        places: For names that belong somewhere else, what to do instead.

    Raises:
        UnknownArgument: a name is not known; the message names it and the closest one that is.
    """
    known = set(known)
    for name in given:
        if name in known:
            continue
        close = get_close_matches(name, sorted(known), n=1, cutoff=0.6)
        remedy = (places or {}).get(name) or (f"did you mean {close[0]!r}?" if close else "leave it out")
        raise UnknownArgument(f"{where} has no argument {name!r}: {remedy}")


def strict(function: Callable) -> Callable:
    """Make `function` reject an unknown keyword argument with an error that suggests the closest name.

    Args:
        function: A function or an `__init__` without `**kwargs`.
    """
    names = inspect.signature(function).parameters
    where = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @wraps(function)
    def checked(*args, **kwargs):
        refuse_unknown(kwargs, names, f"{where}()")
        return function(*args, **kwargs)

    return checked


def method_arguments(cls: type, method: str) -> set[str]:
    """The keyword arguments that a method takes, with those that it passes on as `**kwargs` to the class behind it."""
    found: set[str] = set()
    for owner in _owners(cls, method):
        parameters = inspect.signature(owner).parameters.values()
        found |= {p.name for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)} - {
            "self",
            "cls",
        }
        rest = next((p.name for p in parameters if p.kind is Parameter.VAR_KEYWORD), None)
        if rest is None:
            break
        found |= _taken_from(owner, rest)
    return found


def positional_arguments(cls: type, method: str) -> list[str]:
    """The names of a method's arguments in their order; where it takes any as `*args`, those of the class behind it."""
    for owner in _owners(cls, method):
        parameters = list(inspect.signature(owner).parameters.values())[1:]
        if not any(p.kind is Parameter.VAR_POSITIONAL for p in parameters):
            return [p.name for p in parameters if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
    return []


def by_name(names: Sequence[str], args: Sequence, kwargs: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Positional and keyword arguments together, by name. Raises TypeError as Python does where there are too many, or one twice.

    Args:
        names: The function's positional arguments.
        args: Those that were given by position.
        kwargs: Those that were given by name.
        where: The function's name, for the error.
    """
    if len(args) > len(names):
        raise TypeError(f"{where} takes {len(names)} positional arguments behind the first, and {len(args)} were given")
    given = dict(zip(names, args, strict=False))
    if both := given.keys() & kwargs.keys():
        raise TypeError(f"{where} has two values for {', '.join(sorted(both))}: give it by position or by name")
    return given | dict(kwargs)


def _owners(cls: type, method: str) -> list[Callable]:
    """The functions of this name along the method resolution order, without their decorators."""
    found = (owner.__dict__[method] for owner in cls.__mro__ if method in owner.__dict__)
    return [inspect.unwrap(getattr(function, "__func__", function)) for function in found]


def _taken_from(function: Callable, rest: str) -> set[str]:
    """The names that a function takes out of its `**kwargs`, as in `kwargs.pop("callback", None)`."""
    steps = list(dis.get_instructions(function))
    found = set()
    for i, step in enumerate(steps[:-2]):
        if step.argval != rest or not step.opname.startswith("LOAD_"):
            continue
        key = steps[i + 2] if steps[i + 1].argval in ("pop", "get") else steps[i + 1]
        if key.opname == "LOAD_CONST" and isinstance(key.argval, str):
            found.add(key.argval)
    return found
