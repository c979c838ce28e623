"""The study's page says what its results say, whichever way they go."""

import pytest
from study.page import (
    DIGITS,
    PAGE,
    RESULTS,
    Result,
    Times,
    page,
    points,
    power_law,
    read_results,
    read_times,
    significant,
    spearman,
)
from study.run import missing, read_study

MACHINE = {"cpu": "a CPU", "cores": 2, "kernel": "avx2", "torch": "2.14.1"}


def result(name: str, macs: float, eps_mse: float, *settings: str, group: str = "scaling", **more: object) -> Result:
    return {
        "name": name, "group": group, "family": "dis", "settings": settings, "macs": macs, "published_macs": macs / 8,
        "parameters": macs / 50, "eps_mse": eps_mse, "frechet_mnist": 400 * eps_mse, "seconds_per_step": 0.1,
        "images_seen": 38400, "machine": MACHINE, "commit": "0123456789abcdef", **more,
    }  # fmt: skip


def sizes(errors: list[float]) -> dict[str, Result]:
    names = [f"scale-p{patch}-{width}" for patch in (8, 4) for width in ("64x5", "96x7", "144x9")]
    rows = zip(names, (4e6, 10e6, 28e6, 13e6, 38e6, 104e6), errors, strict=True)
    return {name: result(name, macs, error, f"model.patch_size={name[7]}") for name, macs, error in rows}


def test_the_page_is_what_the_results_say() -> None:
    results = read_results(RESULTS)
    assert PAGE.read_text() == page(results, read_results(DIGITS), len(missing(read_study(PAGE.parent))), read_times())


def test_the_verdict_on_scaling_follows_the_figures() -> None:
    text = page(sizes([0.2, 0.15, 0.12, 0.14, 0.1, 0.08]), {}, 3, Times())
    assert "**Yes**, for 6 sizes" in text
    assert "Within each patch size the error falls" in text
    assert "**3 of 9 runs are still to be made.**" in text
    text = page(sizes([0.1, 0.15, 0.12, 0.14, 0.12, 0.13]), {}, 0, Times())
    assert "**Not shown**, for 6 sizes" in text
    assert "Within patch 8 and patch 4 the error does not fall" in text
    few = dict(list(sizes([0.2, 0.15, 0.12, 0.14, 0.1, 0.08]).items())[:3])
    assert "Only 3 of 9 sizes have finished: no verdict yet." in page(few, {}, 6, Times())


def test_a_peer_that_wins_is_named_in_bold() -> None:
    rows = {family: {**result(family, 4e7, error, group="peers"), "family": family}
            for family, error in (("dis", 0.10), ("dit", 0.12), ("uvit", 0.13), ("unet", 0.08))}  # fmt: skip
    assert "lower than that of DiT and U-ViT, and **higher than that of U-Net**" in page(rows, {}, 0, Times())


def test_peers_are_read_at_equal_seconds() -> None:
    def peer(family: str, *errors: float) -> Result:
        way = [[600 * (place + 1), error] for place, error in enumerate(errors)]
        return {**result(family, 4e7, errors[-1], group="peers"), "family": family, "eps_mse_on_the_way": way}

    rows = {"dis": peer("dis", 0.4, 0.3, 0.2, 0.1), "unet": peer("unet", 0.25, 0.15, 0.11, 0.09)}
    # 2,400 steps take the DiS 240 s and the U-Net 480 s: after 240 s that is at step 1,200, after 120 s at 600.
    text = page(rows, {}, 0, Times(mnist={"dis": 0.1, "unet": 0.2}))
    assert "DiS 100 ms, U-Net 200 ms" in text
    for row in ("| 4.0 | 0.1000 | 0.1500 |", "| 2.0 | 0.3000 | 0.2500 |", "| 1.0 | 0.4000 | - |"):
        assert row in text
    assert "equal seconds of one thread" not in page(rows, {}, 0, Times())


def test_seeds_are_one_point_with_a_spread() -> None:
    rows = {name: result(name, 1e6, error, group="ablations") for name, error in (("a", 0.1), ("a-seed1", 0.2))}
    (point,) = points(rows, "ablations")
    assert point.name == "a"
    assert point.seeds == 2
    assert point.text("eps_mse") == "0.150 ± 0.071"
    assert point.text("class_accuracy") == "-"


def test_ranks_and_the_power_law() -> None:
    found = points(sizes([0.2, 0.15, 0.12, 0.14, 0.1, 0.08]), "scaling")
    assert spearman(found, "macs", "eps_mse") == pytest.approx(-1)
    swapped = points(sizes([0.15, 0.2, 0.12, 0.14, 0.1, 0.08]), "scaling")
    # One swap of neighbours among six: 1 - 6 * 2 / (6 * 35).
    assert spearman(swapped, "macs", "eps_mse") == pytest.approx(-33 / 35)
    assert spearman(found[:3], "macs", "eps_mse") is None
    exact = points({str(c): result(str(c), c * 1e6, 0.5 * c**-0.25) for c in (2, 8, 32, 128)}, "scaling")
    assert power_law(exact, "eps_mse") == pytest.approx((0.5, 0.25))


@pytest.mark.parametrize(
    ("value", "text"), [(0.0949, "0.0949"), (16.61, "16.6"), (1234567, "1,234,567"), (0, "0"), (float("inf"), "inf")]
)
def test_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text
