"""The commands of `livo`, one file each: HELP, EXAMPLE, `add_arguments` and `run`.

Bad input is a ValueError or an OSError, printed as one line with exit code 2. What takes long to import is imported in `run`.
"""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A count on the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number
