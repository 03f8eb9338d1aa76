"""The methods that LiVO is compared with, each written from its equations. All have one interface, `Baseline`.

A baseline is reversible: within `with baseline.on(pipe):` the pipeline generates with it, and afterwards it is as it was. A baseline that
edits nothing changes no bit. They run on any Stable Diffusion or SDXL pipeline with classifier-free guidance.
"""

from livo.baselines.concept_ablation import ConceptAblation
from livo.baselines.fair_diffusion import FairDiffusion
from livo.baselines.guidance import GuidanceEdit
from livo.baselines.lora import LoRA
from livo.baselines.negative_prompt import NegativePrompt
from livo.baselines.safe_latent_diffusion import SafeLatentDiffusion
from livo.baselines.uce import UnifiedConceptEditing
from livo.baselines.weights import Baseline, WeightEdit

__all__ = [
    "Baseline",
    "ConceptAblation",
    "FairDiffusion",
    "GuidanceEdit",
    "LoRA",
    "NegativePrompt",
    "SafeLatentDiffusion",
    "UnifiedConceptEditing",
    "WeightEdit",
]
