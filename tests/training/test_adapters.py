import copy

import pytest
import torch

from livo.training.adapters import ValueEncoderAdapter


def way_back(unet, noisy, t, embeds):
    """The gradient of a value token through the frozen `unet`, and the bytes of activations kept for it."""
    token = embeds[:, :1].clone().requires_grad_(True)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        error = unet(noisy, t, torch.cat([token, embeds], dim=1)).sample.square().mean()
    error.backward()
    weights = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    return token.grad, sum(size for address, size in kept.items() if address not in weights)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_frozen_unet_gives_plain_gradients_with_less_memory(papertown, bf16):
    pipe = copy.copy(papertown)
    plain = copy.deepcopy(papertown.unet).requires_grad_(False)
    pipe.unet = copy.deepcopy(papertown.unet)
    adapter = ValueEncoderAdapter(pipe, 64, ["gender equality"])
    torch.manual_seed(0)
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([10, 900]), torch.randn(2, 77, 128)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        wanted, whole = way_back(plain, *inputs)
        found, kept = way_back(adapter.unet, *inputs)
    assert (found - wanted).norm() < (0.05 if bf16 else 1e-4) * wanted.norm()
    assert kept < 0.9 * whole
