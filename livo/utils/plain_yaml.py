"""YAML as plain data: without tags, duplicate keys and aliases that multiply."""

from __future__ import annotations

from typing import Any

import yaml

from livo.utils.files import HALF, is_text

MAX_CHARACTERS = 20_000_000  # PyYAML reads about a million a second
_MAX_VALUES = 2_000_000  # with aliases written out


class Loader(yaml.SafeLoader):
    """SafeLoader that refuses what it would take silently: a key that is there twice, and aliases that multiply ("billion laughs")."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = []
        for key, _ in node.value:
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} is there twice; keep one", problem_mark=key.start_mark
                )
            seen.append((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        text = super().construct_scalar(node)
        if not is_text(text):
            raise yaml.constructor.ConstructorError(problem=f"{text!r} holds {HALF}", problem_mark=node.start_mark)
        return text


def compose_yaml(text: str, where: str) -> list[yaml.Node | None]:
    """The documents of a YAML text as nodes, which know their lines.

    Args:
        text: The content of a YAML file.
        where: The file, for the message.

    Raises:
        ValueError: it is not YAML, is nested too deeply, too long, or its aliases multiply.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{where}: {len(text):,} characters; YAML is read up to {MAX_CHARACTERS:,}, use JSON lines for more")
    try:
        documents: list[yaml.Node | None] = list(yaml.compose_all(text, Loader=Loader))
        for document in documents:
            if document is not None and _values(document, {}) > _MAX_VALUES:
                raise ValueError(f"{where}: its aliases multiply to more than {_MAX_VALUES:,} values; write out what is needed")
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"{where}: YAML that is nested too deeply; nothing that LiVO reads is") from None
    return documents


def construct_yaml(node: yaml.Node, where: str) -> Any:
    """The plain data of a node. Raises ValueError: a tag, a key twice, or no such date or number; the message has the line.

    Args:
        where: The file's name, for errors.
    """
    try:
        return Loader("").construct_document(node)
    except yaml.constructor.ConstructorError as error:
        line = (error.problem_mark or node.start_mark).line + 1
        raise ValueError(f"{where}:{line}: {error.problem}") from None
    except ValueError as error:
        raise ValueError(f"{where}:{node.start_mark.line + 1}: not plain data: {error}") from None


def load_yaml(text: str, where: str) -> Any:
    """The plain data of a text with one document. Raises ValueError: see `compose_yaml` and `construct_yaml`, or there are several.

    Args:
        text: The content of a YAML file.
        where: The file's name, for errors.
    """
    documents = compose_yaml(text, where)
    if len(documents) > 1:
        raise ValueError(f"{where}: {len(documents)} YAML documents; remove the lines of --- between them")
    return construct_yaml(documents[0], where) if documents and documents[0] is not None else None


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below a node with aliases written out; one that contains itself has no end."""
    if id(node) not in known:
        known[id(node)] = _MAX_VALUES + 1  # while it is counted
        parts = node.value if isinstance(node.value, list) else []
        children = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_values(child, known) for child in children)
    return known[id(node)]
