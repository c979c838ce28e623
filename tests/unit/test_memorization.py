import numpy as np
import pytest
import torch
from torch import Tensor

from dis_cli.data.published.digits import DigitsSource
from dis_cli.metrics import memorization
from dis_cli.metrics.baselines import ClassGaussians
from dis_cli.metrics.memorization import copy_share, nearest_distances


def images(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 4, 2), dtype=torch.uint8, generator=generator)


def brute_force(queries: Tensor, references: Tensor, *, skip_self: bool = False) -> list[float]:
    result: list[float] = []
    for i, query in enumerate(queries.numpy().astype(int)):
        squares = [
            ((query - reference) ** 2).sum()
            for j, reference in enumerate(references.numpy().astype(int))
            if not (skip_self and i == j)
        ]
        result.append(float(np.sqrt(min(squares))))
    return result


@pytest.mark.parametrize("rows", [1, 4, 1024])
def test_nearest_distances_are_those_of_brute_force(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorization, "MAX_ROWS", rows)
    a, b = images(10, 0), images(13, 1)
    assert nearest_distances(a, b).tolist() == brute_force(a, b)
    assert nearest_distances(b, b, skip_self=True).tolist() == brute_force(b, b, skip_self=True)
    assert nearest_distances(b, b).tolist() == [0.0] * 13


def test_shares_by_hand() -> None:
    # one pixel each; neighbours of the training images at 1, 1, 4, 10, 10: median 4, 5 % quantile 1
    train = torch.tensor([0, 1, 5, 100, 110], dtype=torch.uint8).reshape(5, 1, 1, 1)
    generated = torch.tensor([0, 8, 9, 104, 200], dtype=torch.uint8).reshape(5, 1, 1, 1)
    # nearest training images at 0, 3, 4, 4, 90; "nearer" excludes equal
    share = copy_share(generated, train)
    assert (share.median, share.low) == (0.4, 0.2)


def test_copies_are_found() -> None:
    train = images(30, 0)
    share = copy_share(train[:7], train)
    assert (share.median, share.low) == (1.0, 1.0)


def test_real_test_digits_are_not_copies() -> None:
    train, test = (
        torch.stack([(source.load(i, None) + 1) * 127.5 for i in range(len(source))]).round().to(torch.uint8)
        for source in (DigitsSource("train"), DigitsSource("test"))
    )
    share = copy_share(test, train)
    assert share.median == pytest.approx(0.476, abs=0.005)
    assert share.low == pytest.approx(0.038, abs=0.005)


@pytest.mark.parametrize(("num_generated", "num_train"), [(0, 5), (5, 1)])
def test_too_few_images(num_generated: int, num_train: int) -> None:
    with pytest.raises(ValueError, match=f"got {num_generated} and {num_train}"):
        copy_share(images(num_generated, 0), images(num_train, 1))


def test_class_gaussians_have_each_classes_mean_and_covariance() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    # far from 0 and 255, so that nothing is cut
    real = 128 + 12 * rng.standard_normal((120, 6)) @ rng.standard_normal((6, 6)) / 3 + 20 * labels[:, None]
    pixels = np.rint(real).astype(np.uint8).reshape(120, 3, 2, 1)
    drawn_labels = np.tile([1, 0], 20_000)
    drawn = ClassGaussians(torch.from_numpy(pixels), labels).sample(drawn_labels, seed=0).numpy()
    assert drawn.shape == (40_000, 3, 2, 1)
    for label in (0, 1):
        got, expected = (
            x[y == label].reshape(-1, 6).astype(float) for x, y in ((drawn, drawn_labels), (pixels, labels))
        )
        np.testing.assert_allclose(got.mean(axis=0), expected.mean(axis=0), atol=0.5)
        scale = np.cov(expected, rowvar=False).max()
        np.testing.assert_allclose(np.cov(got, rowvar=False), np.cov(expected, rowvar=False), atol=0.04 * scale)


def test_class_gaussians_depend_on_the_seed_only() -> None:
    labels = np.arange(20) % 2
    gaussians = ClassGaussians(images(20, 0), labels)
    assert torch.equal(gaussians.sample(labels, seed=3), gaussians.sample(labels, seed=3))
    assert not torch.equal(gaussians.sample(labels, seed=3), gaussians.sample(labels, seed=4))


def test_a_class_without_images_has_no_gaussian() -> None:
    with pytest.raises(ValueError, match="class 2 has no images"):
        ClassGaussians(images(4, 0), np.array([0, 0, 1, 1])).sample(np.array([0, 2]), seed=0)
    with pytest.raises(ValueError, match="one per image"):
        ClassGaussians(images(4, 0), np.array([0, 1]))
