"""The labelled prompt set: word lists, the grammar that makes prompts of them, and the ways to perturb a prompt."""

from livo.retrieval.corpus.grammar import LabelledPrompt, labelled_prompts
from livo.retrieval.corpus.lists import everyday_prompts, section, sections

__all__ = ["LabelledPrompt", "everyday_prompts", "labelled_prompts", "section", "sections"]
