"""Logging: each warning once in a process, and no empty warnings of other libraries."""

from __future__ import annotations

import logging
from collections.abc import Callable

_said: set[str] = set()


def warn_once(logger: logging.Logger, message: str, *args: object) -> None:
    """Log a warning, unless this process has logged the same text before. `forget` makes it new again.

    Args:
        logger: The module's logger.
        message: As for `logger.warning`, with its arguments.
    """
    text = message % args
    if text not in _said:
        _said.add(text)
        logger.warning(text, stacklevel=2)


def forget() -> None:
    """Take all warnings as not yet said: for tests, and for long sessions that start again."""
    _said.clear()


# Logger and the part of its message that marks it.
_EMPTY_WARNINGS = (
    # transformers, when diffusers imports its pipelines without torchvision: nothing here may need torchvision, so it is always said.
    ("transformers.utils.import_utils", "requires torchvision (not installed); falling back to"),
    # diffusers, on every `to(dtype)` of a model, when the list of modules that must stay in float32 is empty.
    ("diffusers.models.modeling_utils", "should be kept in float32: []."),
)


def drop_empty_warnings() -> None:
    """Drop the two warnings of other libraries that come with every use and tell the user nothing."""
    for name, part in _EMPTY_WARNINGS:
        logging.getLogger(name).addFilter(_without(part))


def _without(part: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: part not in record.getMessage()
