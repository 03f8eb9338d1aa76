"""The labelled prompt set: word lists, the grammar that makes prompts of them, and the ways to perturb a prompt."""

from livo.labelled.grammar import FACETS, RISKS, LabelledPrompt, labelled_prompts
from livo.labelled.lists import section, sections

__all__ = ["FACETS", "RISKS", "LabelledPrompt", "labelled_prompts", "section", "sections"]
