"""`livo env`"""

from __future__ import annotations

import argparse
import platform

HELP = "Print versions, devices, and combinations known to be bad, for bug reports."
EXAMPLE = "livo env"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(args) -> None:
    import torch

    from livo.retrieval.embedder import embedder_source
    from livo.utils.versions import automatic, devices, known_bad, versions

    found = versions()
    rows = [("python", platform.python_version()), ("platform", platform.platform()), *found.items(), *devices()]
    if not torch.cuda.is_available():
        rows.append(("cuda", "not available"))
    rows.append(("precision", automatic()))
    rows.append(("embedding model", embedder_source()))
    for name, value in rows:
        print(f"{name:22} {value}")
    problems = known_bad(found)
    for problem in problems:
        print(f"known bad: {problem}")
    if not problems:
        print("no combination here is known to be bad")
