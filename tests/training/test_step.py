"""From a batch to its loss: the papers' loss, idle hinges, guidance and distillation."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image

from livo.data.manifest import read_samples
from livo.training import objectives, trainer
from livo.training.sampler import PreferenceSampler
from livo.training.step import TrainingStep, make_objective
from livo.training.trainer import train
from tests.training.conftest import encoded


@pytest.fixture
def prepared(config, monkeypatch):
    """Makes the step and the first batch of a run, without training."""

    def prepare(**options):
        made = {}
        monkeypatch.setattr(
            trainer,
            "training_loop",
            lambda modules, sampler, step, *_, **__: made.update(batch=sampler(0, 0), step=step) or iter(()),
        )
        next(train(replace(config, **options)), None)
        return made["step"], made["batch"]

    return prepare


def test_the_first_loss_is_the_papers_computed_by_hand(config, tiny_checkpoint):
    """An independent computation with diffusers and transformers alone, on the images that the first step draws."""
    record = next(iter(train(replace(config, batch=1))))
    pipe = StableDiffusionPipeline.from_pretrained(tiny_checkpoint)
    samples = read_samples(config.data)
    dataset = encoded(samples)
    sampler = PreferenceSampler(dataset, replace(config, batch=1), 1000)
    winner = dataset.pairs[sampler._pair_at(0)][0]
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(3, generator=generator)
    others = dataset.pairs[sampler._pair_at(0)][1]
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


def test_images_with_an_idle_hinge_are_left_out_of_the_gradient(prepared, config, monkeypatch):
    """Against the whole batch with a gradient: same losses, same gradients, fewer rows."""
    step, batch = prepared(batch=12, beta=3000.0, alpha=2000.0, gamma_1=0.5, gamma_2=0.5)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in step.adapter.encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    found, rows = {}, []
    predict, options = step._predict, step.config
    monkeypatch.setattr(step, "_predict", lambda inputs: rows.append(len(inputs.texts)) or predict(inputs))
    for objective in ("livo", "livo+popalign"):  # the mixed objective never leaves rows out; its second part has the weight 0
        step.config = replace(options, objective=objective, popalign_weight=0.0)
        step.objective = make_objective(step.config)
        loss, _ = step(batch)
        loss.backward()
        gradient = torch.cat([p.grad.flatten().clone() for p in step.adapter.encoder.parameters() if p.grad is not None])
        step.adapter.encoder.zero_grad()
        found[objective] = loss.item(), gradient
    (loss, gradient), (whole_loss, whole_gradient) = found.values()
    assert rows[0] == 24 and 0 < rows[1] < 24 and rows[2] == 24
    assert loss == pytest.approx(whole_loss, rel=1e-4)
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-3, atol=1e-4 * float(whole_gradient.abs().max()))


def test_a_batch_with_idle_hinges_only_has_zero_gradients_not_none(prepared):
    """None would hold up AdamW's momentum and decay, and processes of which one is idle could not average."""
    step, batch = prepared()
    found, options = [], step.config
    idle = partial(objectives.livo, beta=1.0, alpha=1.0, gamma_1=-1e9, gamma_2=-1e9)
    for objective, name in ((idle, "livo"), (objectives.mixed((1.0, idle)), "livo+popalign")):  # with a probe first, and without
        step.objective, step.config = objective, replace(options, objective=name)
        step(batch)[0].backward()
        found.append({n: p.grad for n, p in step.adapter.trainable() if p.grad is not None})
        step.adapter.encoder.zero_grad()
    assert found[0].keys() == found[1].keys() and len(found[0]) > 10
    assert not any(gradient.any() for gradient in found[0].values())


def test_idle_hinges_are_probed_at_checkpoints_and_while_many_are_idle(config, monkeypatch):
    rows = []
    predict = TrainingStep._predict
    monkeypatch.setattr(TrainingStep, "_predict", lambda self, inputs: rows.append(len(inputs.texts)) or predict(self, inputs))
    list(train(replace(config, gamma_1=1000.0, gamma_2=1000.0, save_every=4)))  # all are active, always
    assert rows == [8, 8] + [8] * 3 + [8, 8] + [8]


def test_guided_errors_are_measured_on_the_guided_prediction(config, tmp_path):
    plain = next(iter(train(replace(config, output=str(tmp_path / "plain")))))
    nearly = next(iter(train(replace(config, guidance=1.0 + 1e-6, output=str(tmp_path / "nearly")))))
    guided = next(iter(train(replace(config, guidance=5.0, output=str(tmp_path / "guided")))))
    assert nearly["loss"] == pytest.approx(plain["loss"], rel=1e-2) and guided["reference_error"] != plain["reference_error"]


def test_distillation_regresses_on_the_source_prompts_prediction(prepared):
    step, batch = prepared(objective="distillation", contrary_prompt=0.5)
    assert step(batch)[0] > 0.001
    assert set(batch.source_prompts) == {"a photo of a female doctor", "a female nurse at night"}
    assert any(" male " in prompt for prompt in batch.backbone_prompts)
    assert any(" male " not in prompt for prompt in batch.backbone_prompts)
    assert set(step._inputs(batch).texts) == {"gender equality, a photo of a doctor", "gender equality, a nurse at night"}

    def perfect(inputs):
        embeddings = batch.source_embeddings.repeat(2)
        anchor = next(p for _, p in step.adapter.trainable()).sum()  # so that there is something to go backward through
        return step.adapter._call(inputs.noisy, inputs.model_t, embeddings.embeds, None) + 0.0 * anchor

    step._predict = perfect
    loss, statistics = step(batch)
    assert loss.item() == pytest.approx(0, abs=1e-9) and statistics["accuracy"] == 1.0
