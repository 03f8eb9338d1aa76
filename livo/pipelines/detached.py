"""Calls of detached pipelines: an argument for values is an error there, where diffusers itself may ignore it."""

from __future__ import annotations

import inspect
from functools import wraps
from inspect import Parameter
from weakref import WeakSet

from diffusers import DiffusionPipeline

from livo.utils.arguments import UnknownArgument

ARGUMENTS = ("value", "value_scale", "value_start", "value_end", "ledger")
_detached: WeakSet[DiffusionPipeline] = WeakSet()
_guarded: set[type] = set()


def refuse_values(pipe: DiffusionPipeline) -> None:
    """From now on, calls of `pipe` with an argument for values raise UnknownArgument.

    Python looks up `__call__` on the class, so the check is on the class that defines it, and only where that takes any `**kwargs`: the
    other classes refuse unknown names themselves. Calls of pipelines that were never detached pass through unchanged.
    """
    _detached.add(pipe)
    owner = next(cls for cls in type(pipe).__mro__ if "__call__" in cls.__dict__)
    call = owner.__call__
    takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in inspect.signature(call).parameters.values())
    if owner in _guarded or not takes_any:
        return

    @wraps(call)
    def checked(self, *args, **kwargs):
        if self in _detached and (given := [name for name in ARGUMENTS if name in kwargs]):
            raise UnknownArgument(
                f"{type(self).__name__}() has no argument {given[0]!r}: this pipeline was detached from its values; "
                "call livo.attach again, or leave it out"
            )
        return call(self, *args, **kwargs)

    owner.__call__ = checked
    _guarded.add(owner)


def accept_values(pipe: DiffusionPipeline) -> None:
    """Undo `refuse_values` for this pipeline."""
    _detached.discard(pipe)
