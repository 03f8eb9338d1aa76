from livo.pipelines.attach import aligned as aligned
from livo.pipelines.attach import attach as attach
from livo.pipelines.attach import detach as detach
from livo.pipelines.decision_record import AssignedValue as AssignedValue
from livo.pipelines.decision_record import ImageDecision as ImageDecision
from livo.pipelines.ledger import ValueLedger as ValueLedger
from livo.pipelines.redraw import redraw as redraw
from livo.pipelines.stable_diffusion import LiVOPipeline as LiVOPipeline
from livo.pipelines.stable_diffusion import LiVOXLPipeline as LiVOXLPipeline
from livo.principles.principle import ValuePrinciple as ValuePrinciple
from livo.principles.principle import load_principles as load_principles
from livo.retrieval.retriever import ValueRetriever as ValueRetriever
from livo.retrieval.rules import ValueDecision as ValueDecision
from livo.value_encoder.encoder import ValueEncoder as ValueEncoder

__version__: str
