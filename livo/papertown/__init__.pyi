from livo.papertown.judge import PapertownJudge as PapertownJudge
from livo.papertown.scene import Scene as Scene
from livo.papertown.scene import describe as describe
from livo.papertown.scene import sample_scene as sample_scene
from livo.papertown.world import WEIGHTS as WEIGHTS
