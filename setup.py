"""The README for PyPI. Everything else about the package is in setup.cfg."""

import re
from pathlib import Path

from setuptools import setup


def without_relative_links(text: str) -> str:
    """The README without its pictures and captions, and with the words of a link alone where the link points into the checkout."""
    text = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n\n(\*[^*]+\*\n\n)?", "", text)
    return re.sub(r"\[([^]]+)\]\((?!https?:)[^)]*\)", r"\1", text)


readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
setup(long_description=without_relative_links(readme), long_description_content_type="text/markdown")
