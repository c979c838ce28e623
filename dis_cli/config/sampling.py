"""Which sampler runs and with how many steps: what "auto" stands for, and what cannot run. Known without torch."""

from typing import Final, Literal

SamplerName = Literal["ancestral", "ddim", "dpm++", "dpm++sde", "unipc", "heun", "euler"]

FLOW_SAMPLERS: Final = ("heun", "euler")
SCHEDULE_SAMPLERS: Final = ("ancestral", "ddim", "dpm++", "dpm++sde", "unipc", "heun", "euler")

LARGEST_SEED: Final = 2**31 - 1

# Model evaluations per image; the paper's for its sampler.
USUAL_STEPS: Final[dict[SamplerName, int]] = {
    "ancestral": 250,
    "ddim": 50,
    "dpm++": 25,
    "dpm++sde": 25,
    "unipc": 25,
    "heun": 25,
    "euler": 50,
}


def choose_sampling(
    sampler: Literal["auto", SamplerName],
    steps: Literal["auto"] | int,
    *,
    is_flow: bool,
    num_timesteps: int,
) -> tuple[SamplerName, int]:
    """The sampler and the number of steps that settings stand for.

    Args:
        sampler: A sampler, or "auto": DPM-Solver++ for a schedule; Heun's method for a rectified flow, or Euler's
            where an even number of steps was asked for, which Heun's cannot take.
        steps: Model evaluations per image, or "auto": what is usual for the sampler, and possible.
        num_timesteps: Number of timesteps T of the forward process.
    """
    if sampler == "auto":
        is_even = steps != "auto" and steps % 2 == 0
        sampler = "dpm++" if not is_flow else "euler" if is_even else "heun"
    if steps == "auto":
        steps = nearest_steps(sampler, USUAL_STEPS[sampler], num_timesteps)[0]
    return sampler, steps


def nearest_steps(sampler: SamplerName, steps: int, num_timesteps: int) -> list[int]:
    """The numbers of steps nearest to the one wanted that a sampler can take: at most that many, and the next above.

    Args:
        sampler: "ddim" takes numbers of timesteps with an integer stride, "heun" odd ones, the others all.
        steps: Model evaluations wanted per image, at least 1.
        num_timesteps: Number of timesteps T, the most steps there can be.
    """
    steps = min(steps, num_timesteps)
    if sampler == "heun":
        odd = steps - (steps % 2 == 0)
        return [odd] if odd == steps or odd + 2 > num_timesteps else [odd, odd + 2]
    if sampler == "ddim":
        stride = -(-num_timesteps // steps)
        below = -(-num_timesteps // stride)
        return [below] if below == steps else [below, -(-num_timesteps // (stride - 1))]
    return [steps]


def sampling_problem(
    sampler: SamplerName, steps: int, *, eta: float, prediction: str, is_flow: bool, num_timesteps: int
) -> str | None:
    """What is wrong with a sampler and its steps, with what is allowed; None when they can run.

    Args:
        steps: Model evaluations per image.
        eta: Share of the ancestral noise.
        num_timesteps: Number of timesteps T of the forward process.
    """
    fitting = FLOW_SAMPLERS if is_flow else SCHEDULE_SAMPLERS
    if sampler not in fitting:
        names = ", ".join(f"'{name}'" for name in fitting)
        return (
            f"sample.sampler '{sampler}' cannot sample diffusion.prediction '{prediction}': set sample.sampler to "
            f"'auto' or one of {names}"
        )
    if steps > num_timesteps:
        return f"sample.steps {steps} exceeds diffusion.num_timesteps {num_timesteps}"
    possible = nearest_steps(sampler, steps, num_timesteps)
    if steps not in possible:
        reason = (
            f"an integer stride of the {num_timesteps} timesteps"
            if sampler == "ddim"
            else "an odd number (two evaluations a step, one in the last)"
        )
        return (
            f"sample.sampler '{sampler}' cannot take {steps} steps, it needs {reason}: set sample.steps (`--steps`) to "
            f"{' or '.join(map(str, possible))}"
        )
    if eta and sampler != "ddim":
        return f"sample.eta {eta:g} is for sample.sampler 'ddim', got '{sampler}': set sample.eta to 0"
    return None


def guidance_problem(cfg_scale: float, *, num_classes: int, label_drop: float) -> str | None:
    """What is wrong with guiding a model; None when it can be guided, or is not to be.

    Args:
        cfg_scale: Strength of the guidance; 1 is none.
        num_classes: The model's classes; 0 is unconditional.
        label_drop: Share of the labels that were dropped in training, so that it learned to do without them.
    """
    if cfg_scale == 1 or (num_classes and label_drop):
        return None
    lack = (
        "has learned nothing without a class (model.label_drop 0)" if num_classes else "has none (model.num_classes 0)"
    )
    return f"sample.cfg_scale {cfg_scale:g} needs a model of classes, and this one {lack}: set it (`--cfg-scale`) to 1"
