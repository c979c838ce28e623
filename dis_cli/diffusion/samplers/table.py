"""The samplers: one row each, the only place outside a sampler's own file that names it. No torch.

Another sampler is a step function in this folder and a row here.
"""

from dataclasses import dataclass
from typing import Final, Literal

# Raised when a sampler gives other images of the same seeds, last bits included. 1 was diffusers' schedulers.
VERSION: Final = 2


@dataclass(frozen=True, kw_only=True)
class SamplerRow:
    """A sampler.

    Args:
        title: Its name as people write it.
        step: "module:function" of a step, which has the signature of ``dis_cli.diffusion.samplers.course.Step``.
        usual_steps: Model evaluations per image when none are asked for.
        spacing: The timesteps of a schedule that N of them are: "published" are the respacing "N", from 0 to T - 1;
            "integer_stride" those of "ddimN", for the N that have one; "from_noise" N equal strides down from T - 1
            that stop short of 0.
        two_a_step: Whether a step takes two evaluations, and the last step one, so that steps are odd.
        samples_flows: Whether it samples a rectified flow too.
        takes_eta: Whether it draws a chosen share of the ancestral noise.
    """

    title: str
    step: str
    usual_steps: int
    spacing: Literal["published", "integer_stride", "from_noise"] = "from_noise"
    two_a_step: bool = False
    samples_flows: bool = False
    takes_eta: bool = False


SAMPLERS: Final[dict[str, SamplerRow]] = {
    "ancestral": SamplerRow(
        title="ancestral sampling, the paper's",
        step="dis_cli.diffusion.samplers.ancestral:ancestral",
        usual_steps=250,
        spacing="published",
    ),
    "ddim": SamplerRow(
        title="DDIM",
        step="dis_cli.diffusion.samplers.ddim:ddim",
        usual_steps=50,
        spacing="integer_stride",
        takes_eta=True,
    ),
    "dpm++": SamplerRow(
        title="DPM-Solver++ of second order",
        step="dis_cli.diffusion.samplers.dpm_solver:dpm_solver",
        usual_steps=25,
    ),
    "dpm++sde": SamplerRow(
        title="DPM-Solver++ of second order, with noise",
        step="dis_cli.diffusion.samplers.dpm_solver:dpm_solver_sde",
        usual_steps=25,
    ),
    "unipc": SamplerRow(
        title="UniPC of second order",
        step="dis_cli.diffusion.samplers.unipc:unipc",
        usual_steps=25,
    ),
    "heun": SamplerRow(
        title="Heun's method",
        step="dis_cli.diffusion.samplers.straight:heun",
        usual_steps=25,
        two_a_step=True,
        samples_flows=True,
    ),
    "euler": SamplerRow(
        title="Euler's method",
        step="dis_cli.diffusion.samplers.straight:euler",
        usual_steps=50,
        samples_flows=True,
    ),
}

# What "auto" stands for: of a schedule; of a rectified flow; of a flow with a number of steps that this cannot take.
AUTO: Final = "auto"
USUAL: Final = "dpm++"
USUAL_OF_FLOWS: Final = "heun"
ANY_STEPS_OF_FLOWS: Final = "euler"


def fitting(*, is_flow: bool) -> tuple[str, ...]:
    """Samplers of a rectified flow, or of a schedule of betas."""
    return tuple(name for name, row in SAMPLERS.items() if row.samples_flows or not is_flow)


def nearest_steps(sampler: str, steps: int, num_timesteps: int) -> list[int]:
    """The numbers of steps nearest to the one wanted that a sampler can take: at most that many, and the next above.

    Args:
        sampler: A name in SAMPLERS.
        steps: Model evaluations wanted per image, at least 1.
        num_timesteps: Number of timesteps T, the most steps there can be.
    """
    row = SAMPLERS[sampler]
    steps = min(steps, num_timesteps)
    if row.two_a_step:
        odd = steps - (steps % 2 == 0)
        return [odd] if odd == steps or odd + 2 > num_timesteps else [odd, odd + 2]
    if row.spacing == "integer_stride":
        stride = -(-num_timesteps // steps)
        below = -(-num_timesteps // stride)
        return [below] if below == steps else [below, -(-num_timesteps // (stride - 1))]
    return [steps]
