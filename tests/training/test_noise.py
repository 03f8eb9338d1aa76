import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from livo.training.noise import NoiseSchedule

X, NOISE = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0, 400, 999])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noise_and_targets_equal_those_of_diffusers(kind):
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=kind)
    noise = NoiseSchedule(scheduler)
    noisy, target = noise.add_noise(X, NOISE, T), noise.target(X, NOISE, T)
    theirs = DDPMScheduler.from_config(scheduler.config)
    assert torch.equal(noisy, theirs.add_noise(X, NOISE, T))
    assert torch.equal(target, NOISE if kind == "epsilon" else theirs.get_velocity(X, NOISE, T))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_agrees_with_diffusers_and_predicts_noise_minus_x(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    noise = NoiseSchedule(scheduler)
    noisy, target, model_t = noise.add_noise(X, NOISE, T), noise.target(X, NOISE, T), noise.model_timestep(T)
    index = [int((scheduler.timesteps - t).abs().argmin()) for t in model_t]
    torch.testing.assert_close(model_t, scheduler.timesteps[index], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(noisy, scheduler.scale_noise(X, scheduler.timesteps[index], NOISE), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(target, NOISE - X)


def test_min_snr_weighs_the_clean_images_error_for_each_prediction_type():
    """An error e in the clean image is -alpha/sigma e in epsilon and -1/sigma e in velocity or flow."""
    for kind in ("epsilon", "v_prediction", "flow"):
        flow = kind == "flow"
        noise = NoiseSchedule(FlowMatchEulerDiscreteScheduler() if flow else DDPMScheduler(prediction_type=kind))
        t = torch.tensor([20, 500, 900])
        alpha, sigma = noise.alphas[t], noise.sigmas[t]
        scale = alpha / sigma if kind == "epsilon" else 1 / sigma
        snr = (alpha / sigma) ** 2
        torch.testing.assert_close(noise.min_snr_weight(t, 5.0) * scale**2, snr.clamp(max=5.0), rtol=1e-4, atol=1e-6)


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="'sample'"):
        NoiseSchedule(DDPMScheduler(prediction_type="sample"))
