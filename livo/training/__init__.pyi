from livo.training.config import LoopConfig as LoopConfig
from livo.training.config import TrainingConfig as TrainingConfig
from livo.training.loop import Diverged as Diverged
from livo.training.loop import training_loop as training_loop
from livo.training.sampler import PreferenceSampler as PreferenceSampler
from livo.training.step import TrainingStep as TrainingStep
from livo.training.trainer import train as train
