"""What all tests share: shapes in annotations are checked, and a test process computes on one thread
and leaves the user's cache alone."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import support.typecheck  # noqa: F401 - the hook names it, and does not import it
from jaxtyping import install_import_hook

# Before anything of these rooms is imported, so that the annotations of their arrays are checked at every call.
install_import_hook(
    [f"dis_cli.{room}" for room in ("scan", "models", "diffusion", "training", "metrics", "data", "codecs")],
    "support.typecheck.checked",
)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["DIS_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
