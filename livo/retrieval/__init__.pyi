from livo.retrieval.retriever import ValueRetriever as ValueRetriever
from livo.retrieval.rules import ValueDecision as ValueDecision
