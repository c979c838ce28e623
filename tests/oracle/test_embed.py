"""Time embedding and patch order against arrays recorded from the published code."""

import pytest
import torch
from support.oracle import load

from dis_cli.models.embed import PatchEmbed, timestep_embedding, unpatchify


@pytest.mark.parametrize("dim", [32, 33, 48, 368])
@pytest.mark.parametrize("kind", ["t_int", "t_frac"])
def test_timestep_embedding(kind, dim) -> None:
    recorded = load("timestep_embedding_f32")
    got = timestep_embedding(recorded[kind], dim)
    assert got.dtype == torch.float32
    # The angle is the timestep times a frequency, and processors differ in the last bit of a float32 exponential.
    allowed = 1e-6 + recorded[kind][:, None].float() * 2**-24
    assert ((got - recorded[f"{kind}.dim{dim}"]).abs() <= allowed).all()


def test_unpatchify() -> None:
    recorded = load("patch_order")
    assert torch.equal(unpatchify(recorded["tokens"], 2, 6), recorded["unpatchified_ch6"])


def test_patches_are_cut_row_by_row() -> None:
    recorded = load("patch_order")
    image = recorded["img"]
    embed = PatchEmbed(2, 3, 12)
    # A projection that copies the patch: rows before columns before channels, as recorded.
    with torch.no_grad():
        embed.proj.bias.zero_()
        embed.proj.weight.zero_()
        for value in range(12):
            row, column, channel = value // 6, value // 3 % 2, value % 3
            embed.proj.weight[value, channel, row, column] = 1
    torch.testing.assert_close(embed(image), recorded["patchified"])
