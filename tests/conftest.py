"""What all tests share: shapes in annotations are checked, and a test process computes on one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import support.typecheck  # noqa: F401 - the hook names it, and does not import it
from jaxtyping import install_import_hook

# Before anything of these rooms is imported, so that the annotations of their arrays are checked at every call.
install_import_hook(
    [f"dis_cli.{room}" for room in ("scan", "models", "diffusion", "training", "metrics", "data", "codecs")],
    "support.typecheck.checked",
)
