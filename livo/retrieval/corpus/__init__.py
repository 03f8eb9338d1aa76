"""The labelled prompt set: word lists, the grammar that makes prompts of them, and the ways to perturb a prompt."""

from livo.retrieval.corpus.grammar import FACETS, RISKS, LabelledPrompt, labelled_prompts
from livo.retrieval.corpus.lists import everyday_prompts, section, sections

__all__ = ["FACETS", "RISKS", "LabelledPrompt", "everyday_prompts", "labelled_prompts", "section", "sections"]
