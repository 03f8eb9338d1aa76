"""Value principles: what they are, and how they are read from YAML files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from livo.principles.construction import Construct
from livo.utils.arguments import strict
from livo.utils.files import read_text
from livo.utils.logs import warn_once
from livo.utils.plain_yaml import compose_yaml, construct_yaml, load_yaml

logger = logging.getLogger(__name__)

KINDS = ("debias", "detoxify")
RISKS = ("nudity", "bloody", "zombie")  # of the bundled principles, which the bundled heads know
FACETS = (*RISKS, "person", "gender", "race", "named")  # the questions that are asked of every prompt
RISK = "risk"  # and one more: whether a detoxify principle applies
RESERVED = ("auto", "none")  # what a pipeline's `value` means by itself
MAX_SCALE = 1000  # of a value or of guidance: images are broken long before, and half precision overflows beyond


class PrincipleError(ValueError):
    """A principle, or a file of them, cannot be used. The message names the file, the line and the remedy."""


@dataclass(frozen=True)
class ValuePrinciple:
    """One value that images must respect, and the prompts to which it applies.

    Attributes:
        id: A short name, unique among the principles in use.
        kind: `debias` (a share of a prompt's images receives the value token) or `detoxify` (every image does).
        statement: The words that the value encoder was trained with.
        apply_rate: Share of a prompt's images that receive the token, 0 to 1. Default 0.5 to debias, 1.0 to detoxify.
        attributes: Classes that a judge tells apart, with the words for each: `{male: a man, female: a woman}`. Of a risk the first is
            what is not wanted and the second what is, but that "yes" is never wanted.
        directions: For each class the statement that moves a picture towards it. An encoder that was trained with them gives every
            image of a prompt one of them, so that the classes meet `target`; any other encoder is given `statement`.
        target: The share of each class, together 1; even where it is not given. In a principle file it may name a file of
            shares beside it (see `load_target`).
        exemplars: Prompts that the principle applies to; the retriever compares with them.
        counter_exemplars: Near misses that it must leave alone.
        keywords: Whole words that speak for the principle.
        called_by: Facets of a prompt of which any calls for the principle, among nudity, bloody, zombie and person. Without
            them the facet of the principle's own id does, where there is one, else its exemplars do.
        forbidden_by: Facets of which any forbids it: gender, race (the prompt states one), named (a named or historical person),
            risk (a detoxify principle applies, and comes first), or any other. Unless given: these four to debias, none to detoxify.
        construct: How preference data for it are made (`livo build`); a mapping is parsed.
        encoder: Name of the value encoder that carries it out, where several are loaded; else the one that knows its statement.
    """

    id: str
    statement: str
    kind: str = "detoxify"
    apply_rate: float = None  # type: ignore[assignment]  # __post_init__ fills it in
    attributes: Mapping[str, str] = field(default_factory=dict)
    directions: Mapping[str, str] = field(default_factory=dict)
    target: Mapping[str, float] = field(default_factory=dict)
    exemplars: tuple[str, ...] = ()
    counter_exemplars: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    called_by: tuple[str, ...] = ()
    forbidden_by: tuple[str, ...] = None  # type: ignore[assignment]  # __post_init__ fills it in
    construct: Construct | None = None
    encoder: str | None = None

    @property
    def judged(self) -> str:
        """What a judge calls the thing that this principle is about: its `construct` says, else the id does."""
        return self.construct.judge if self.construct is not None else self.id

    def __post_init__(self):
        for name in ("id", "statement"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise PrincipleError(f"{name} is {value!r}: give it at least one word, in quotes where YAML reads something else")
        if self.id.lower() in RESERVED:
            raise PrincipleError(f"id is {self.id!r}, which means something else where a value is chosen: choose another")
        if self.kind not in KINDS:
            raise PrincipleError(f"kind is {self.kind!r}: choose one of {', '.join(KINDS)}")
        rate = self.apply_rate
        if rate is None:
            object.__setattr__(self, "apply_rate", 0.5 if self.kind == "debias" else 1.0)
        elif isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
            raise PrincipleError(f"apply_rate is {rate!r}: it is a share, give a number from 0 to 1")
        for name, what in (("attributes", "its words, as in {male: a man}"), ("directions", "a statement")):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not all(isinstance(t, str) and t.strip() for pair in value.items() for t in pair):
                raise PrincipleError(f"{name} is {value!r}: map each class to {what}")
            object.__setattr__(self, name, dict(value))
        self._check_directions()
        for name in ("exemplars", "counter_exemplars", "keywords"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) and v.strip() for v in value):
                raise PrincipleError(f"{name} is {value!r}: give a list of texts")
            object.__setattr__(self, name, tuple(value))
        if both := set(self.exemplars) & set(self.counter_exemplars):
            raise PrincipleError(f"counter_exemplars has {sorted(both)[0]!r}, which is an exemplar too: keep one")
        if self.forbidden_by is None:
            object.__setattr__(self, "forbidden_by", (RISK, "gender", "race", "named") if self.kind == "debias" else ())
        for name, known in (("called_by", FACETS), ("forbidden_by", (*FACETS, RISK))):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or not set(map(str, value)) <= set(known):
                raise PrincipleError(f"{name} is {value!r}: list facets among {', '.join(known)}")
            object.__setattr__(self, name, tuple(value))
        if self.kind == "detoxify" and RISK in self.forbidden_by:
            raise PrincipleError("forbidden_by names risk, but this principle is one: make it debias, or leave risk out")
        if self.encoder is not None and (not isinstance(self.encoder, str) or not self.encoder.strip()):
            raise PrincipleError(f"encoder is {self.encoder!r}: give the name of a value encoder, as in load_value_encoder")
        if self.construct is not None and not isinstance(self.construct, Construct):
            try:
                object.__setattr__(self, "construct", Construct.parse(self.construct, self.kind))
            except ValueError as error:
                raise PrincipleError(str(error)) from None
        if self.construct is not None and len(self.attributes) < 2:
            raise PrincipleError("attributes has fewer than two classes, so construct cannot tell aligned from violating images")

    def _check_directions(self) -> None:
        for name in ("directions", "target"):
            value = getattr(self, name)
            if value and self.kind != "debias":
                raise PrincipleError(
                    f"{name} is given, but a {self.kind} principle has one way to go: make it debias, or leave {name} out"
                )
            if value and (not isinstance(value, Mapping) or set(value) != set(self.attributes)):
                raise PrincipleError(
                    f"{name} is {value!r}: give each of the attributes ({', '.join(self.attributes) or 'none yet'}) once"
                )
        if len(set(self.directions.values())) < len(self.directions):
            raise PrincipleError(f"directions is {self.directions!r}: two classes have the same statement; give each its own")
        if not self.target:
            object.__setattr__(self, "target", {})
            return
        for name, share in self.target.items():
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
                raise PrincipleError(f"target is {dict(self.target)!r}: the share of {name} must be a number from 0 to 1")
        total = sum(self.target.values())
        if abs(total - 1) > 1e-6:
            raise PrincipleError(f"target is {dict(self.target)!r}, which sums to {total:g}: shares sum to 1")
        if not self.directions:
            raise PrincipleError("target is given without directions, so nothing can move pictures towards it: add directions")
        object.__setattr__(self, "target", dict(self.target))

    @property
    def unwanted(self) -> tuple[str, str]:
        """Of a detoxify principle with attributes: the class that is not wanted, and the one that is."""
        first, second = list(self.attributes)[:2]
        return (second, first) if (first, second) == ("no", "yes") else (first, second)

    @property
    def shares(self) -> Mapping[str, float]:
        """The share of images for each direction: `target`, or even."""
        return self.target or {name: 1 / len(self.directions) for name in self.directions}


ValuePrinciple.__init__ = strict(ValuePrinciple.__init__)  # type: ignore[method-assign]  # the dataclass writes it


@strict
def load_principles(source: str | Path | Iterable[ValuePrinciple], loaded: Sequence[ValuePrinciple] = ()) -> list[ValuePrinciple]:
    """Principles from a YAML file, a folder of them (in the order of their names), a bundled file, or a list of ValuePrinciple.

    A bundled file goes by its name from any folder: "livo" or "safety" (or "safety.yaml", unless the folder has such a file); "./safety"
    is a path. A file holds one document per principle or one list; it is read as plain data, and nothing in it is executed.

    Args:
        source: A YAML file, a folder of such files, a bundled name ("livo", "safety"), or a list of principles.
        loaded: Principles to add these to; they come first in the list given back.

    Raises:
        PrincipleError: nothing is there, or a principle is not valid; the message names file, line and remedy. Or two have the same id.
    """
    if isinstance(source, (str, Path)):
        found = [pair for file in _files(source) for pair in _read(file)]
    elif isinstance(source, ValuePrinciple) or not isinstance(source, Iterable):
        raise PrincipleError(f"principles are {source!r}: give a file, a folder, or a list of ValuePrinciple")
    else:
        found = [("the given list", principle) for principle in source]
        for _, principle in found:
            if not isinstance(principle, ValuePrinciple):
                raise PrincipleError(f"{principle!r} is not a ValuePrinciple: give a file, a folder, or ValuePrinciple objects")
    if not found:
        raise PrincipleError(f"{source}: no principle in it; write at least one with an id and a statement")
    found = [(f"the loaded principle {principle.statement!r}", principle) for principle in loaded] + found
    first: dict[str, str] = {}
    for where, principle in found:
        if principle.id in first:
            replace = ", or replace the loaded ones (without add=True)" if loaded else ""
            raise PrincipleError(
                f"{where}: id {principle.id!r} is taken already by {first[principle.id]}; rename one of them{replace}"
            )
        first[principle.id] = where
    return [principle for _, principle in found]


def refuse_mixed(wishes: Sequence[str]) -> None:
    """Raises ValueError where values are no set that can act together: auto and none stand alone, none is empty or there twice.

    Args:
        wishes: The texts of a value that is a list.
    """
    alone = len(wishes) > 1 and any(wish.lower() in RESERVED for wish in wishes)
    if alone or not all(wish.strip() for wish in wishes) or len(set(wishes)) < len(wishes):
        given = ", ".join(map(repr, wishes))
        raise ValueError(f"value is {given}: give auto or none alone, or principles and statements, each once")


def refuse_unknown_id(wish: str, principles: Sequence[ValuePrinciple]) -> None:
    """Raises ValueError where `wish` is meant as an id, and no principle has it; any other text may be a statement.

    Args:
        wish: A text of a value.
        principles: The principles in use.
    """
    ids = [principle.id for principle in principles]
    if wish in ids or wish.lower() in RESERVED or wish in [principle.statement for principle in principles]:
        return
    if re.fullmatch(r"\w*_\w*", wish) or get_close_matches(wish, ids, cutoff=0.8):
        there = f"there are {', '.join(ids)}" if ids else "none are loaded"
        raise ValueError(f"no principle has the id {wish!r}: {there}; load a file that has it (load_value_principles)")


def load_target(source: str | Path) -> dict[str, float]:
    """Shares from a YAML file: `white: 0.6` and so on, or several such sets by name, of which "census.yaml#norway" is one.

    Args:
        source: A path, or a path with # and the name of one of its entries.

    Raises:
        PrincipleError: the file or the entry is not there, or it holds no shares.
    """
    path, _, entry = str(source).partition("#")
    try:
        data = load_yaml(read_text(path), path)
    except (OSError, ValueError) as error:
        raise PrincipleError(f"target {error}") from None
    if isinstance(data, Mapping) and entry:
        if entry not in data:
            raise PrincipleError(f"target {path}: no entry {entry!r}; there are {', '.join(map(str, data))}")
        data = data[entry]
    if not isinstance(data, Mapping) or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in data.values()):
        hint = f"; name one of its entries, as in {path}#{next(iter(data))}" if isinstance(data, Mapping) and data else ""
        raise PrincipleError(f"target {source}: map each class to its share, as in {{male: 0.5, female: 0.5}}{hint}")
    return {str(name): float(share) for name, share in data.items()}


def bundled_principles() -> Path:
    """The file of the paper's five principles: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return next(
        f for f in (package / "value_principles" / "livo.yaml", package.parent / "value_principles" / "livo.yaml") if f.is_file()
    )


def _files(source: str | Path) -> list[Path]:
    path, name = Path(source), str(source)  # "./safety" is a path, and no name
    bundled = {file.stem: file for file in bundled_principles().parent.glob("*.yaml")}
    if name in bundled:
        if path.is_file() or any(path.glob("*.y*ml")):
            warn_once(logger, "%s: the bundled principles are read; write ./%s for what is here under the same name", name, name)
        return [bundled[name]]
    if path.is_file():
        return [path]
    if name.removesuffix(".yaml") in bundled:
        return [bundled[path.stem]]
    if not path.is_dir():
        raise PrincipleError(
            f"{path}: no such file or folder of principles; the bundled ones go by name: {', '.join(sorted(bundled))}"
        )
    files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    if not files:
        raise PrincipleError(f"{path}: no .yaml file in this folder")
    return files


def _read(file: Path) -> list[tuple[str, ValuePrinciple]]:
    try:
        documents = compose_yaml(read_text(file), str(file))
    except (OSError, ValueError) as error:
        raise PrincipleError(str(error)) from None
    nodes: list[yaml.Node] = []
    for document in documents:
        if isinstance(document, yaml.SequenceNode):
            nodes += document.value
        elif document is not None and document.tag != "tag:yaml.org,2002:null":
            nodes.append(document)
    return [(f"{file}:{node.start_mark.line + 1}", _principle(file, node)) for node in nodes]


def _principle(file: Path, node: yaml.Node) -> ValuePrinciple:
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        found = repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list"
        raise PrincipleError(f"{file}:{line}: a principle is a mapping that starts with `id:`, not {found}")
    known = list(ValuePrinciple.__dataclass_fields__)
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.value not in known:
            raise PrincipleError(f"{file}:{line}: unknown key {key.value!r}: a principle has {', '.join(known)}")
        lines[key.value] = line
    try:
        values: dict[str, Any] = construct_yaml(node, str(file))
    except ValueError as error:
        raise PrincipleError(str(error)) from None
    for name in ("id", "statement"):
        if name not in values:
            raise PrincipleError(f"{file}:{node.start_mark.line + 1}: the principle has no {name}; add one")
    try:
        if isinstance(values.get("target"), str):
            values["target"] = load_target(file.parent / values["target"])
        return ValuePrinciple(**values)
    except PrincipleError as error:
        at = lines.get(str(error).split()[0], node.start_mark.line + 1)
        raise PrincipleError(f"{file}:{at}: {error}") from None
