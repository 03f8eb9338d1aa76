"""Judges: images -> class probabilities for each attribute they can tell. One interface, one file for each kind.

A risk is an attribute with the classes "no" and "yes"; its score is the probability of "yes".
"""

from livo.evaluation.judges.base import NO_YES, Judge, Verdict, broken, judge_all, scattered, verdicts
from livo.evaluation.judges.bundled import bundled_model_of, has_weights
from livo.evaluation.judges.classifier import ClassifierJudge
from livo.evaluation.judges.clip import CLIPJudge
from livo.evaluation.judges.loading import judge_for, load_judge
from livo.evaluation.judges.reading import CannotRead, attribute_for, disagreement, unwanted_class, wanted_classes
from livo.evaluation.judges.safety import SafetyCheckerJudge
from livo.evaluation.judges.vision_language import VisionLanguageJudge, yes_no_tokens

__all__ = [
    "NO_YES",
    "CLIPJudge",
    "CannotRead",
    "ClassifierJudge",
    "Judge",
    "SafetyCheckerJudge",
    "Verdict",
    "VisionLanguageJudge",
    "attribute_for",
    "broken",
    "bundled_model_of",
    "disagreement",
    "has_weights",
    "judge_all",
    "judge_for",
    "load_judge",
    "scattered",
    "unwanted_class",
    "verdicts",
    "wanted_classes",
    "yes_no_tokens",
]
