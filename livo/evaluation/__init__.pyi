from livo.evaluation.judges import Judge as Judge
from livo.evaluation.judges import Verdict as Verdict
from livo.evaluation.judges import judge_all as judge_all
from livo.evaluation.judges import load_judge as load_judge
from livo.evaluation.judges import verdicts as verdicts
from livo.evaluation.method import Method as Method
from livo.evaluation.method import Settings as Settings
from livo.evaluation.runner import evaluate as evaluate
