"""What a batch holds: pairs, noise and prompts by seed and step alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from livo.data.manifest import PreferenceError, read_samples
from livo.training.sampler import PreferenceSampler
from livo.training.trainer import train
from tests.training.conftest import encoded

LATENTS = torch.randn(24, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def draw(config, samples, *shared):
    """The sampler of a run on these samples, and its batch of step 4."""
    sampler = PreferenceSampler(encoded(samples, LATENTS), config, 1000, *shared)
    return sampler, sampler(4)


def test_a_step_of_two_processes_sees_what_one_with_twice_the_batch_sees(config):
    samples = read_samples(config.data)
    _, whole = draw(replace(config, batch=8), samples)
    parts = [draw(config, samples, rank, 2)[1] for rank in (0, 1)]
    for name in ("latents", "noise", "t"):
        halves = [getattr(part, name).chunk(2) for part in parts]
        joined = torch.cat([half[0] for half in halves] + [half[1] for half in halves])
        assert torch.equal(joined, getattr(whole, name))
    assert parts[0].backbone_prompts + parts[1].backbone_prompts == whole.backbone_prompts


def test_a_batch_depends_on_its_step_alone(config):
    samples = read_samples(config.data)
    one, two = (draw(config, samples)[0] for _ in range(2))
    list(map(one, range(7)))
    assert one(5).backbone_prompts == two(5).backbone_prompts and torch.equal(one(5).noise, two(5).noise)
    assert not torch.equal(one(5).noise, one(6).noise) and one(5).step == 5


def test_every_pair_comes_once_an_epoch(config):
    sampler, _ = draw(config, read_samples(config.data))
    epochs = [[sampler._pair_at(12 * e + i) for i in range(12)] for e in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs) and epochs[0] != epochs[1]


def test_a_contrary_prompt_is_the_violating_images_own(config):
    """In its share of the pairs that have a class, and in no other."""
    samples = read_samples(config.data)
    samples = [replace(s, class_name=s.class_name * (i < 12), source_prompt=f"source {i}") for i, s in enumerate(samples)]
    contrary = replace(config, batch=240, contrary_prompt=0.6, caption_dropout=0.25)
    _, before = draw(replace(contrary, contrary_prompt=0.0), samples)
    sampler, batch = draw(contrary, samples)
    assert batch.encoder_prompts == before.encoder_prompts == before.backbone_prompts
    assert batch.source_prompts == before.source_prompts
    assert all(torch.equal(getattr(before, name), getattr(batch, name)) for name in ("latents", "noise", "t"))
    changed = {"with a class": [], "without": [], "dropped": []}
    for pair, prompt, own in zip(sampler.draws(4), batch.backbone_prompts, batch.encoder_prompts, strict=True):
        assert prompt in (own, f"source {pair.loser}")
        group = "dropped" if pair.dropped else "with a class" if pair.winner < 12 else "without"
        changed[group].append(prompt != own)
    assert np.mean(changed["with a class"]) == pytest.approx(0.6, abs=0.1)
    assert not any(changed["without"] + changed["dropped"])
    assert batch.source_prompts == [f"source {pair.winner}" for pair in sampler.draws(4)]


def test_a_swapped_prompt_has_the_same_statement_and_class(config):
    """The value encoder alone reads it."""
    samples = [
        replace(s, prompt=f"prompt {i}", value=f"value {i // 12}", class_name=("male", "female", "male", "")[i // 6])
        for i, s in enumerate(read_samples(config.data))
    ]
    groups = {s.prompt: (s.value, s.class_name) for s in samples if s.label}
    swapping = replace(config, batch=240, prompt_swap=0.6, caption_dropout=0.25)
    (_, before), (_, batch) = draw(replace(swapping, prompt_swap=0.0), samples), draw(swapping, samples)
    assert before.encoder_prompts == before.backbone_prompts == batch.backbone_prompts
    assert all(torch.equal(getattr(before, name), getattr(batch, name)) for name in ("latents", "noise", "t"))
    changed = {True: [], False: []}
    for prompt, read in zip(batch.backbone_prompts, batch.encoder_prompts, strict=True):
        if prompt:
            assert groups[read] == groups[prompt]
            changed[bool(groups[prompt][1])].append(read != prompt)
        else:
            assert not read
    itself = 1 / 3  # each statement and class has three prompts
    assert np.mean(changed[True]) == pytest.approx(0.6 * (1 - itself), abs=0.1) and not any(changed[False])


@pytest.mark.parametrize(
    ("options", "depends"),
    [
        ({}, ()),
        ({"prompt_swap": 0.5}, ("class_name",)),
        ({"contrary_prompt": 0.5}, ("class_name", "source_prompt")),
        ({"objective": "distillation"}, ("source_prompt",)),
    ],
)
def test_a_run_depends_on_the_fields_that_it_reads(config, options, depends):
    samples, config = read_samples(config.data), replace(config, **options)
    reads = {"classes": config.reads_classes, "source_prompts": config.reads_source_prompts}
    for name in ("class_name", "source_prompt"):
        others = [replace(sample, **{name: getattr(sample, name) + " again"}) for sample in samples]
        one, two = (encoded(rows).digest(**reads) for rows in (samples, others))
        assert (one != two) == (name in depends)


@pytest.mark.parametrize(
    ("options", "lost", "words"),
    [
        ({"objective": "distillation"}, {"source_prompt": ""}, "image_prompt, .* is missing, but distillation reads"),
        ({"contrary_prompt": 0.5}, {"source_prompt": ""}, "image_prompt, .* is missing, but contrary_prompt reads"),
        (
            {"contrary_prompt": 0.5, "objective": "distillation"},
            {"source_prompt": ""},
            "image_prompt, .* is missing, but distillation reads",
        ),
        ({"contrary_prompt": 0.5}, {"class_name": ""}, "contrary_prompt .* no aligned image of .* has a class: set it to 0"),
        ({"prompt_swap": 0.5}, {"class_name": ""}, "prompt_swap .* no aligned image of .* has a class: set it to 0"),
    ],
)
def test_data_without_the_fields_that_a_run_reads_are_refused(config, options, lost, words, monkeypatch):
    samples = [replace(sample, **lost) for sample in read_samples(config.data)]
    monkeypatch.setattr("livo.training.trainer.read_samples", lambda folder: samples)
    monkeypatch.setattr("livo.training.trainer.load_pipeline", lambda *_, **__: pytest.fail("the backbone was loaded"))
    with pytest.raises(PreferenceError, match=words):
        next(train(replace(config, **options)))
