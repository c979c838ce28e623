"""What the model of a configuration costs, without torch and without building it."""

from dis_cli.config.schema import RunConfig
from dis_cli.models.dis.flops import Flops, count
from dis_cli.models.dis.sizes import Shape


def model_shape(config: RunConfig) -> Shape:
    """The settings of the configured model that decide what it costs."""
    model = config.model
    return Shape(
        image_size=model.image_size,
        patch_size=model.patch_size,
        in_channels=model.in_channels,
        embed_dim=model.embed_dim,
        depth=model.depth,
        num_classes=model.num_classes,
        learn_sigma=config.learn_sigma,
        d_state=model.d_state,
        d_conv=model.d_conv,
        expand=model.expand,
    )


def model_cost(config: RunConfig) -> Flops:
    """Parameters and operations of one forward of the configured model for one image."""
    return count(model_shape(config))
