"""One precision: resolved from the device, said once, recorded, and never mixed in a folder."""

import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from livo.baselines import ConceptAblation
from livo.cli.main import main
from livo.data import builder
from livo.evaluation import runner
from livo.evaluation.judges import Judge, load_judge
from livo.evaluation.method import Method, Settings
from livo.evaluation.readings import gather
from livo.evaluation.runner import evaluate
from livo.papertown.reading import Reader
from livo.papertown.world import WEIGHTS
from livo.training.config import LoopConfig
from livo.training.loop import training_loop
from livo.training.trainer import train
from livo.utils import logs, precision
from livo.utils.precision import Precision, for_pipeline, recorded, resolve, settle
from livo.utils.prompt_files import Prompt
from tests.conftest import gap
from tests.training.conftest import config, data  # noqa: F401, fixtures

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fresh():
    for remembered in (precision.slowdown, precision._computes_in, precision._report):
        remembered.cache_clear()
    logs.forget()
    yield
    for remembered in (precision._computes_in, precision._report):
        remembered.cache_clear()


@pytest.fixture
def machine(monkeypatch):
    """Set what the CPU can compute in, and how slow it is in anything else."""

    def become(*names, factor=14.0):
        monkeypatch.setattr(precision, "fast", lambda device: ("fp32", *names))
        monkeypatch.setattr(precision, "slowdown", lambda name: factor)

    return become


# --- the decision ---------------------------------------------------------------------------------------------------------


def build(monkeypatch, supported, capabilities, measured=None):
    """A PyTorch that says this of its CPU; None where it cannot tell."""

    def says():
        if supported is None:
            raise AttributeError("no such operator")
        return supported

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", says, raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(precision, "slowdown", lambda name: measured or pytest.fail("measured where PyTorch can tell"))


@pytest.mark.parametrize(
    ("supported", "capabilities", "measured", "expected"),
    [
        (True, {"avx512_bf16": True}, None, "bf16"),
        (True, {"amx_bf16": True, "avx512_bf16": False}, None, "bf16"),
        (True, {"architecture": "aarch64", "bf16": True}, None, "bf16"),
        (True, {"avx512_f": True, "avx512_bf16": False}, None, "fp32"),  # oneDNN emulates it
        (False, {"avx512_bf16": True}, None, "fp32"),
        (False, {"avx2": True}, None, "fp32"),
        (True, None, 0.6, "bf16"),  # an older PyTorch
        (True, None, 1.6, "fp32"),
        (None, {"avx2": True}, 14.0, "fp32"),  # built without oneDNN
        (None, {"avx2": True}, 0.5, "bf16"),
    ],
)
def test_auto_follows_the_cpu_and_is_measured_in_doubt(monkeypatch, supported, capabilities, measured, expected):
    build(monkeypatch, supported, capabilities, measured)
    found = resolve("auto", "cpu")
    assert found.record() == {"asked": "auto", "resolved": expected}


@pytest.mark.parametrize(
    ("capability", "fp16", "expected"),
    [((9, 0), True, "bf16"), ((8, 0), False, "bf16"), ((7, 5), True, "fp16"), ((7, 5), False, "fp32"), ((6, 1), True, "fp32")],
)
def test_auto_follows_the_gpu(monkeypatch, capability, fp16, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve("auto", "cuda:0", fp16=fp16).resolved == expected
    assert resolve("auto", "mps").resolved == "fp32"


def test_a_cpu_without_the_instructions_gets_float32_and_its_own_factor():
    code = (
        "from livo.utils.precision import *; print(resolve('auto', 'cpu').resolved); resolve('bf16', 'cpu'); resolve('bf16', 'cpu')"
    )
    without = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=without, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["fp32"]
    (line,) = done.stderr.splitlines()
    factor = re.fullmatch(r"bf16 takes ([\d.]+) times as long as fp32 on this CPU, which has no instructions for it", line)
    assert float(factor[1]) > 1


def test_measuring_draws_nothing_and_keeps_the_threads():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert precision.slowdown("bf16") > 0 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.rand(1), expected)


def test_the_choice_is_said_once_and_a_slow_one_warned_of_once(machine, caplog):
    machine()
    with caplog.at_level(logging.INFO, "livo"):
        for asked in ("auto", "bf16", "auto", "bf16", "fp32"):
            resolve(asked, "cpu")
    assert [r.getMessage() for r in caplog.records] == [
        "precision auto is fp32 on cpu",
        "bf16 takes 14.0 times as long as fp32 on this CPU, which has no instructions for it",
    ]
    assert [r.levelname for r in caplog.records] == ["INFO", "WARNING"]


def test_a_fast_precision_is_not_warned_of(machine, caplog):
    machine("bf16")
    assert [resolve(asked, "cpu").resolved for asked in ("auto", "bf16", "fp32")] == ["bf16", "bf16", "fp32"]
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_what_is_no_precision_is_named():
    for wrong in ("bfloat16", "no", "", "BF16"):
        with pytest.raises(ValueError, match=f"precision is '{wrong}': choose one of auto, fp32, bf16, fp16"):
            resolve(wrong, "cpu")


# --- pipelines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "dtype"), [("bf16", torch.bfloat16), ("fp32", None)])
def test_the_context_is_autocast_of_that_dtype(asked, dtype):
    with Precision(asked, asked).autocast("cpu"):
        assert torch.is_autocast_enabled("cpu") == (dtype is not None)
        assert dtype is None or torch.get_autocast_dtype("cpu") is dtype


def test_half_precision_weights_compute_as_they_are(pipe, machine):
    machine("bf16")
    pipe.to(dtype=torch.float16)
    found = for_pipeline("auto", pipe)
    assert found.record() == {"asked": "auto", "resolved": "fp16"}
    with found.autocast("cpu"):
        assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(ValueError, match="precision is fp32, but the weights are fp16: load them in float32"):
        for_pipeline("fp32", pipe)


def test_a_vae_that_overflows_in_float16_is_not_given_it(tiny_xl, monkeypatch):
    monkeypatch.setattr(precision, "fast", lambda device: ("fp32", "fp16"))
    monkeypatch.setattr(type(tiny_xl), "device", torch.device("cuda"))
    assert tiny_xl.vae.config.force_upcast and for_pipeline("auto", tiny_xl).resolved == "fp32"
    tiny_xl.vae.register_to_config(force_upcast=False)
    assert for_pipeline("auto", tiny_xl).resolved == "fp16"


# --- folders --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"precision": {"asked": "auto", "resolved": "bf16"}}, "bf16"),
        ({"precision": "auto", "mixed_precision": "no"}, "fp32"),
        ({"mixed_precision": "fp16"}, "fp16"),
        ({"bf16": True}, "bf16"),
        ({"bf16": False}, "fp32"),
        ({"steps": 3}, None),
    ],
)
def test_older_records_are_read(tmp_path, content, expected):
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert recorded(tmp_path / "a.json") == expected and recorded(tmp_path / "b.json") is None


def test_the_shipped_encoders_record_still_loads(papertown):
    stored = json.loads((WEIGHTS / "value_encoder" / "config.json").read_text())
    assert stored["value_training"]["config"]["mixed_precision"] == "bf16"
    assert papertown.value_encoder.config.value_training["config"]["mixed_precision"] == "bf16"


def test_a_folder_keeps_its_precision_on_another_machine(tmp_path, machine, caplog):
    machine("bf16")
    with caplog.at_level(logging.INFO, "livo"):
        for _ in range(2):  # a run reads what it has written itself: it reports once
            assert settle(tmp_path / "run", "auto", "cpu").resolved == "bf16"
    assert caplog.messages == ["precision auto is bf16 on cpu"]
    caplog.clear()
    machine()
    caplog.clear()
    with caplog.at_level(logging.INFO, "livo"):
        assert settle(tmp_path / "run", "auto", "cpu").resolved == "bf16"
    assert caplog.messages[0] == "precision auto is bf16 on cpu, as in the run that is resumed"
    assert caplog.messages[1].startswith("bf16 takes 14.0 times as long")
    with pytest.raises(ValueError, match="run was started in bf16, not fp32: give precision auto or bf16, or another folder"):
        settle(tmp_path / "run", "fp32", "cpu")
    assert settle(tmp_path / "other", "fp32", "cpu").record() == {"asked": "fp32", "resolved": "fp32"}


SMALL = Settings(images=2, batch=4, steps=1, group=2)
PROMPTS = [Prompt("a photo of a doctor")]


class Bright(Judge):
    """A judge of the tiny pipeline's images."""

    name, revision, attributes = "bright", "1", {"bright": ("no", "yes")}

    def probabilities(self, images, prompts):
        p = torch.tensor([[np.asarray(image).mean() / 255] for image in images], dtype=torch.float32)
        return {"bright": torch.cat([1 - p, p], 1)}


def test_an_evaluation_records_its_precision_and_never_mixes(pipe, tmp_path, machine):
    judge = [Bright()]

    def run(asked, method="base"):
        return list(evaluate(pipe, [Method(method)], PROMPTS, judge, tmp_path, replace(SMALL, precision=asked)))

    machine("bf16")
    run("auto")
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored["precision"] == {"asked": "auto", "resolved": "bf16"} and "precision" not in stored["settings"]
    machine()
    run("auto", "another")  # on a CPU without bfloat16
    both = [gather(tmp_path, Method(name), PROMPTS, judge, SMALL) for name in ("base", "another")]
    assert both[0].digests == both[1].digests
    with pytest.raises(ValueError, match="was started in bf16, not fp32"):
        run("fp32", "third")


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_images_of_an_evaluation_are_the_pipelines_own_in_that_precision(pipe, asked):
    images, _ = runner._generate(pipe, Method("base"), PROMPTS, replace(SMALL, precision=asked))
    seeds = [runner.image_seed(PROMPTS[0], i) for i in range(2)]
    with torch.autocast("cpu", torch.bfloat16, enabled=asked == "bf16"):
        wanted = pipe(
            PROMPTS[0].text,
            value=None,
            num_images_per_prompt=2,
            num_inference_steps=1,
            guidance_scale=5.0,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images
    assert [np.array_equal(a, b) for a, b in zip(images, wanted, strict=True)] == [True, True]


def test_a_build_records_its_precision_and_computes_in_it(tmp_path, machine):
    from tests.data import test_builder as made

    seen = []

    class Generator(made.Generator):
        def __call__(self, *args, **kwargs):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().__call__(*args, **kwargs)

    machine("bf16")
    made.run(tmp_path / "fast", [made.BLOODY], generator=Generator())
    assert json.loads((tmp_path / "fast/build.json").read_text())["precision"] == {"asked": "auto", "resolved": "bf16"}
    assert json.loads((tmp_path / "fast/data_card.json").read_text())["made"]["precision"]["resolved"] == "bf16"
    assert all(seen)
    with pytest.raises(ValueError, match="started in bf16, not fp32"):
        made.run(tmp_path / "fast", [made.BLOODY], replace(made.SMALL, precision="fp32"))
    seen.clear()
    machine()
    made.run(tmp_path / "slow", [made.BLOODY], generator=Generator())
    assert not any(seen) and json.loads((tmp_path / "slow/build.json").read_text())["precision"]["resolved"] == "fp32"


def test_a_build_of_an_older_version_is_resumed_in_its_precision(tmp_path, machine):
    from tests.data import test_builder as made

    machine("bf16")
    jobs = builder.build(made.Generator(), made.Reader(), [made.BLOODY], tmp_path, replace(made.SMALL, precision="fp32"))
    next(jobs)
    next(jobs)
    jobs.close()
    content = json.loads((tmp_path / "build.json").read_text())
    del content["precision"]
    (tmp_path / "build.json").write_text(json.dumps(content | {"bf16": False}))
    made.run(tmp_path, [made.BLOODY])
    assert recorded(tmp_path / "build.json") == "fp32"


def test_readings_are_kept_by_precision(papertown, tmp_path, machine):
    machine("bf16")
    judge = load_judge("papertown")
    one, two = (Reader(papertown, judge, tmp_path / name, precision=name) for name in ("fp32", "bf16"))
    assert (one.precision.resolved, two.precision.resolved) == ("fp32", "bf16")
    with pytest.raises(ValueError, match="started in fp32, not bf16"):
        Reader(papertown, judge, tmp_path / "fp32", precision="bf16")


def test_a_loop_computes_inside_the_context_that_it_is_given(tmp_path):
    def dtypes(name, **more):
        layer, seen = torch.nn.Linear(2, 2), []

        def loss(x):
            seen.append((out := layer(x)).dtype)
            return out.float().square().mean(), {}

        settings = LoopConfig(steps=2, lr=0.1)
        list(training_loop({"layer": layer}, lambda step, micro: torch.ones(1, 2), loss, settings, tmp_path / name, **more))
        return set(seen)

    assert dtypes("plain") == {torch.float32}
    assert dtypes("auto", autocast=lambda: Precision("auto", "bf16").autocast("cpu")) == {torch.bfloat16}


def test_an_ablation_records_its_precision_and_keeps_it(base, tmp_path, machine):
    options = {"steps": 2, "batch": 2, "images": 1, "sampler_steps": 2}
    seen = []
    base.unet.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    machine("bf16")
    *_, fast = ConceptAblation.train(base, [("a bloody doctor", "a doctor")], tmp_path / "fast", **options)
    assert fast.settings["precision"] == {"asked": "auto", "resolved": "bf16"} and len(seen) == 6 and all(seen)
    machine()
    *_, again = ConceptAblation.train(base, [("a bloody doctor", "a doctor")], tmp_path / "fast", **options)
    assert again.settings["precision"]["resolved"] == "bf16"
    *_, slow = ConceptAblation.train(base, [("a bloody doctor", "a doctor")], tmp_path / "slow", **options)
    assert slow.settings["precision"]["resolved"] == "fp32"
    assert all(gap(fast.weights[name], slow.weights[name]) < 0.1 for name in fast.weights)


def test_a_training_run_records_its_precision_and_resumes_in_it(config, machine, tmp_path):  # noqa: F811
    config = replace(config, precision="auto", steps=2)
    machine("bf16")
    list(train(config))
    run = Path(config.output)
    wanted = {"asked": "auto", "resolved": "bf16"}
    assert json.loads((run / "inputs.json").read_text())["precision"] == wanted
    assert json.loads((run / "value_encoder/training.json").read_text())["precision"] == wanted
    machine()
    list(train(config, resume=True))
    assert json.loads((run / "inputs.json").read_text())["precision"] == wanted
    with pytest.raises(ValueError, match="was started in bf16, not fp32: give precision auto or bf16"):
        next(train(replace(config, precision="fp32"), resume=True))
    other = replace(config, output=str(tmp_path / "other"))
    list(train(other))  # in another precision in the same process
    assert recorded(Path(other.output) / "inputs.json") == "fp32"


def test_a_run_of_an_older_version_is_resumed_in_its_mixed_precision(config, machine):  # noqa: F811
    config = replace(config, precision="auto", steps=2)
    machine("bf16")
    list(train(replace(config, precision="fp32")))
    for name, change in (("inputs.json", {}), ("config.json", {"mixed_precision": "no"})):
        file = Path(config.output) / name
        content = json.loads(file.read_text())
        del content["precision"]
        file.write_text(json.dumps(content | change))
    list(train(config, resume=True))
    assert recorded(Path(config.output) / "inputs.json") == "fp32"


def test_training_refuses_a_precision_whose_gradients_are_lost(config, machine):  # noqa: F811
    machine()
    with pytest.raises(ValueError, match="precision is fp16, which needs a GPU in training"):
        next(train(replace(config, precision="fp16")))
    with pytest.raises(ValueError, match="backbone_dtype is float16 and precision auto is fp32 here: give precision bf16"):
        next(train(replace(config, precision="auto", backbone_dtype="float16")))
    assert not Path(config.output).exists()
    with pytest.raises(ValueError, match="backbone_dtype is float16: gradients through it need precision fp16"):
        replace(config, backbone_dtype="float16")


# --- the command line -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["generate x", "build -o x", "calibrate x --value-encoder x", "evaluate --prompts x", "train"])
def test_every_command_that_computes_takes_precision_and_no_bf16(command, capsys):
    for flag, words in (("--precision fp8", "invalid choice: 'fp8'"), ("--bf16", "unrecognized arguments: --bf16")):
        with pytest.raises(SystemExit) as stop:
            main([*command.split(), *flag.split()])
        assert stop.value.code == 2 and words in capsys.readouterr().err


def test_env_says_how_fast_each_precision_is_here(machine, capsys):
    machine("bf16", factor=0.5)
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert "float32, bfloat16 (0.5 times as long as float32), float16 (0.5 times" in text
    assert re.search(r"precision +auto is bf16 on c", text)


def test_no_precision_is_written_into_the_code():
    written = re.compile(r"autocast\([^)]*torch\.b?float16|\bbf16=|--bf16|mixed_precision=")
    for folder in ("livo", "benchmarks", "examples"):
        for file in (ROOT / folder).rglob("*.py"):
            assert file.name == "precision.py" or not written.search(file.read_text()), file
