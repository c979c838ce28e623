"""The rules of samplers and steps: the meaning of "auto", and the combinations that cannot run. Without torch."""

from typing import Final, Literal

from dis_cli.diffusion.samplers.table import (
    ANY_STEPS_OF_FLOWS,
    AUTO,
    SAMPLERS,
    USUAL,
    USUAL_OF_FLOWS,
    fitting,
    nearest_steps,
)

LARGEST_SEED: Final = 2**31 - 1


def choose_sampling(
    sampler: str,
    steps: Literal["auto"] | int,
    *,
    is_flow: bool,
    num_timesteps: int,
) -> tuple[str, int]:
    """The sampler and the number of steps that settings stand for.

    Args:
        sampler: A sampler, or "auto": the usual one of a schedule or of a rectified flow, or one that takes any number
            of steps where the latter cannot take those asked for.
        steps: Model evaluations per image, or "auto": what is usual for the sampler, and possible.
        num_timesteps: Number of timesteps T of the forward process.
    """
    if sampler == AUTO:
        sampler = USUAL_OF_FLOWS if is_flow else USUAL
        if is_flow and steps != "auto" and steps not in nearest_steps(sampler, steps, num_timesteps):
            sampler = ANY_STEPS_OF_FLOWS
    if steps == "auto":
        steps = nearest_steps(sampler, SAMPLERS[sampler].usual_steps, num_timesteps)[0]
    return sampler, steps


def sampling_problem(sampler: str, steps: int, *, eta: float, is_flow: bool, num_timesteps: int) -> str | None:
    """The problem with a sampler and its steps, and what is allowed; None when they can run.

    Args:
        steps: Model evaluations per image.
        eta: Share of the ancestral noise.
        num_timesteps: Number of timesteps T of the forward process.
    """
    row, able = SAMPLERS[sampler], fitting(is_flow=is_flow)
    if sampler not in able:
        names = ", ".join(f"'{name}'" for name in able)
        return (
            f"sample.sampler '{sampler}' cannot sample diffusion.schedule 'rectified_flow': set sample.sampler to "
            f"'auto' or one of {names}"
        )
    if steps > num_timesteps:
        return f"sample.steps {steps} exceeds diffusion.num_timesteps {num_timesteps}"
    possible = nearest_steps(sampler, steps, num_timesteps)
    if steps not in possible:
        reason = (
            f"an integer stride of the {num_timesteps} timesteps"
            if row.spacing == "integer_stride"
            else "an odd number (two evaluations a step, one in the last)"
        )
        return (
            f"sample.sampler '{sampler}' cannot take {steps} steps, it needs {reason}: set sample.steps (`--steps`) to "
            f"{' or '.join(map(str, possible))}"
        )
    if eta and not row.takes_eta:
        takers = " or ".join(f"'{name}'" for name, other in SAMPLERS.items() if other.takes_eta)
        return f"sample.eta {eta:g} is for sample.sampler {takers}, got '{sampler}': set sample.eta to 0"
    return None


def guidance_problem(cfg_scale: float, *, num_classes: int, label_drop: float) -> str | None:
    """The problem with guiding a model; None when it can be guided, or is not to be.

    Args:
        cfg_scale: Strength of the guidance; 1 is none.
        num_classes: The model's classes; 0 is unconditional.
        label_drop: Share of the labels that were dropped in training, so that it learned to do without them.
    """
    if cfg_scale == 1 or (num_classes and label_drop):
        return None
    lack = "was never trained without them (model.label_drop 0)" if num_classes else "has none (model.num_classes 0)"
    return (
        f"sample.cfg_scale {cfg_scale:g} needs a model with classes, but this one {lack}: set it (`--cfg-scale`) to 1"
    )
