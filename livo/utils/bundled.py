"""Models that ship inside the package. `livo/__init__.py` registers each one, and every other package asks for it by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any


@dataclass(frozen=True)
class BundledModel:
    """A checkpoint inside the package, with a judge for its pictures.

    Attributes:
        name: What `from_pretrained` and --model call it.
        weights: Its folder, in diffusers' layout. The folder `judge` in it holds the judge.
        judge: The judge's class as "module:class". It has `from_pretrained(folder)`, and is imported when it is first used.
    """

    name: str
    weights: Path
    judge: str

    @property
    def judge_class(self) -> Any:
        """The class that `judge` names."""
        return resolve_name(self.judge)


_MODELS: dict[str, BundledModel] = {}


def register(model: BundledModel) -> None:
    """Make a bundled model known by its name. A second model of the same name replaces the first.

    Args:
        model: The model to add.
    """
    _MODELS[model.name] = model


def bundled(name: object) -> BundledModel | None:
    """The bundled model of this name; None if there is none.

    Args:
        name: Any object; a text or path that is a model's name.
    """
    return _MODELS.get(str(name))


def bundled_models() -> list[BundledModel]:
    """All bundled models. The first is the default of the command line."""
    return list(_MODELS.values())


def bundled_names() -> str:
    """The names of all bundled models, for messages: separated by commas."""
    return ", ".join(_MODELS)
