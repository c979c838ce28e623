"""Schedules against the published code's float64 tables."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dis_cli.diffusion.schedule import Schedule, cosine_betas, make_schedule, space_timesteps

ORACLE = load_file(Path(__file__).parent / "data" / "diffusion_schedules_f64.safetensors")
TABLES = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
RESPACINGS = {"1000": "", "250": "250", "25": "25", "10": "10", "10,20,30": "10,20,30", "1": "1", "ddim50": "ddim50"}


def respaced(schedule: Schedule, spec: str) -> Schedule:
    return schedule.restrict(space_timesteps(schedule.num_timesteps, spec))


@pytest.mark.parametrize("recorded", [*RESPACINGS, "ddim250"])
def test_respaced_tables_equal_the_published_ones(recorded: str) -> None:
    schedule = respaced(make_schedule("linear", 1000), RESPACINGS.get(recorded, recorded))

    np.testing.assert_array_equal(schedule.timestep_map, ORACLE[f"{recorded}.timestep_map"])
    for table in TABLES:
        # The published table is empty for one step, and its sampling fails there.
        if (recorded, table) != ("1", "posterior_log_variance_clipped"):
            np.testing.assert_allclose(getattr(schedule, table), ORACLE[f"{recorded}.{table}"], rtol=1e-12, atol=0)


def test_full_tables_equal_the_published_ones() -> None:
    schedule = make_schedule("linear", 1000)

    for table in TABLES:
        np.testing.assert_allclose(getattr(schedule, table), ORACLE[f"1000.{table}"], rtol=1e-12, atol=0)


def test_cosine_betas_equal_the_published_ones() -> None:
    np.testing.assert_allclose(cosine_betas(1000), ORACLE["squaredcos_cap_v2.betas"], rtol=1e-12, atol=0)


def test_one_step_has_a_finite_log_variance() -> None:
    schedule = respaced(make_schedule("linear", 1000), "1")

    np.testing.assert_allclose(schedule.posterior_log_variance_clipped, np.log([1e-4]), rtol=1e-12)


def test_respacing_again_composes_the_timesteps() -> None:
    schedule = respaced(respaced(make_schedule("linear", 1000), "ddim50"), "ddim25")

    np.testing.assert_array_equal(schedule.timestep_map, np.arange(0, 1000, 40))
    np.testing.assert_allclose(
        schedule.alphas_cumprod, ORACLE["1000.alphas_cumprod"][np.arange(0, 1000, 40)], rtol=1e-12, atol=0
    )
    assert schedule.num_original_timesteps == 1000


@pytest.mark.parametrize("num_timesteps", [1000, 250])
def test_square_roots_of_scaled_linear_betas_are_a_line(num_timesteps: int) -> None:
    schedule, scale = make_schedule("scaled_linear", num_timesteps), 1000 / num_timesteps
    roots = np.sqrt(schedule.betas / scale)
    np.testing.assert_allclose(np.diff(roots), (0.012**0.5 - 0.00085**0.5) / (num_timesteps - 1), rtol=1e-9)
    np.testing.assert_allclose(schedule.betas[[0, -1]], [scale * 0.00085, scale * 0.012], rtol=1e-12)
    # The share of signal that is left, which is known of published models of 1000 steps.
    np.testing.assert_allclose(schedule.alphas_cumprod[-1], 0.00466, rtol=1e-3 if num_timesteps == 1000 else 0.1)


def test_a_scaled_linear_schedule_needs_steps() -> None:
    with pytest.raises(ValueError, match="at least 13 timesteps, got 12"):
        make_schedule("scaled_linear", 12)
