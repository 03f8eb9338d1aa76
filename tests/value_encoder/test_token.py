from contextlib import contextmanager

import pytest
import torch

from livo.value_encoder.attention import AttentionState, ValueAttention, blend
from livo.value_encoder.token import encode_value, fuse, tokenize, value_text
from tests.conftest import gap


@pytest.fixture
def inputs(pipe):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    embeds = torch.randn(2, 77, 32, generator=generator)
    token = 3 * torch.randn(2, 32, generator=generator)
    return latents, embeds, token


@torch.no_grad()
def predict(pipe, latents, embeds, scales=None):
    if scales is None:
        return pipe.unet(latents, 500, embeds).sample
    with biased(pipe.unet, scales, embeds.shape[1]):
        return pipe.unet(latents, 500, embeds).sample


@contextmanager
def biased(unet, scales, length):
    """The blend of the conditional rows held on the UNet, behind an unconditional half that is not used."""
    attention = ValueAttention()
    attention.put_on(unet)
    try:
        with attention.holding(AttentionState(blend([*([[0.0]] * len(scales)), *scales], length))):
            yield
    finally:
        attention.remove()


def test_the_value_text_is_the_statement_then_the_prompt():
    assert value_text("gender equality", "a photo of a doctor") == "gender equality, a photo of a doctor"


def test_fusing_puts_one_token_in_front_of_seventy_seven(inputs):
    _, embeds, token = inputs
    fused = fuse(token, embeds)
    assert fused.shape == (2, 78, 32)
    assert torch.equal(fused[:, 0], token) and torch.equal(fused[:, 1:], embeds)


def test_a_masked_token_gives_the_output_without_a_token_and_a_zero_valued_one_does_not(pipe, inputs):
    latents, embeds, token = inputs
    plain = predict(pipe, latents, embeds)
    masked = predict(pipe, latents, fuse(token, embeds), [[0.0], [0.0]])
    zeros = predict(pipe, latents, fuse(torch.zeros_like(token), embeds))
    assert gap(masked, plain) < 2e-5 and gap(zeros, plain) > 2e-4


def test_scale_one_is_what_was_trained_and_rows_do_not_disturb_each_other(pipe, inputs):
    latents, embeds, token = inputs
    fused = fuse(token, embeds)
    trained, plain = predict(pipe, latents, fused), predict(pipe, latents, embeds)
    mixed = predict(pipe, latents, fused, [[1.0], [0.0]])
    assert gap(mixed[0], trained[0]) < 2e-5 and gap(mixed[1], plain[1]) < 2e-5


def test_the_effect_grows_with_the_scale(pipe, inputs):
    latents, embeds, token = inputs
    plain = predict(pipe, latents, embeds)
    effects = [(predict(pipe, latents, fuse(token, embeds), [[s], [s]]) - plain).norm().item() for s in (0, 0.25, 0.5, 1, 2, 4)]
    assert effects == sorted(effects) and effects[0] < 1e-4 < effects[1]


@pytest.mark.parametrize("scales", [[0.3], [1.0], [1.7], [0.0], [0.3, 0.8], [0.8, 0.3], [0.5, 0.5], [0.0, 0.4], [1.0, 0.6]])
def test_the_scale_multiplies_the_attention_weight(pipe, scales):
    """Against softmax written out: of one token the weight a becomes scale * a; of several, the way leads over the strongest."""
    layer = next(m for n, m in pipe.unet.named_modules() if n.endswith("attn2"))
    generator = torch.Generator().manual_seed(3)
    x, keys = torch.randn(1, 5, 16, generator=generator), torch.randn(1, 78, 32, generator=generator)
    with torch.no_grad(), biased(pipe.unet, [scales], 78):
        out = layer(x, encoder_hidden_states=keys)
    with torch.no_grad():
        heads, width = layer.heads, layer.to_q.out_features // layer.heads
        q, k, v = (
            f(a).view(1, -1, heads, width).transpose(1, 2) for f, a in ((layer.to_q, x), (layer.to_k, keys), (layer.to_v, keys))
        )
        scores = (q @ k.transpose(-1, -2) / width**0.5).exp()

        def weights(kept):
            some = scores.clone()
            for column in range(len(scales)):
                some[..., column] *= column in kept
            return some / some.sum(-1, keepdim=True)

        if len(scales) == 1:
            a = weights({0})[..., :1]
            mixed = torch.cat([scales[0] * a, weights({})[..., 1:] * (1 - scales[0] * a)], -1)
        else:
            weak, strong = min(scales), max(scales)
            mixed = weak * weights({0, 1}) + (strong - weak) * weights({scales.index(strong)}) + (1 - strong) * weights({})
        expected = layer.to_out[0]((mixed @ v).transpose(1, 2).reshape(1, 5, -1))
    assert gap(out, expected) < 2e-5


@torch.no_grad()
def test_a_scale_is_a_dial_even_where_a_token_takes_all_attention(pipe):
    """The score of a trained token may be so large that no factor before the softmax would be seen."""
    layer = next(m for n, m in pipe.unet.named_modules() if n.endswith("attn2"))
    generator = torch.Generator().manual_seed(3)
    x, keys = torch.randn(1, 5, 16, generator=generator), torch.randn(1, 78, 32, generator=generator)
    scores = layer.to_q(x) @ layer.to_k(keys).transpose(-1, -2)
    keys[:, 0] *= 200 * scores[..., :1].sign().mean()  # heads of either sign: what they take all of, or nothing of

    def output(scale):
        with biased(pipe.unet, [[scale]], 78):
            return layer(x, encoder_hidden_states=keys)

    without, trained = output(0.0), output(1.0)
    assert (trained - without).abs().max() > 1
    for scale in (0.001, 0.25, 0.5, 2.0):
        assert gap(output(scale), without + scale * (trained - without)) < 1e-4


def test_the_unet_is_as_it_was_after_the_context_even_on_an_error(base, pipe, inputs):
    latents, embeds, _ = inputs
    before = predict(base, latents, embeds)
    attention = ValueAttention()
    attention.put_on(base.unet)
    with pytest.raises(RuntimeError), attention.holding(AttentionState(blend([[0.0]] * 4, 77))):
        raise RuntimeError
    assert torch.equal(predict(base, latents, embeds), before)
    attention.remove()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in base.unet.modules())
    assert torch.equal(predict(base, latents, embeds), before)


def test_a_batch_that_the_bias_was_not_laid_out_for_is_refused(pipe, inputs):
    latents, embeds, token = inputs
    for rows, keys in ((3, 78), (2, 77)):
        with (
            pytest.raises(ValueError, match="the values were laid out for"),
            biased(pipe.unet, [[1.0]] * rows, 78),
            torch.no_grad(),
        ):
            pipe.unet(latents, 500, fuse(token, embeds)[:, :keys])


@pytest.mark.parametrize("eos_in_config", [2, None])
def test_the_token_is_pooled_at_eos_so_the_last_word_counts(pipe, eos_in_config):
    """Legacy configurations say `eos_token_id` 2, with which transformers' own pooling may look elsewhere."""
    if eos_in_config:
        pipe.value_encoder.config.eos_token_id = eos_in_config
        pipe.value_encoder.eos_token_id = eos_in_config
    texts = ["gender equality, a photo of a doctor", "gender equality, a photo of a chef"]
    one, two = encode_value(pipe.value_encoder, pipe.tokenizer, texts)
    assert not torch.allclose(one, two, atol=1e-3)
    ids = tokenize(pipe.tokenizer, texts[:1])
    position = ids[0].tolist().index(pipe.tokenizer.eos_token_id)
    assert torch.equal(one, pipe.value_encoder(ids).last_hidden_state[0, position])


def test_long_texts_are_cut_to_seventy_seven_and_still_end_in_eos(pipe):
    ids = tokenize(pipe.tokenizer, ["doctor " * 200])
    assert ids.shape == (1, 77) and ids[0, -1] == pipe.tokenizer.eos_token_id
