"""The named sizes."""

import pytest

from dis_cli.models.dis.sizes import SIZES


def test_sizes_are_the_documented_ones() -> None:
    assert {name: (size.embed_dim, size.depth) for name, size in SIZES.items()} == {
        "xs": (96, 7),
        "s": (368, 25),
        "b": (768, 25),
        "m": (768, 49),
        "l": (1024, 49),
        "xl": (1152, 65),
        "h": (1536, 49),
    }


def test_a_size_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        SIZES["s"].depth = 27  # pyright: ignore[reportAttributeAccessIssue]
