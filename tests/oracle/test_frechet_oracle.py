import pytest
from support.oracle import load

from dis_cli.metrics.frechet import frechet_distance
from dis_cli.metrics.statistics import statistics


# rankdef has 20 vectors of 32 features. scipy's square root ("fid") and eigenvalues ("fid_eigen") of the published
# code differ there by 3e-9 from each other.
@pytest.mark.parametrize("case", ["full", "rankdef"])
@pytest.mark.parametrize("method", ["fid", "fid_eigen"])
@pytest.mark.parametrize("order", [("f1", "f2"), ("f2", "f1")])
def test_published_distances(case: str, method: str, order: tuple[str, str]) -> None:
    arrays = load("frechet_distance_f64")
    a, b = (statistics(arrays[f"{case}.{name}"]) for name in order)
    assert frechet_distance(a, b) == pytest.approx(float(arrays[f"{case}.{method}"]), rel=1e-8)


def test_a_set_has_no_distance_to_itself() -> None:
    arrays = load("frechet_distance_f64")
    a, b = (statistics(arrays[f"same.{name}"]) for name in ("f1", "f2"))
    # Two traces less twice an equal one leave their rounding, which depends on the processor's linear algebra.
    assert 0 <= frechet_distance(a, b) < 1e-12 * a.covariance.trace()
