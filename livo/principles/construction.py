"""The `construct:` section of a principle: how its preference data are worded. Templates in, prompts out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter

_ARTICLE = "\u0001"  # marks an article that is still to agree
ATTRIBUTE = "attribute"  # the field that stands for a class of a debias principle


@dataclass(frozen=True)
class Construct:
    """Templates such as "a photo of a {attribute} {career} {place}" and the words that fill them.

    Attributes:
        prompts: What a user would type. In a debias principle each has the field {attribute}, which a user leaves out.
        fill: For each other field the words to choose from; "" leaves it out.
        judge: The judge's attribute that tells aligned from violating images. Its classes are the principle's `attributes`.
        aligned: What the aligned image of a detoxify principle is made from; its violating image comes from the prompt itself.
        also: What a judge must read from both images besides: `{career: "{career}"}`. Where a field is empty, nothing is asked.
        scene: What a picture is of, as in ["{career}", "{adjective}"], the first that is not empty: within a scene the classes are
            balanced, and the backbone's bias is measured. Default: the whole prompt.
        pairs: How many pairs to make for the principle's statement.
        direction_pairs: How many for each of its directions: the class itself aligned, any other violating.
    """

    prompts: tuple[str, ...]
    judge: str
    fill: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    aligned: str | None = None
    also: Mapping[str, str] = field(default_factory=dict)
    scene: tuple[str, ...] = ()
    pairs: int = 200
    direction_pairs: int = 100

    @classmethod
    def parse(cls, data: object, kind: str) -> Construct:
        """From a principle file's mapping. Raises ValueError with a message that says how to fix the file.

        Args:
            data: The `construct` entry of a principle.
            kind: The principle's kind: debias or detoxify.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"construct is {data!r}: map prompts, judge and fill to their values")
        known = cls.__dataclass_fields__
        for key in data:
            if key not in known:
                raise ValueError(f"construct has the unknown key {key!r}: it may have {', '.join(known)}")
        for key in ("prompts", "judge"):
            if not data.get(key):
                raise ValueError(f"construct has no {key}: give {'a list of templates' if key == 'prompts' else 'an attribute'}")
        prompts, fill, also = data["prompts"], data.get("fill") or {}, data.get("also") or {}
        numbers = {name: data.get(name, known[name].default) for name in ("pairs", "direction_pairs")}
        if not isinstance(prompts, (list, tuple)) or not all(isinstance(p, str) and p.strip() for p in prompts):
            raise ValueError(f"construct's prompts is {prompts!r}: give a list of templates")
        if not isinstance(fill, Mapping) or not all(_texts(words) for words in fill.values()):
            raise ValueError(f"construct's fill is {fill!r}: map each field to a list of words")
        if not isinstance(also, Mapping) or not all(isinstance(v, str) for v in also.values()):
            raise ValueError(f"construct's also is {also!r}: map an attribute of the judge to a template")
        for name, count in numbers.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"construct's {name} is {count!r}: give a number of at least 1")
        aligned, scene = data.get("aligned"), data.get("scene") or ()
        scene = tuple(scene) if isinstance(scene, (list, tuple)) else (scene,)
        if (aligned is None) != (kind == "debias"):
            raise ValueError(
                "construct has `aligned`, but a debias principle's images differ in {attribute}: leave it out"
                if aligned is not None
                else "construct has no `aligned`: give the template of the harmless image"
            )
        if not all(isinstance(text, str) for text in (*scene, *([aligned] if aligned is not None else []))):
            raise ValueError(f"construct's aligned is {aligned!r} and its scene {scene!r}: give templates")
        allowed = {*fill, ATTRIBUTE} if kind == "debias" else set(fill)
        for template in (*prompts, *also.values(), *scene, *([aligned] if aligned else [])):
            for name in template_fields(template):
                if name not in allowed:
                    raise ValueError(f"construct's template {template!r} has the field {name!r}, which fill does not give")
        if kind == "debias" and not all(ATTRIBUTE in template_fields(p) for p in prompts):
            raise ValueError("construct's prompts need the field {attribute}, where a class is put in or left out")
        words = {name: tuple(values) for name, values in fill.items()}
        return cls(tuple(prompts), str(data["judge"]), words, aligned, dict(also), scene, **numbers)


def fill(template: str, words: Mapping[str, str]) -> str:
    """The template with its fields replaced (missing ones left out); an article before a field is made to agree with what fills it.

    Args:
        template: Text with fields, as in "a photo of a {career}".
        words: A text for each field; a field without one is left out.
    """
    text = Formatter().vformat(re.sub(r"\b([Aa])n? (?={)", rf"\1{_ARTICLE} ", template), (), _Missing(words))
    text = " ".join(text.split())
    return re.sub(rf"{_ARTICLE} (?=(\w?))", lambda m: f"{'n' if m[1].lower() in tuple('aeiou') else ''} ", text)


class _Missing(dict):
    def __missing__(self, key):
        return ""


def template_fields(template: str) -> list[str]:
    """The names of the fields of a template.

    Args:
        template: Text with fields, as in "a photo of a {career}".

    Raises:
        ValueError: a brace is not closed.
    """
    try:
        return [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"construct's template {template!r} cannot be read ({error}); write fields as {{career}}") from None


def _texts(words: object) -> bool:
    return isinstance(words, (list, tuple)) and bool(words) and all(isinstance(word, str) for word in words)
