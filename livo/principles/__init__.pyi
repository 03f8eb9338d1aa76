from livo.principles.construction import Construct as Construct
from livo.principles.principle import PrincipleError as PrincipleError
from livo.principles.principle import ValuePrinciple as ValuePrinciple
from livo.principles.principle import load_principles as load_principles
from livo.principles.principle import load_target as load_target
