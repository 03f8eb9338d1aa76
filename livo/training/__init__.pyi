from livo.training.config import TrainingConfig as TrainingConfig
from livo.training.trainer import train as train
