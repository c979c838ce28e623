"""An image is the same to the bit whatever it is generated together with, and fits the memory there is."""

from collections.abc import Generator

import pytest
import torch

from dis_cli.codecs.pixel import PixelCodec
from dis_cli.config.backbones import DisConfig
from dis_cli.config.generation import SampleConfig
from dis_cli.config.schema import DataConfig, RunConfig
from dis_cli.models.dis.backbone import DiS
from dis_cli.workflows.build import build_model
from dis_cli.workflows.sample import batch_size
from dis_cli.workflows.sample.batch_size import image_bytes, pick_batch_size
from dis_cli.workflows.sample.generate import generate

CPU = torch.device("cpu")


def config_of(**sample: object) -> RunConfig:
    return RunConfig(
        model=DisConfig(image_size=8, patch_size=2, in_channels=1, embed_dim=96, depth=3, num_classes=10),
        data=DataConfig(source="digits", hflip=False),
        sample=SampleConfig.model_validate({"sampler": "ddim", "steps": 2, "precision": "fp32"} | sample),
    )


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


class Exact(PixelCodec):
    """Keeps what it is given, of which the images are a coarse view."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.seen.append(latents.clone())
        return super().decode(latents)


def grids(model: DiS, config: RunConfig, seeds: list[int], size: int) -> torch.Tensor:
    codec = Exact()
    settings = {"classes": [seed % 10 for seed in seeds], "device": CPU, "precision": "fp32"}
    for _ in generate(model, codec, config, seeds=seeds, batch_size=size, **settings):
        pass
    return torch.cat(codec.seen)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
def test_no_bit_depends_on_the_batch(cfg_scale: float) -> None:
    config = config_of(cfg_scale=cfg_scale)
    model = build_model(config).eval().requires_grad_(False)
    seeds = list(range(24))
    straight = grids(model, config, seeds, 24)
    for size in (1, 2, 3, 5, 7, 11, 16):
        assert torch.equal(grids(model, config, seeds, size), straight), size
    assert torch.equal(grids(model, config, seeds[::-1], 5), straight.flip(0))


def test_auto_fits_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of()
    model = build_model(config)
    tokens = 18
    assert config.sample.batch_size == "auto"
    assert pick_batch_size(model, config_of(batch_size=7), CPU) == 7
    # 2048 tokens at a time
    assert pick_batch_size(model, config, CPU) == 64
    for images, expected in ((16, 16), (15, 8), (0, 1)):
        free = 2 * images * image_bytes(config, tokens)
        monkeypatch.setattr(batch_size, "_free_bytes", lambda _, free=free: free)
        assert pick_batch_size(model, config, CPU) == expected
    assert image_bytes(config_of(cfg_scale=2), tokens) == 2 * image_bytes(config, tokens)
