"""Prompt syntax of image generators in plain words: what Midjourney, A1111, ComfyUI and InvokeAI take for themselves is removed.

Only what the retriever reads changes. The backbone and the value encoder receive the prompt as it was written: diffusers knows
neither weights nor negative prompts within a prompt, so there "(doctor:1.3)" and "--no text" are words like any others.
"""

from __future__ import annotations

import re

_DASHES = r"(?<!\S)(?:--|[\u2014\u2013])"  # telephones turn two hyphens into a dash
_NUMBER = r"[-+]?\d*\.?\d+"
_NUMERIC = (
    "ar|aspect|v|version|s|stylize|stylise|seed|sameseed|niji|q|quality|chaos|c|iw|sw|cw|ow|sv|weird|w|stop|repeat|r|exp|bs|hd|tile|raw|"
    "draft|fast|relax|turbo|stealth|public|video|loop|upbeta|uplight|beta|test|testp|creative|steps|cfg|cfg_scale|scale|width|height|"
    "batch_size|n_iter|sampler|scheduler"
)
_NAMED = "style|sref|cref|oref|profile|personalize|p|motion|sampler_name"
_WORDS = "raw|cute|expressive|original|scenic|photographic|random|low|high"  # values that are names and no subject of a picture

# name, what it looks like, what is read in its place
PATTERNS = (
    ("Discord command", re.compile(r"\A\s*/imagine\b(?:\s+prompt\b)?:?", re.I), " "),
    ("heading", re.compile(r"\A\s*(?:positive )?prompt\s*:", re.I), " "),
    ("negative prompt", re.compile(r"(?:\A|(?<=[\s,.;]))negative[ _]prompt\s*:.*", re.I | re.S), " "),
    ("generation data", re.compile(r"(?:\A|(?<=[\s,.;]))Steps: \d+(?:,.*|\s*\Z)", re.S), " "),
    ("address", re.compile(r"\bhttps?://[^\s<>)\]}]+", re.I), " "),
    ("extra network", re.compile(r"<[a-z]\w*:[^<>\n]*>", re.I), " "),
    ("embedding", re.compile(rf"\bembedding:[\w./\\-]+(?::{_NUMBER})?", re.I), " "),
    (
        "not wanted",
        re.compile(rf"{_DASHES}(?:no|neg|negative|negative[_-]prompt)\b[^\n]*?(?=\s(?:--|[\u2014\u2013])[a-z]|\n|\Z)", re.I),
        " ",
    ),
    ("numeric parameter", re.compile(rf"{_DASHES}(?:{_NUMERIC})\b(?:[\s=]+{_NUMBER}(?:[:/x]\d+)?[ab]?(?!\w))?[,;]?", re.I), " "),
    (
        "named parameter",
        re.compile(rf"{_DASHES}(?:{_NAMED})\b(?:[\s=]+(?:(?:{_WORDS})\b|[a-z]*\d\w*)(?:::{_NUMBER})?){{0,9}}[,;]?", re.I),
        " ",
    ),
    ("InvokeAI option", re.compile(r"(?<!\S)-[A-Za-z]\d[\d.]*(?!\S)"), " "),
    ("other parameter", re.compile(r"(?<!\S)--(?=[a-z])", re.I), " "),  # an unknown one may say what is wanted: only its dashes go
    ("quality score", re.compile(r"\bscore_\d(?:_up)?\b,?"), " "),
    ("Compel call", re.compile(rf"\)\s*\.(?:blend|and)\((?:\s*{_NUMBER}\s*,?)*\)"), ")"),
    ("Compel swap", re.compile(r"\.swap\("), " ("),
    ("escape", re.compile(r"\\(?=[()\[\]{}:])"), ""),
)
_WEIGHT = re.compile(rf"\s*:\s*{_NUMBER}\s*\Z")
_SCHEDULE = re.compile(rf"([^:]*):(?:([^:]*):)?\s*{_NUMBER}%?\s*\Z", re.S)
_AFTER_BRACKET = re.compile(r"[+]{1,6}|-{1,6}(?![\w-])|\d?\.\d+(?![\w.])")
_CHOICE = re.compile(rf"(?:\A|(?<=\|))\s*(?:\d+(?:-\d+)?\$\$(?:[^|$]*\$\$)?)?(?:\s*{_NUMBER}::)?")
_MULTI = re.compile(rf"::[ \t]?({_NUMBER})?(?=[\s,;]|\Z)")
_BARE_WEIGHT = re.compile(rf"(?<=[^\W\d_])\s?:{_NUMBER}(?![\w:.])")
_EMPHASIS = re.compile(r"(?<=[a-z]{2})(?:\+{1,6}|-{2,6})(?=[\s,.;)\]]|\Z)")
# Not within words that are all capitals: "A DOCTOR AND A NURSE", "COFFEE BREAK"
_OPERATOR = re.compile(r"(?<![A-Z]{2} )\b(?:BREAK|AND|ADDCOMM|ADDBASE|ADDCOL|ADDROW)\b(?! [A-Z]{2})")
_PAIRS = {")": "(", "]": "[", "}": "{"}


def without_parameters(prompt: str) -> str:
    """A prompt without commands, parameters, addresses and names of files, and without what `--no` or a negative prompt rules out.

    Args:
        prompt: A prompt as people type it.
    """
    for _, pattern, replacement in PATTERNS:
        prompt = pattern.sub(replacement, prompt)
    return prompt


def without_weights(prompt: str) -> str:
    """A prompt without brackets, weights, schedules and operators; all words stay, those of every alternative in `[a|b]` too.

    A part that Midjourney gives a negative weight is not wanted and left out.

    Args:
        prompt: A prompt as people type it.
    """
    text = _without_negative_parts(_without_brackets(prompt))
    return _OPERATOR.sub(",", _EMPHASIS.sub("", _BARE_WEIGHT.sub("", text)))


def _without_brackets(text: str) -> str:
    """Balanced brackets are dropped with their weights and schedules; their words stay. Others may be letters in disguise."""
    out: list[str] = []
    opened: list[int] = []
    position = 0
    while position < len(text):
        char = text[position]
        position += 1
        if char in "([{":
            opened.append(len(out))
        elif char in _PAIRS and any(out[i] == _PAIRS[char] for i in opened):
            while out[opened[-1]] != _PAIRS[char]:
                opened.pop()
            start = opened.pop()
            inner = _inner(char, "".join(out[start + 1 :]))
            del out[start:]
            out.append(inner)
            after = _AFTER_BRACKET.match(text, position)
            position = after.end() if after else position
            continue
        out.append(char)
    return "".join(out)


def _inner(closing: str, words: str) -> str:
    """What brackets hold, in words."""
    if closing == ")":
        return _WEIGHT.sub("", words)
    scheduled = _SCHEDULE.match(words) if closing == "]" else None
    if scheduled:
        return " ".join(part.strip() for part in scheduled.groups() if part and part.strip())
    if "|" in words or "$$" in words:
        return " ".join(part.strip() for part in _CHOICE.sub("", words).split("|"))
    return words


def _without_negative_parts(text: str) -> str:
    """Midjourney's parts, `space::2 ship::-0.5`: those of a negative weight are not wanted."""
    *parts, rest = _MULTI.split(text)
    wanted = [part for part, weight in zip(parts[::2], parts[1::2], strict=True) if not (weight or "").startswith("-")]
    return ", ".join([*wanted, rest])
