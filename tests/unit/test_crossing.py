"""From how many patches on a DiS takes fewer operations than a transformer, whose attention grows with the square."""

from dataclasses import asdict

import pytest

from dis_cli.models.crossing import cheaper_from
from dis_cli.models.dis.sizes import Shape
from dis_cli.models.families import FAMILIES
from dis_cli.models.transformers.shape import TransformerShape


def transformer(family: str, size: str) -> TransformerShape:
    row = FAMILIES[family]
    return row.shape(32, 2, 4, num_classes=1000, **asdict(row.sizes[size]))


@pytest.mark.parametrize(("family", "size"), [("dit", "b"), ("uvit", "s")])
def test_attention_is_what_grows_with_the_square(family: str, size: str) -> None:
    shape = transformer(family, size)
    costs = [FAMILIES[family].cost(shape, patches) for patches in (1000, 2000)]
    attention = [cost.parts["attention"].macs for cost in costs]
    lengths = [cost.tokens for cost in costs]
    assert attention[0] * lengths[1] ** 2 == attention[1] * lengths[0] ** 2
    fixed = [cost.macs - part for cost, part in zip(costs, attention, strict=True)]
    assert fixed[0] < 1.01 * (fixed[1] - fixed[0])


@pytest.mark.parametrize(("family", "size"), [("dit", "xl"), ("uvit", "l")])
def test_dis_is_cheaper_from_there_on_and_not_before(family: str, size: str) -> None:
    dis = FAMILIES["dis"]
    shape, other = Shape(32, 2, 4, num_classes=1000, **asdict(dis.sizes[size])), transformer(family, size)

    def ours(patches: int) -> int:
        return dis.cost(shape, patches).macs

    def theirs(patches: int) -> int:
        return FAMILIES[family].cost(other, patches).macs

    first = cheaper_from(ours, theirs)
    assert first is not None
    assert ours(first - 1) >= theirs(first - 1)
    assert all(ours(patches) < theirs(patches) for patches in range(first, 4 * first, 97))


def test_never_and_always_cheaper() -> None:
    assert cheaper_from(lambda patches: patches + 1, lambda patches: patches) is None
    assert cheaper_from(lambda patches: patches, lambda patches: patches + 1) == 1
