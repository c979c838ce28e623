"""A model, its objective and its sampling, in a line each."""

from dis_cli.config.schema import RunConfig
from dis_cli.workflows.cost import model_shape


def describe_model(config: RunConfig) -> str:
    """The architecture in a line."""
    model = config.model
    classes = f"{model.num_classes} classes" if model.num_classes else "unconditional"
    grid = f"{model.image_size}x{model.image_size}x{model.in_channels}"
    where = f"latents {grid} of {config.pixel_size} pixels" if config.codec.kind == "vae" else f"pixels {grid}"
    return f"{model_shape(config).layers}, patch {model.patch_size}, on {where}, {classes}"


def describe_objective(config: RunConfig) -> str:
    """The model's target and process, in a line."""
    diffusion = config.diffusion
    return f"{diffusion.prediction}, {diffusion.schedule}, {diffusion.num_timesteps} timesteps, {diffusion.variance}"


def describe_sampling(config: RunConfig) -> str:
    """The default way of generating images, in a line."""
    sample = config.settled().sample
    return f"{sample.sampler}, {sample.steps} steps, guidance {sample.cfg_scale:g}"
