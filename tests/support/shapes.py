"""Random small models."""

from hypothesis import strategies as st

from dis_cli.models.dis.sizes import CONDITIONINGS, DIRECTIONS, SCAN_ORDERS, SKIPS, Shape


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Models that are quick to build, of all kinds: classes or none, one block and more, odd widths, ablations."""
    patch_size = draw(st.integers(1, 3))
    return Shape(
        image_size=patch_size * draw(st.integers(1, 9)),
        patch_size=patch_size,
        in_channels=draw(st.integers(1, 4)),
        embed_dim=draw(st.integers(4, 40)),
        depth=draw(st.sampled_from([1, 3, 5])),
        num_classes=draw(st.sampled_from([0, 1, 5])),
        learn_sigma=draw(st.booleans()),
        d_state=draw(st.sampled_from([4, 16])),
        d_conv=draw(st.sampled_from([2, 3, 4, 9])),
        expand=draw(st.integers(1, 3)),
        skip=draw(st.sampled_from(SKIPS)),
        directions=draw(st.sampled_from(DIRECTIONS)),
        conditioning=draw(st.sampled_from(CONDITIONINGS)),
        scan_order=draw(st.sampled_from(SCAN_ORDERS)),
    )
