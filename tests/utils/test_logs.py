import logging

import pytest

from livo.pipelines.selection import ValueRequest, ValueSelector
from livo.utils.logs import forget, warn_once

logger = logging.getLogger("livo.test")


def test_a_warning_is_said_once_for_each_cause(caplog):
    for name in ("one", "two", "one", "one"):
        warn_once(logger, "cause %s at 100%%", name)
    assert [record.getMessage() for record in caplog.records] == ["cause one at 100%", "cause two at 100%"]
    forget()
    warn_once(logger, "cause %s at 100%%", "one")
    assert len(caplog.records) == 3 and caplog.records[0].filename == "test_logs.py"


def test_a_missing_encoder_is_said_once_however_many_prompts_are_drawn(caplog):
    selector = ValueSelector(None, {})
    for prompt in ("a doctor", "a cat"):
        selector.select([prompt], ValueRequest(["auto"], [1.0], [0.0], [1.0]), 2, [(0,)])
    assert len(caplog.records) == 1 and "no value encoder is loaded" in caplog.text


@pytest.mark.parametrize(
    ("name", "empty", "telling"),
    [
        (
            "transformers.utils.import_utils",
            "`CLIPImageProcessor` requires torchvision (not installed); falling back to `CLIPImageProcessorPil`",
            "`Model` requires torchvision",
        ),
        (
            "diffusers.models.modeling_utils",
            "There are modules in UNet2DConditionModel that should be kept in float32: []. Casting",
            "There are modules in UNet2DConditionModel that should be kept in float32: ['norm']. Casting",
        ),
    ],
)
def test_only_the_empty_warnings_of_other_libraries_are_dropped(name, empty, telling):
    other = logging.getLogger(name)
    records = (logging.LogRecord(name, logging.WARNING, "", 0, text, (), None) for text in (empty, telling))
    assert [bool(other.filter(record)) for record in records] == [False, True]
