import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from livo.training.noise import Noising

X, NOISE = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0, 400, 999])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noise_and_targets_are_those_of_diffusers(kind):
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=kind)
    noisy, target = Noising(scheduler)(X, NOISE, T)
    theirs = DDPMScheduler.from_config(scheduler.config)
    torch.testing.assert_close(noisy, theirs.add_noise(X, NOISE, T))
    torch.testing.assert_close(target, NOISE if kind == "epsilon" else theirs.get_velocity(X, NOISE, T))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_is_noised_as_diffusers_does_and_predicts_the_way_from_image_to_noise(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    noising = Noising(scheduler)
    noisy, target = noising(X, NOISE, T)
    told = noising.timestep(T)
    index = [int((scheduler.timesteps - t).abs().argmin()) for t in told]
    torch.testing.assert_close(told, scheduler.timesteps[index], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(noisy, scheduler.scale_noise(X, scheduler.timesteps[index], NOISE), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(target, NOISE - X)


def test_min_snr_weights_the_clean_images_error_alike_whatever_is_predicted():
    """An error e in the clean image is -alpha/sigma e in epsilon and -1/sigma e in velocity or flow."""
    for kind in ("epsilon", "v_prediction", "flow"):
        flow = kind == "flow"
        noising = Noising(FlowMatchEulerDiscreteScheduler() if flow else DDPMScheduler(prediction_type=kind))
        t = torch.tensor([20, 500, 900])
        alpha, sigma = noising.alphas[t], noising.sigmas[t]
        scale = alpha / sigma if kind == "epsilon" else 1 / sigma
        snr = (alpha / sigma) ** 2
        torch.testing.assert_close(noising.min_snr(t, 5.0) * scale**2, snr.clamp(max=5.0), rtol=1e-4, atol=1e-6)


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="'sample'"):
        Noising(DDPMScheduler(prediction_type="sample"))
