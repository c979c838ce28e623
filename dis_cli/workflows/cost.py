"""The cost of a configured model, without building it; without torch where there is a closed form."""

from dataclasses import fields

from dis_cli.config.schema import RunConfig
from dis_cli.models.cost import Flops, ModelShape
from dis_cli.models.families import FAMILIES, Family


def model_family(config: RunConfig) -> Family:
    """The family of the configured model."""
    return FAMILIES[config.model.backbone]


def model_shape(config: RunConfig) -> ModelShape:
    """The settings of the configured model that decide what it computes; see `RunConfig.assumed`."""
    shape = model_family(config).shape
    settings = config.assumed().model.model_dump() | {"learn_sigma": config.learn_sigma}
    return shape(**{field.name: settings[field.name] for field in fields(shape)})


def model_cost(config: RunConfig) -> Flops:
    """Parameters and operations of one forward of the configured model for one image."""
    return model_family(config).cost(model_shape(config))
