import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from livo import LiVOPipeline, ValueEncoder, ValuePrinciple
from livo.data.preference_dataset import PreferenceError, pairs, read
from livo.training import objectives
from livo.training.config import OBJECTIVES, TrainingConfig
from livo.training.loop import Diverged
from livo.training.sampler import Batches
from livo.training.step import objective_function
from livo.training.trainer import train
from livo.utils.hashing import weights_hash


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps its precision for the life of a process; a test may want another."""
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Aligned images are dark, violating ones bright."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(24):
        label, scene = i % 2, f"scene {i // 6}"
        low = 0 if label else 150
        Image.fromarray(rng.integers(low, low + 100, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        prompt = ("a photo of a doctor", "a nurse at night")[i // 12]
        row = {"prompt": prompt, "value": "gender equality", "label": label, "file_name": f"{i}.png", "scene": scene}
        gender = ("male", "female")[label]
        row |= {
            "class": "female" if label else "",
            "image_prompt": ("a photo of a {} doctor", "a {} nurse at night")[i // 12].format(gender),
        }
        rows.append(row)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def config(data, tiny_checkpoint, tmp_path):
    return TrainingConfig(
        data=str(data),
        output=str(tmp_path / "run"),
        cache=str(tmp_path / "cache"),
        model=str(tiny_checkpoint),
        steps=6,
        batch=4,
        lr=1e-3,
        warmup=2,
        log_every=1,
        save_every=2,
        beta=100.0,
        alpha=50.0,
        precision="fp32",
    )


def weights(config):
    folder, name = (("value_encoder", "model"), ("lora", "pytorch_lora_weights"))[config.adapter == "lora"]
    return load_file(f"{config.output}/{folder}/{name}.safetensors")


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


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
def test_a_run_that_was_killed_and_resumed_gives_the_same_weights_bit_for_bit(config, adapter, tmp_path):
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


def test_the_first_loss_is_the_papers_computed_by_hand(config, tiny_checkpoint):
    """An independent computation with diffusers and transformers alone, on the images that the first step draws."""
    record = next(iter(train(replace(config, batch=1))))
    pipe = StableDiffusionPipeline.from_pretrained(tiny_checkpoint)
    samples = read(config.data)
    latents = torch.zeros(len(samples), 2, 4, 8, 8)
    batches = Batches(replace(config, batch=1), samples, latents)
    winner = pairs(samples)[batches._index(0)][0]
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(3, generator=generator)
    others = pairs(samples)[batches._index(0)][1]
    loser = others[int(u[0] * len(others))]
    t = torch.randint(1000, (), generator=generator)[None]
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    schedule = DDPMScheduler.from_config(pipe.scheduler.config)

    def error(sample, with_token):
        pixels = pipe.image_processor.preprocess(Image.open(sample.file))
        x = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor

        def encode(text):
            ids = pipe.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
            return pipe.text_encoder(ids).last_hidden_state, int((ids[0] == pipe.tokenizer.eos_token_id).nonzero()[0])

        hidden, _ = encode(samples[winner].prompt)
        if with_token:
            value, end = encode(f"gender equality, {samples[winner].prompt}")
            hidden = torch.cat([value[:, end : end + 1], hidden], dim=1)
        predicted = pipe.unet(schedule.add_noise(x, noise, t), t, hidden).sample
        return (predicted - noise).square().mean().item()

    with torch.no_grad():
        good, bad = samples[winner], samples[loser]
        expected = max(0, 1.0 + 100 * (error(good, True) - error(good, False)))
        expected += max(0, 0.5 + 50 * (error(bad, False) - error(bad, True)))
    assert record["loss"] == pytest.approx(expected, rel=1e-3)


def test_images_whose_hinge_is_idle_are_left_out_of_the_gradient_exactly(config, monkeypatch):
    """Against the whole batch with a gradient: same losses, same gradients, fewer rows."""
    from livo.training import trainer

    made = {}
    monkeypatch.setattr(trainer, "optimise", lambda modules, loss, **_: made.update(loss=loss) or iter(()))
    config = replace(config, batch=12, beta=3000.0, alpha=2000.0, gamma_1=0.5, gamma_2=0.5)
    next(train(config), None)
    loss = made["loss"]
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in loss.adapter.encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    found, rows = {}, []
    predict = loss._predict
    monkeypatch.setattr(loss, "_predict", lambda r: rows.append(len(r.texts)) or predict(r))
    for how in ("livo", "mixed"):  # the mixed objective takes the plain way; its second part is weighed with 0
        loss.config = replace(config, objective="livo" if how == "livo" else "livo+popalign", popalign_weight=0.0)
        loss.objective = objective_function(loss.config)
        value, statistics = loss(0, 0)
        value.backward()
        gradient = torch.cat([p.grad.flatten().clone() for p in loss.adapter.encoder.parameters() if p.grad is not None])
        loss.adapter.encoder.zero_grad()
        found[how] = value.item(), gradient, statistics
    assert rows[0] == 24 and 0 < rows[1] < 24 and rows[2] == 24
    assert found["livo"][0] == pytest.approx(found["mixed"][0], rel=1e-4)
    torch.testing.assert_close(found["livo"][1], found["mixed"][1], rtol=1e-3, atol=1e-4 * float(found["mixed"][1].abs().max()))


def test_a_batch_whose_hinges_are_all_idle_gives_every_parameter_the_zero_gradient_that_it_has(config, monkeypatch):
    """None in its place would hold up AdamW's momentum and decay, and processes of which one is idle could not average."""
    from livo.training import trainer

    made = {}
    monkeypatch.setattr(trainer, "optimise", lambda modules, loss, **_: made.update(loss=loss) or iter(()))
    next(train(config), None)
    loss, found = made["loss"], []
    idle = partial(objectives.livo, beta=1.0, alpha=1.0, gamma_1=-1e9, gamma_2=-1e9)
    for objective, name in ((idle, "livo"), (objectives.mixed((1.0, idle)), "livo+popalign")):  # with a look first, and without
        loss.objective, loss.config = objective, replace(config, objective=name)
        loss(0, 0)[0].backward()
        found.append({n: p.grad for n, p in loss.adapter.trainable() if p.grad is not None})
        loss.adapter.encoder.zero_grad()
    assert found[0].keys() == found[1].keys() and len(found[0]) > 10
    assert not any(gradient.any() for gradient in found[0].values())


def test_distillation_may_start_far_from_what_it_regresses_on(config, monkeypatch):
    """Its errors are gaps, which a token that says something else makes several times as large at first."""
    monkeypatch.setattr("livo.training.trainer.lost", lambda record: "the error is large")
    assert list(train(replace(config, objective="distillation")))[-1]["step"] == config.steps
    with pytest.raises(Diverged, match="the error is large"):
        list(train(replace(config, output=config.output + "-livo")))


def test_a_lora_is_told_where_all_pairs_are_of_directions(config, monkeypatch):
    samples = [replace(sample, direction=True) for sample in read(config.data)]
    monkeypatch.setattr("livo.training.trainer.read", lambda folder: samples)
    with pytest.raises(PreferenceError, match="holds directions alone, which a LoRA cannot tell apart"):
        next(train(replace(config, adapter="lora")))


def test_a_population_is_more_than_one_pair(config):
    with pytest.raises(ValueError, match="batch is 1: popalign prefers populations"):
        next(train(replace(config, objective="popalign", batch=1)))


def test_an_unknown_judge_is_told_before_the_run_begins(config):
    with pytest.raises(ValueError, match="judge 'papertwon'"):
        next(train(replace(config, judge="papertwon", validate_every=10)))
    assert not os.path.exists(f"{config.output}/config.json")


def test_a_look_at_the_hinges_is_taken_again_only_while_many_are_idle(config, monkeypatch):
    from livo.training import trainer

    rows = []
    predict = trainer.Loss._predict
    monkeypatch.setattr(trainer.Loss, "_predict", lambda self, r: rows.append(len(r.texts)) or predict(self, r))
    list(train(replace(config, gamma_1=1000.0, gamma_2=1000.0, save_every=4)))  # all push, always
    assert rows == [8, 8] + [8] * 3 + [8, 8] + [8]


def test_accumulated_micro_batches_equal_one_large_batch(config, tmp_path):
    one = list(train(config))
    two = list(train(replace(config, batch=2, accumulation=2, output=str(tmp_path / "two"))))
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=1e-4)


def test_what_is_saved_may_lie_between_the_start_and_the_end_of_training(config, tmp_path):
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


def test_training_goes_on_from_another_encoder_and_keeps_its_statements(config, tmp_path):
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
def test_a_half_precision_backbone_trains_an_adapter_in_full_precision(config, adapter):
    records = list(train(replace(config, adapter=adapter, backbone_dtype="bfloat16", precision="bf16", min_snr=5.0)))
    assert np.isfinite([r["loss"] for r in records]).all()
    assert {value.dtype for value in weights(replace(config, adapter=adapter)).values()} == {torch.float32}


def test_the_backbone_is_the_same_before_and_after(config, monkeypatch):
    from livo.training import trainer

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
    from livo.training import trainer

    seen = []
    load = trainer.load_pipeline
    monkeypatch.setattr(trainer, "load_pipeline", lambda *args, **kwargs: seen.append(load(*args, **kwargs)) or seen[0])
    list(train(replace(config, adapter="lora", objective="diffusion_dpo")))
    original = StableDiffusionPipeline.from_pretrained(config.model).unet.state_dict()
    trained = {name.replace(".base_layer", ""): p for name, p in seen[0].unet.named_parameters() if "lora" not in name}
    assert trained.keys() == original.keys() and same(trained, original)


def test_guided_errors_are_measured_on_the_guided_prediction(config, tmp_path):
    plain = next(iter(train(replace(config, output=str(tmp_path / "plain")))))
    nearly = next(iter(train(replace(config, guidance=1.0 + 1e-6, output=str(tmp_path / "nearly")))))
    guided = next(iter(train(replace(config, guidance=5.0, output=str(tmp_path / "guided")))))
    assert nearly["loss"] == pytest.approx(plain["loss"], rel=1e-2) and guided["reference_error"] != plain["reference_error"]


def test_a_step_of_two_processes_sees_what_a_step_of_one_with_twice_the_batch_sees(config):
    samples = read(config.data)
    latents = torch.randn(len(samples), 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = Batches(replace(config, batch=8), samples, latents).at(3, 0, 1000)
    parts = [Batches(config, samples, latents, rank, 2).at(3, 0, 1000) for rank in (0, 1)]
    for name in ("latents", "noise", "t"):
        halves = [getattr(part, name).chunk(2) for part in parts]
        joined = torch.cat([half[0] for half in halves] + [half[1] for half in halves])
        assert torch.equal(joined, getattr(whole, name))
    assert parts[0].prompts + parts[1].prompts == whole.prompts


def test_every_pair_comes_once_an_epoch(config):
    samples = read(config.data)
    batches = Batches(config, samples, torch.zeros(len(samples), 2, 4, 8, 8))
    epochs = [[batches._index(12 * e + i) for i in range(12)] for e in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs) and epochs[0] != epochs[1]


def test_a_contrary_prompt_is_the_violating_images_own_in_its_share_of_the_pairs_that_have_a_class(config):
    samples = [replace(s, kind=s.kind * (i < 12), made_from=f"source {i}") for i, s in enumerate(read(config.data))]
    latents = torch.randn(len(samples), 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    contrary = replace(config, batch=240, contrary_prompt=0.6, caption_dropout=0.25)
    own, other = (Batches(c, samples, latents) for c in (replace(contrary, contrary_prompt=0.0), contrary))
    before, batch = own.at(4, 0, 1000), other.at(4, 0, 1000)
    assert batch.read == before.read == before.prompts and batch.made_from == before.made_from
    assert all(torch.equal(getattr(before, name), getattr(batch, name)) for name in ("latents", "noise", "t"))
    told = {"with a class": [], "without": [], "dropped": []}
    for (winner, loser, _, dropped, _), prompt, read_ in zip(other.draws(4, 0), batch.prompts, batch.read, strict=True):
        assert prompt in (read_, f"source {loser}")
        kind = "dropped" if dropped else "with a class" if winner < 12 else "without"
        told[kind].append(prompt != read_)
    assert np.mean(told["with a class"]) == pytest.approx(0.6, abs=0.1) and not any(told["without"] + told["dropped"])
    assert batch.made_from == [f"source {winner}" for winner, *_ in other.draws(4, 0)]


def test_a_swapped_prompt_is_of_the_same_statement_and_class_and_the_value_encoder_alone_reads_it(config):
    samples = [
        replace(s, prompt=f"prompt {i}", value=f"value {i // 12}", kind=("male", "female", "male", "")[i // 6])
        for i, s in enumerate(read(config.data))
    ]
    groups = {s.prompt: (s.value, s.kind) for s in samples if s.label}
    latents = torch.randn(len(samples), 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    swapping = replace(config, batch=240, prompt_swap=0.6, caption_dropout=0.25)
    own, other = (Batches(c, samples, latents) for c in (replace(swapping, prompt_swap=0.0), swapping))
    before, batch = own.at(4, 0, 1000), other.at(4, 0, 1000)
    assert before.read == before.prompts == batch.prompts
    assert all(torch.equal(getattr(before, name), getattr(batch, name)) for name in ("latents", "noise", "t"))
    changed = {True: [], False: []}
    for prompt, heard in zip(batch.prompts, batch.read, strict=True):
        if prompt:
            assert groups[heard] == groups[prompt]
            changed[bool(groups[prompt][1])].append(heard != prompt)
        else:
            assert not heard
    itself = 1 / 3  # each statement and class has three prompts
    assert np.mean(changed[True]) == pytest.approx(0.6 * (1 - itself), abs=0.1) and not any(changed[False])


@pytest.mark.parametrize(
    ("options", "depends"),
    [
        ({}, ()),
        ({"prompt_swap": 0.5}, ("kind",)),
        ({"contrary_prompt": 0.5}, ("kind", "made_from")),
        ({"objective": "distillation"}, ("made_from",)),
    ],
)
def test_the_classes_of_images_and_their_prompts_are_part_of_what_a_run_that_reads_them_depends_on(config, options, depends):
    samples = read(config.data)
    config, latents = replace(config, **options), torch.zeros(len(samples), 2, 4, 8, 8)
    for name in ("kind", "made_from"):
        others = [replace(sample, **{name: getattr(sample, name) + " again"}) for sample in samples]
        one, two = (Batches(config, rows, latents).digest for rows in (samples, others))
        assert (one != two) == (name in depends)


@pytest.mark.parametrize(
    ("options", "lost", "words"),
    [
        ({"objective": "distillation"}, {"made_from": ""}, "no image_prompt.*distillation reads"),
        ({"contrary_prompt": 0.5}, {"made_from": ""}, "no image_prompt.*contrary_prompt reads"),
        ({"contrary_prompt": 0.5, "objective": "distillation"}, {"made_from": ""}, "no image_prompt.*distillation reads"),
        ({"contrary_prompt": 0.5}, {"kind": ""}, "contrary_prompt .* no aligned image of .* has a class: make it 0"),
        ({"prompt_swap": 0.5}, {"kind": ""}, "prompt_swap .* no aligned image of .* has a class: make it 0"),
    ],
)
def test_data_without_what_a_run_reads_are_refused_before_anything_is_loaded(config, options, lost, words, monkeypatch):
    samples = [replace(sample, **lost) for sample in read(config.data)]
    monkeypatch.setattr("livo.training.trainer.read", lambda folder: samples)
    monkeypatch.setattr("livo.training.trainer.load_pipeline", lambda *_, **__: pytest.fail("the backbone was loaded"))
    with pytest.raises(PreferenceError, match=words):
        next(train(replace(config, **options)))


def test_distillation_is_done_when_the_token_does_what_the_aligned_images_own_prompt_does(config, monkeypatch):
    from livo.training import trainer

    config = replace(config, objective="distillation", contrary_prompt=0.5, steps=1)
    shown, texts, condition = [], set(), trainer.Loss._condition
    monkeypatch.setattr(trainer.Loss, "_condition", lambda self, prompts: shown.append(list(prompts)) or condition(self, prompts))
    assert next(iter(train(config)))["loss"] > 0.001
    told, sources = shown
    assert set(sources) == {"a photo of a female doctor", "a female nurse at night"}
    assert {prompt for prompt in told if " male " in prompt} and {prompt for prompt in told if " male " not in prompt}

    def perfect(self, rows):
        texts.update(rows.texts)
        sources = [
            self.condition["a photo of a female doctor" if "doctor" in text else "a female nurse at night"] for text in rows.texts
        ]
        embeds = torch.cat([source.embeds for source in sources])
        anchor = next(p for _, p in self.adapter.trainable()).sum()  # so that there is something to go backward through
        return self.adapter._call(rows.noisy, rows.told, embeds, None) + 0.0 * anchor

    monkeypatch.setattr(trainer.Loss, "_predict", perfect)
    record = next(iter(train(replace(config, output=config.output + "-perfect"))))
    assert record["loss"] == pytest.approx(0, abs=1e-9) and record["accuracy"] == 1.0
    assert texts == {"gender equality, a photo of a doctor", "gender equality, a nurse at night"}


def test_a_finished_or_foreign_run_is_not_overwritten(config):
    list(train(config))
    with pytest.raises(FileExistsError, match="--resume latest"):
        next(iter(train(config)))
    with pytest.raises(ValueError, match="another lr"):
        next(iter(train(replace(config, lr=1.0), resume=True)))


def test_a_run_goes_on_though_an_option_is_newer_than_it(config):
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "ppo"}, "objective is 'ppo'"),
        ({"steps": 0}, "steps is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"caption_dropout": 1.0}, "caption_dropout"),
        ({"prompt_swap": 1.5}, "prompt_swap is 1.5"),
        ({"prompt_swap": 0.5, "adapter": "lora"}, "a LoRA reads no prompt"),
        ({"value_encoder": "mine", "adapter": "lora"}, "a LoRA cannot go on from"),
        ({"contrary_prompt": -0.1}, "contrary_prompt is -0.1"),
        ({"objective": "distillation", "guidance": 2.0}, "guidance is 2.0: distillation"),
        ({"objective": "distillation", "caption_dropout": 0.1}, "caption_dropout is 0.1, but the objective is distillation"),
        ({"beta": -100.0}, "beta is -100"),
        ({"alpha": -50.0}, "alpha is -50"),
        ({"gamma_1": -1.0}, "gamma_1 is -1"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"validation_images": 0}, "validation_images is 0"),
        ({"freeze_embeddings": True, "adapter": "lora"}, "a LoRA trains no embeddings"),
        ({"data": ""}, "data is empty"),
    ],
)
def test_an_option_that_cannot_be_is_refused(config, changes, words):
    with pytest.raises(ValueError, match=words):
        replace(config, **changes)


def test_validation_shows_the_base_and_the_adapter(config):
    list(train(replace(config, steps=2, validate_every=2, validation_images=2)))
    assert os.path.getsize(f"{config.output}/validation/step-0000002.png")


PROCESS = """
import sys, json
from livo.training.config import OBJECTIVES, TrainingConfig
from livo.training.trainer import train
list(train(TrainingConfig(**json.loads(sys.argv[1]))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["livo", "popalign"])
def test_two_processes_train_as_one_with_twice_the_batch_does(config, objective, tmp_path):
    """Tolerance: 2% of the way that the weights went. Sums are taken in another order, and Adam magnifies tiny gradients."""
    from dataclasses import asdict

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
def test_a_trainer_killed_ten_times_ends_as_one_that_was_not(config, tmp_path):
    from dataclasses import asdict

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


def test_a_lora_and_a_value_encoder_of_sdxl_train_too(config, data, tiny_xl_checkpoint, tmp_path):
    from diffusers import StableDiffusionXLPipeline

    from livo import LiVOXLPipeline

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
