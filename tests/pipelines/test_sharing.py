"""Threads: pipelines that share modules, and one pipeline called by several, draw what each call draws alone."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline

import livo
from livo import LiVOPipeline, ValueEncoder
from livo.pipelines.sharing import using
from tests.conftest import PRINCIPLES, WordEmbedder
from tests.utils.test_weights import peft_state

PROMPTS = ["a bloody warrior", "a photo of a doctor", "a cat with a hat " * 20]


def sharing(pipe, **kwargs):
    """Another pipeline of the same modules, with a scheduler of its own."""
    other = livo.aligned(type(pipe)).from_pipe(pipe, value_principles=pipe.principles, **kwargs)
    other.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    other.retriever = pipe.retriever
    other.set_progress_bar_config(disable=True)
    return other


def draw(pipe, prompt, seed, **kwargs):
    options = {"num_inference_steps": 2, "output_type": "np", **kwargs}
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **options).images


def jobs(count):
    """Calls with and without clip_skip and values, of different lengths."""
    settings = [{"value": value, "clip_skip": skip} for value in (None, "bloody", "auto") for skip in (None, 1)]
    return [(PROMPTS[i % len(PROMPTS)], i, settings[i % len(settings)]) for i in range(count)]


def in_threads(pipes, work):
    """The images of each job, one pipeline a thread."""

    def run(job):
        with lock:
            pipe = free.pop()
        try:
            return draw(pipe, job[0], job[1], **job[2])
        finally:
            with lock:
                free.append(pipe)

    free, lock = list(pipes), threading.Lock()
    with ThreadPoolExecutor(len(pipes)) as pool:
        return list(pool.map(run, work))


@pytest.mark.parametrize("padding", ["max_length", "do_not_pad"])
def test_pipelines_that_share_their_modules_draw_in_threads_what_they_draw_alone(pipe, padding):
    pipe.register_to_config(prompt_padding=padding)
    pipes = [sharing(pipe, prompt_padding=padding) for _ in range(8)]
    work = jobs(48)
    alone = [draw(pipe, prompt, seed, **kwargs) for prompt, seed, kwargs in work]
    for ours, expected in zip(in_threads(pipes, work), alone, strict=True):
        assert np.array_equal(ours, expected)


def test_sdxl_pipelines_too(tiny_xl_checkpoint):
    base = StableDiffusionXLPipeline.from_pretrained(tiny_xl_checkpoint, dtype=torch.float32)
    base.set_progress_bar_config(disable=True)
    torch.manual_seed(1)
    livo.attach(base, ValueEncoder.from_text_encoder(base.text_encoder, 64).eval(), PRINCIPLES)
    base.retriever._embedder = WordEmbedder()
    work = jobs(18)
    alone = [draw(base, prompt, seed, **kwargs) for prompt, seed, kwargs in work]
    for ours, expected in zip(in_threads([sharing(base) for _ in range(6)], work), alone, strict=True):
        assert np.array_equal(ours, expected)


def test_one_pipeline_called_by_many_threads_gives_each_its_own_image(pipe):
    work = jobs(24)
    alone = [draw(pipe, prompt, seed, **kwargs) for prompt, seed, kwargs in work]
    for ours, expected in zip(in_threads([pipe] * 8, work), alone, strict=True):
        assert np.array_equal(ours, expected)


def test_calls_that_scale_a_shared_lora_do_not_mix(pipe):
    """diffusers scales the layers of UNet and text encoder for the time of a call, in place."""
    pipe.load_lora_weights(peft_state(pipe, ("unet", "text_encoder")))
    scales = (None, 0.25, 0.5, 1.0)
    work = [
        (PROMPTS[0], i, {"value": ("bloody", None)[i % 2], "cross_attention_kwargs": {"scale": s} if s else None})
        for i, s in enumerate(scales * 4)
    ]
    alone = [draw(pipe, prompt, seed, **kwargs) for prompt, seed, kwargs in work]
    for ours, expected in zip(in_threads([sharing(pipe) for _ in range(4)], work), alone, strict=True):
        assert np.array_equal(ours, expected)


@pytest.mark.parametrize("kwargs", [{}, {"clip_skip": 1}, {"value": "bloody", "clip_skip": 1}, {"value": "bloody"}])
@pytest.mark.parametrize("padding", ["max_length", "do_not_pad"])
def test_a_call_changes_nothing_of_the_modules_that_pipelines_share(pipe, kwargs, padding):
    pipe.register_to_config(prompt_padding=padding)
    names = ("text_encoder", "unet", "vae", "value_encoder", "tokenizer")

    def state():
        installed = "_output_capturing_hooks_installed"  # by transformers, the first time that hidden states are wanted
        kept = {}
        for name in names:
            attributes = {key: value for key, value in vars(pipe.components[name]).items() if key != installed}
            kept[name] = set(attributes), {key: value for key, value in attributes.items() if isinstance(value, (int, str))}
        return kept, pipe.tokenizer.model_max_length

    before, during = state(), []
    hooks = [
        module.register_forward_pre_hook(lambda *_: during.append(state()))
        for module in (pipe.text_encoder.final_layer_norm, pipe.unet.conv_in, pipe.vae.decoder)
    ]
    draw(pipe, PROMPTS[0], 0, **kwargs)
    for hook in hooks:
        hook.remove()
    assert len(during) > 4 and all(found == before for found in during) and state() == before


def test_a_call_within_a_call_of_the_same_pipeline_is_one_clear_error(pipe):
    def inner(pipe, step, timestep, inputs):
        draw(pipe, PROMPTS[0], 0)

    with pytest.raises(ValueError, match=r"in the middle of a call of this thread.*another pipeline, with a scheduler of its own"):
        draw(pipe, PROMPTS[0], 0, callback_on_step_end=inner)
    other = sharing(pipe)
    expected = draw(pipe, PROMPTS[0], 0)
    found = []

    def another(pipe, step, timestep, inputs):
        found.append(draw(other, PROMPTS[0], 0))
        return {}

    assert np.array_equal(draw(pipe, PROMPTS[0], 0, callback_on_step_end=another), expected)
    assert all(np.array_equal(images, expected) for images in found)


def test_what_is_changed_waits_for_all_and_what_is_read_for_changes_alone():
    order, inside = [], threading.Event()
    shared = object()

    def change():
        inside.wait(10)
        with using([], [shared]):
            order.append("changed")

    def read():
        inside.wait(10)
        with using([shared], []):
            order.append("read")

    threads = [threading.Thread(target=change), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    with using([shared], []):
        inside.set()
        threads[1].join(10)  # reads beside us
        assert "read" in order and "changed" not in order
    threads[0].join(10)
    assert order == ["read", "changed"]


def test_a_failed_call_frees_what_it_used(pipe):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(pipe, PROMPTS[0], 0, callback_on_step_end=stop)
    processor = pipe.image_processor
    result = []
    thread = threading.Thread(target=lambda: result.append(draw(pipe, PROMPTS[0], 0)))
    thread.start()
    thread.join(60)
    assert result and pipe.image_processor is processor and type(processor).__name__ == "VaeImageProcessor"


def test_the_lora_scale_of_a_call_is_remembered_as_in_the_base(pipe, base):
    state = peft_state(pipe, ("unet", "text_encoder"))
    for each in (pipe, base):
        each.load_lora_weights(copy.copy(state))
        more = {"value": None} if each is pipe else {}
        draw(each, PROMPTS[0], 0, cross_attention_kwargs={"scale": 0.5}, **more)
    assert pipe._lora_scale == base._lora_scale == 0.5 and isinstance(pipe, LiVOPipeline)


def test_the_values_of_a_running_call_are_not_seen_by_other_threads(pipe, base):
    encoded, predicted = [], []
    embeds = base.encode_prompt(PROMPTS[1], "cpu", 1, True)[0]
    latents = torch.zeros(1, 4, 8, 8)
    expected = base.unet(latents, 1, embeds).sample

    def elsewhere():
        encoded.append(pipe.encode_prompt(PROMPTS[1], "cpu", 1, True)[0])
        predicted.append(pipe.unet(latents, 1, embeds).sample)

    def at_each_step(pipe, step, timestep, inputs):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return {}

    with torch.no_grad():
        out = pipe(PROMPTS[0], value="bloody", num_inference_steps=2, callback_on_step_end=at_each_step, output_type="latent")
    assert out.decisions[0].applied_values and len(encoded) == len(predicted) == 2
    assert all(torch.equal(found, embeds) for found in encoded) and all(torch.equal(found, expected) for found in predicted)
