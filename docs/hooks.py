"""mkdocs hooks: public names, the command line from `livo COMMAND --help`, and formulas as MathML, which needs no network."""

from __future__ import annotations

import html
import os
import re
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
from unittest.mock import patch

from latex2mathml.converter import convert

COMMANDS = "<!-- commands -->"  # in reference/command_line.md
NAMES = r"<!-- public names of (livo[.\w]*) -->"  # in the other pages of reference/


def on_page_markdown(markdown: str, page, **_) -> str:
    markdown = re.sub(NAMES, lambda found: _public_names(found[1]), markdown)
    return markdown.replace(COMMANDS, _command_line()) if COMMANDS in markdown else markdown


def _public_names(package: str) -> str:
    return "\n".join(f"::: {package}.{name}\n" for name in import_module(package).__all__)


def on_page_content(content: str, **_) -> str:
    """Each formula that pymdownx.arithmatex marks becomes MathML, which browsers draw without JavaScript."""
    pattern = r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>'
    return re.sub(pattern, lambda found: _mathml(found[2], "block" if found[1] == "div" else "inline"), content, flags=re.DOTALL)


def _mathml(formula: str, display: str) -> str:
    return convert(html.unescape(formula.strip()), display=display)


def _command_line() -> str:
    from livo.cli.main import COMMANDS as commands
    from livo.cli.main import main

    parts = []
    for name in commands:
        text = StringIO()
        with redirect_stdout(text), suppress(SystemExit), patch.dict(os.environ, COLUMNS="110"):  # argparse's width
            main([name, "--help"])
        parts.append(f"## livo {name}\n\n```text\n{text.getvalue()}```\n")
    return "\n".join(parts)
