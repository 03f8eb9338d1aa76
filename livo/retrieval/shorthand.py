"""Tags of image boards and emoji of people in words: "1girl" is a girl, and a woman's emoji states a woman."""

from __future__ import annotations

import re
import unicodedata

_NOUNS = {
    "girl": ("girl", "girls"),
    "boy": ("boy", "boys"),
    "woman": ("woman", "women"),
    "women": ("woman", "women"),
    "female": ("woman", "women"),
    "lady": ("lady", "ladies"),
    "ladies": ("lady", "ladies"),
    "gal": ("gal", "gals"),
    "man": ("man", "men"),
    "men": ("man", "men"),
    "male": ("man", "men"),
    "guy": ("guy", "guys"),
    "other": ("person", "people"),
    "person": ("person", "people"),
    "people": ("person", "people"),
    "adult": ("adult", "adults"),
    "child": ("child", "children"),
    "kid": ("kid", "kids"),
}
_NUMBERS = ("", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_COUNTED = rf"([1-9]\d?)(\+?)[_-]?({'|'.join(_NOUNS)})s?"
_CHAIN = re.compile(rf"(?<![^\W_])(?<![.,]\b)(?:{_COUNTED})+(?![^\W_])", re.IGNORECASE)  # "1boy1girl"
_NO_PEOPLE = re.compile(r"(?<![^\W_])no[ _]humans?(?![^\W_])", re.IGNORECASE)
# "f/30", "30/f", "(F)", "[30 m]", "30yo F"; apertures (f/22, f/32, f/45, f/64) are none
_SEX = {"f": "woman", "m": "man"}
_STATED = re.compile(
    r"(?<![\w/])(?:(?P<a>[fm])/(?!22|32|45|64)(?P<b>[1-9]\d)|(?P<c>[1-9]\d)/(?P<d>[fm])"
    r"|\s*[(\[]\s*(?:(?P<e>[1-9]\d)\s?/?\s?)?(?P<f>[fm])\s*[)\]])(?![\w/])",
    re.IGNORECASE,
)
_SKIN = dict(zip("\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff", ("light", "light", "brown", "dark", "dark"), strict=True))
_SIGNS = {"\u2640": "female", "\u2642": "male"}
_ROLES = {
    "\u2695": "health worker",
    "\u2696": "judge",
    "\u2708": "pilot",
    "\U0001f33e": "farmer",
    "\U0001f373": "cook",
    "\U0001f37c": "feeding a baby",
    "\U0001f393": "student",
    "\U0001f3a4": "singer",
    "\U0001f3a8": "artist",
    "\U0001f3eb": "teacher",
    "\U0001f3ed": "factory worker",
    "\U0001f4bb": "software developer",
    "\U0001f4bc": "office worker",
    "\U0001f527": "mechanic",
    "\U0001f52c": "scientist",
    "\U0001f680": "astronaut",
    "\U0001f692": "firefighter",
    "\U0001f9af": "with a white cane",
    "\U0001f9b0": "with red hair",
    "\U0001f9b1": "with curly hair",
    "\U0001f9b2": "who is bald",
    "\U0001f9b3": "with white hair",
    "\U0001f9bc": "in a wheelchair",
    "\U0001f9bd": "in a wheelchair",
}
_PEOPLE = re.compile("[\U0001f466-\U0001f469\U0001f474\U0001f475\U0001f9d1-\U0001f9d4]")  # nothing but people, of any age
_TONES = "[\U0001f3fb-\U0001f3ff]"
_EMOJI = re.compile(
    rf"(?P<base>[\u2600-\u27bf\U0001f000-\U0001faff])\ufe0f?(?P<tone>{_TONES})?(?P<tail>(?:\u200d[\u2600-\u27bf\U0001f000-\U0001faff]\ufe0f?{_TONES}?)*)"
)


def in_words(text: str) -> str:
    """Counted people, ages with a sex, and emoji of people as the words for them."""
    text = _NO_PEOPLE.sub("nobody", text)
    text = _CHAIN.sub(lambda chain: re.sub(_COUNTED, _counted, chain.group(), flags=re.IGNORECASE), text)
    text = _STATED.sub(_stated, text)
    return _EMOJI.sub(_emoji, text)


def _counted(match: re.Match) -> str:
    number, more, noun = int(match[1]), match[2], _NOUNS[match[3].lower()]
    space = " " if match.start() else ""
    if more:
        return f"{space}many {noun[1]}"
    if number == 1:
        return f"{space}{'an' if noun[0][0] == 'a' else 'a'} {noun[0]}"
    return f"{space}{_NUMBERS[number] if number < len(_NUMBERS) else number} {noun[1]}"


def _stated(match: re.Match) -> str:
    age = match["b"] or match["c"] or match["e"]
    words = _SEX[(match["a"] or match["d"] or match["f"]).lower()]
    return f", a {words}, {age} years old, " if age else f", a {words}, "


def _emoji(match: re.Match) -> str:
    base, tone, tail = match["base"], match["tone"], match["tail"]
    if base in _SKIN:  # after a word
        return f", {_SKIN[base]}-skinned person, "
    if not tone and not tail and not _PEOPLE.match(base):
        return match.group()  # its name is read
    parts = [part for part in re.split("[\u200d\ufe0f]+", tail) if part]
    sex = next((_SIGNS[part[0]] for part in parts if part[0] in _SIGNS), "")
    name = unicodedata.name(base, "").lower().replace("adult", "person")
    if sex:  # some names are older than their female and male forms
        name = re.sub(r"^(?:man|woman)\b", "person", name)
    roles = [_ROLES.get(part[0], unicodedata.name(part[0], "").lower()) for part in parts if part[0] not in _SIGNS]
    tones = [_SKIN[c] for c in f"{tone or ''}{tail}" if c in _SKIN]
    words = [*dict.fromkeys(f"{skin}-skinned" for skin in tones), sex, name, *roles]
    whole = " ".join(word for word in words if word)
    return f" {whole} " if roles or not _PEOPLE.match(base) else f", {whole}, "
