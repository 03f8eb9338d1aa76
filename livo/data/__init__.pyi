from livo.data.builder import Options as Options
from livo.data.builder import build as build
from livo.data.preference_dataset import PreferenceError as PreferenceError
from livo.data.preference_dataset import Report as Report
from livo.data.preference_dataset import Sample as Sample
from livo.data.preference_dataset import check as check
from livo.data.preference_dataset import read as read
