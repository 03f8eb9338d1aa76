import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from livo import LiVOPipeline, LiVOXLPipeline, ValueEncoder, ValuePrinciple
from livo.data.manifest import PreferenceError, read_samples
from livo.training import trainer
from livo.training.config import OBJECTIVES
from livo.training.loop import Diverged
from livo.training.trainer import train
from livo.utils.extras import MissingExtra
from livo.utils.hashing import weights_hash
from tests.training.conftest import same, weights

PROCESS = """
import sys, json
from livo.training.config import OBJECTIVES, TrainingConfig
from livo.training.trainer import train
list(train(TrainingConfig(**json.loads(sys.argv[1]))))
"""


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("adapter", ["value_encoder", "lora"])
def test_every_objective_trains_every_adapter_and_the_result_loads(config, objective, adapter, tiny_checkpoint):
    dropped = 0.2 if objective != "distillation" else 0.0
    config = replace(config, objective=objective, adapter=adapter, steps=40, lr=5e-3, flip=True, caption_dropout=dropped)
    records = list(train(replace(config, beta=2000.0, alpha=1000.0, log_every=4, save_every=20)))
    early, late = (sum(r["loss"] for r in part) for part in (records[:2], records[-2:]))
    assert late < early and all(np.isfinite(list(r.values())).all() for r in records)
    pipe = LiVOPipeline.from_pretrained(tiny_checkpoint)
    pipe.set_progress_bar_config(disable=True)

    def generate(**kwargs):
        generator = torch.Generator().manual_seed(0)
        return pipe("a photo of a doctor", num_inference_steps=2, output_type="np", generator=generator, **kwargs).images

    before = generate(value=None)
    if adapter == "lora":
        pipe.load_lora_weights(f"{config.output}/lora")
        assert not np.array_equal(generate(value=None), before)
    else:
        pipe.load_value_encoder(f"{config.output}/value_encoder")
        assert pipe.value_encoder.statements == ("gender equality",)
        assert not np.array_equal(generate(value=ValuePrinciple(id="always", statement="gender equality")), before)
        assert np.array_equal(generate(value=None), before)
    card = (f"{config.output}/{adapter}/README.md", f"{config.output}/{adapter}/training.json")
    assert all(os.path.getsize(file) for file in card) and os.path.getsize(f"{config.output}/curves.png")


@pytest.mark.parametrize("adapter", ["value_encoder", "lora"])
def test_a_killed_and_resumed_run_gives_the_same_weights_bit_for_bit(config, adapter, tmp_path):
    config = replace(config, adapter=adapter, flip=True, caption_dropout=0.3)
    whole = list(train(config))
    for stop in (1, 2, 3, 5):  # before, at and after a checkpoint
        again = replace(config, output=str(tmp_path / f"stopped-{stop}"))
        jobs = train(again)
        list(itertools.islice(jobs, stop))
        jobs.close()
        leftover = tmp_path / f"stopped-{stop}" / "curves.png.4194305.partial"  # of a process that is no more
        leftover.touch()
        rest = list(train(again, resume=True))
        assert not leftover.exists()
        assert [r["loss"] for r in rest] == [r["loss"] for r in whole[-len(rest) :]]
        assert same(weights(again), weights(config))
        log = [json.loads(line) for line in (tmp_path / f"stopped-{stop}" / "metrics.jsonl").read_text().splitlines()]
        assert [r["step"] for r in log] == [1, 2, 3, 4, 5, 6]


def test_distillation_may_start_far_from_its_target(config, monkeypatch):
    """Its errors are gaps, which a token that says something else makes several times as large at first."""
    monkeypatch.setattr("livo.training.trainer.no_longer_denoises", lambda record: "the error is large")
    assert list(train(replace(config, objective="distillation")))[-1]["step"] == config.steps
    with pytest.raises(Diverged, match="the error is large"):
        list(train(replace(config, output=config.output + "-livo")))


def test_a_lora_refuses_data_that_hold_directions_only(config, monkeypatch):
    samples = [replace(sample, direction=True) for sample in read_samples(config.data)]
    monkeypatch.setattr("livo.training.trainer.read_samples", lambda folder: samples)
    with pytest.raises(PreferenceError, match="holds directions only, which a LoRA cannot tell apart"):
        next(train(replace(config, adapter="lora")))


def test_popalign_refuses_a_batch_of_one_pair(config):
    with pytest.raises(ValueError, match="batch is 1: popalign compares populations"):
        next(train(replace(config, objective="popalign", batch=1)))


def test_an_unknown_judge_is_refused_before_the_run_starts(config):
    with pytest.raises(ValueError, match="judge 'papertwon'"):
        next(train(replace(config, judge="papertwon", validate_every=10)))
    assert not os.path.exists(f"{config.output}/config.json")


def test_accumulated_micro_batches_equal_one_large_batch(config, tmp_path):
    one = list(train(config))
    two = list(train(replace(config, batch=2, accumulation=2, output=str(tmp_path / "two"))))
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=1e-4)


def test_saved_weights_may_be_interpolated_between_start_and_end(config, tmp_path):
    list(train(config))
    list(train(replace(config, interpolate=0.25, output=str(tmp_path / "between"))))
    start = StableDiffusionPipeline.from_pretrained(config.model).text_encoder.state_dict()
    between = weights(replace(config, output=str(tmp_path / "between")))
    for key, end in weights(config).items():
        torch.testing.assert_close(between[key], start[key] + 0.25 * (end - start[key]), atol=1e-6, rtol=1e-5)


def test_frozen_embeddings_stay_and_the_layers_learn(config):
    list(train(replace(config, freeze_embeddings=True)))
    start = StableDiffusionPipeline.from_pretrained(config.model).text_encoder.state_dict()
    moved = {key for key, value in weights(config).items() if not torch.equal(value, start[key])}
    assert moved and not any("embedding" in key for key in moved) and len(moved) > len(start) // 2


def test_training_starts_from_another_encoder_and_keeps_its_statements(config, tmp_path):
    list(train(config))
    first = tmp_path / "run" / "value_encoder"
    data = shutil.copytree(config.data, tmp_path / "data")
    manifest = data / "metadata.jsonl"
    manifest.write_text(manifest.read_text().replace("gender equality", "bloody considered inappropriate"))
    again = replace(config, value_encoder=str(first), data=str(data), output=str(tmp_path / "again"), lr=1e-12)
    list(train(again))
    for name, start in weights(config).items():  # at this learning rate it goes nowhere
        torch.testing.assert_close(weights(again)[name], start)
    encoder = ValueEncoder.from_pretrained(tmp_path / "again" / "value_encoder")
    assert encoder.statements == ("bloody considered inappropriate", "gender equality")
    for name, tensor in (state := load_file(first / "model.safetensors")).items():
        state[name] = tensor + 1.0
    save_file(state, first / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="another value_encoder"):
        next(iter(train(again, resume=True)))


def test_gradient_checkpointing_changes_nothing_but_memory(config, tmp_path):
    plain = [r["loss"] for r in train(config)]
    saving = [r["loss"] for r in train(replace(config, gradient_checkpointing=True, output=str(tmp_path / "saving")))]
    assert saving == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("adapter", ["value_encoder", "lora"])
def test_a_half_precision_backbone_trains_a_float32_adapter(config, adapter):
    records = list(train(replace(config, adapter=adapter, backbone_dtype="bfloat16", precision="bf16", min_snr=5.0)))
    assert np.isfinite([r["loss"] for r in records]).all()
    assert {value.dtype for value in weights(replace(config, adapter=adapter)).values()} == {torch.float32}


def test_the_backbone_is_the_same_before_and_after(config, monkeypatch):
    seen = {}
    load = trainer.load_pipeline

    def remember(*args, **kwargs):
        pipe = load(*args, **kwargs)
        seen.update(pipe=pipe, before=[weights_hash(m) for m in (pipe.unet, pipe.text_encoder, pipe.vae)])
        return pipe

    monkeypatch.setattr(trainer, "load_pipeline", remember)
    list(train(replace(config, validate_every=6, validation_images=1)))  # which keeps the text encoder and the VAE
    pipe = seen["pipe"]
    assert [weights_hash(m) for m in (pipe.unet, pipe.text_encoder, pipe.vae)] == seen["before"]
    assert not any(p.requires_grad or p.grad is not None for p in pipe.unet.parameters())


def test_a_loras_gradients_reach_the_lora_alone(config, monkeypatch):
    seen = []
    load = trainer.load_pipeline
    monkeypatch.setattr(trainer, "load_pipeline", lambda *args, **kwargs: seen.append(load(*args, **kwargs)) or seen[0])
    list(train(replace(config, adapter="lora", objective="diffusion_dpo")))
    original = StableDiffusionPipeline.from_pretrained(config.model).unet.state_dict()
    trained = {name.replace(".base_layer", ""): p for name, p in seen[0].unet.named_parameters() if "lora" not in name}
    assert trained.keys() == original.keys() and same(trained, original)


def test_a_finished_or_foreign_run_is_not_overwritten(config):
    list(train(config))
    with pytest.raises(FileExistsError, match="--resume latest"):
        next(iter(train(config)))
    with pytest.raises(ValueError, match="another lr"):
        next(iter(train(replace(config, lr=1.0), resume=True)))


def test_a_run_resumes_although_an_option_is_newer_than_it(config):
    list(itertools.islice(train(config), 4))
    file = os.path.join(config.output, "config.json")
    with open(file) as old:
        before = json.load(old)
    del before["contrary_prompt"]
    with open(file, "w") as old:
        json.dump(before, old)
    with pytest.raises(ValueError, match="another contrary_prompt"):
        next(iter(train(replace(config, contrary_prompt=0.5), resume=True)))
    assert [record["step"] for record in train(config, resume=True)][-1] == config.steps


def test_a_run_that_blows_up_stops_and_says_why(config):

    with pytest.raises(Diverged, match="Lower the learning rate"):
        list(train(replace(config, adapter="lora", objective="diffusion_dpo", lr=1e4, steps=60, beta=1e6)))


def test_validation_shows_the_base_and_the_adapter(config):
    list(train(replace(config, steps=2, validate_every=2, validation_images=2)))
    assert os.path.getsize(f"{config.output}/validation/step-0000002.png")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["livo", "popalign"])
def test_two_processes_train_like_one_with_twice_the_batch(config, objective, tmp_path):
    """Tolerance: 2% of the way that the weights went. Sums are taken in another order, and Adam magnifies tiny gradients."""
    config = replace(config, objective=objective, beta=500.0)
    one = replace(config, batch=8, output=str(tmp_path / "one"))
    list(train(one))
    two = replace(config, cache=str(tmp_path / "cache-two"))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    run = [*launch, "--mixed_precision", "no", "--dynamo_backend", "no", str(script), json.dumps(asdict(two))]
    subprocess.run(run, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, timeout=300)
    start, first, second = (
        StableDiffusionPipeline.from_pretrained(config.model).text_encoder.state_dict(),
        weights(one),
        weights(two),
    )
    apart = sum((second[key] - first[key]).square().sum() for key in first).sqrt()
    moved = sum((first[key] - start[key]).square().sum() for key in first).sqrt()
    assert json.loads((tmp_path / "run" / "inputs.json").read_text())["processes"] == 2 and apart < 0.02 * moved


@pytest.mark.slow
def test_a_run_killed_ten_times_equals_an_uninterrupted_one(config, tmp_path):
    config = replace(config, steps=300, save_every=10, log_every=5)
    list(train(replace(config, output=str(tmp_path / "whole"))))
    flags = ["--output", str(tmp_path / "killed")]
    for name, value in asdict(config).items():
        if name != "output" and not isinstance(value, (bool, tuple)) and value != "":
            flags += [f"--{name.replace('_', '-')}", str(value)]
    command = [sys.executable, "-m", "livo", "train", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    rng = np.random.default_rng(0)
    for i in range(11):
        resume = ["--resume", "latest"] if (tmp_path / "killed" / "config.json").is_file() else []
        process = subprocess.Popen([*command, *resume], env=environment, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=None if i == 10 else float(rng.uniform(6, 12)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert same(weights(replace(config, output=str(tmp_path / "killed"))), weights(replace(config, output=str(tmp_path / "whole"))))
    assert not list((tmp_path / "killed").rglob("*.partial*"))


def test_a_lora_and_a_value_encoder_train_on_sdxl(config, data, tiny_xl_checkpoint, tmp_path):
    config = replace(config, model=str(tiny_xl_checkpoint), adapter="lora", objective="popalign", beta=5000.0)
    assert all(np.isfinite(r["loss"]) for r in train(config))
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_xl_checkpoint)
    pipe.load_lora_weights(f"{config.output}/lora")
    config = replace(config, adapter="value_encoder", objective="livo", beta=100.0, output=str(tmp_path / "other"))
    assert all(np.isfinite(r["loss"]) for r in train(config))
    pipe = LiVOXLPipeline.from_pretrained(tiny_xl_checkpoint, value_encoder=f"{config.output}/value_encoder")
    assert pipe.value_encoder.config.value_width == 64
    options = {"num_inference_steps": 2, "num_images_per_prompt": 2, "output_type": "np"}
    known = pipe.value_encoder.statements[0]  # a debias principle's plain token goes to every second image
    ours, base = (pipe("a cat", value=v, generator=torch.Generator().manual_seed(0), **options) for v in (known, None))
    received = [bool(decision.applied_values) for decision in ours.decisions]
    assert sorted(received) == [False, True]
    assert [not np.allclose(*pair, atol=1e-5) for pair in zip(ours.images, base.images, strict=True)] == received


@pytest.mark.parametrize(("tracker", "there"), [("tensorboard", True), ("none", False)])
def test_records_go_to_the_tracker_that_is_named(config, tracker, there):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = list(train(replace(config, tracker=tracker)))
    folder = os.path.join(config.output, "tensorboard")
    assert os.path.isdir(folder) is there
    if there:
        events = EventAccumulator(folder).Reload().Scalars("loss")
        assert [(e.step, pytest.approx(e.value)) for e in events] == [(r["step"], r["loss"]) for r in records]


def test_wandb_is_refused_before_the_run_starts_if_it_is_missing(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match="tracker wandb needs wandb: pip install wandb"):
        next(train(replace(config, tracker="wandb")))
    assert not os.path.exists(config.output)


def test_a_resumed_run_may_name_another_tracker(config):
    list(itertools.islice(train(replace(config, tracker="none")), 3))
    assert [record["step"] for record in train(config, resume=True)][-1] == config.steps
