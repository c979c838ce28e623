"""What all tests share: shapes in annotations are checked, and a test process computes on one thread
and leaves the user's cache alone. What tests have counted is shown at the end."""

import os
import signal
from collections.abc import Callable, Generator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import support.typecheck  # noqa: F401 - the hook names it, and does not import it
from jaxtyping import install_import_hook

from dis_cli.scan.engines.table import ENGINES

INTERPRETED = ENGINES["triton"].is_interpreted()

# Before anything of these rooms is imported, so that the annotations of their arrays are checked at every call. Not in
# Triton's interpreter, which reads the source of its kernels and finds that of the checks.
if not INTERPRETED:
    install_import_hook(
        [f"dis_cli.{room}" for room in ("scan", "models", "diffusion", "training", "metrics", "data", "codecs")],
        "support.typecheck.checked",
    )

# unit/test_triton.py runs these in a process of their own.
collect_ignore = [] if INTERPRETED else ["interpreter"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The two longest tests first: as the last ones they would leave one of two workers without work."""
    items.sort(key=lambda item: "test_triton.py" not in item.nodeid)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["DIS_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _hears_hangups() -> None:
    """Under nohup SIGHUP is ignored, which the commands that tests start would inherit and respect."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _no_faults() -> Generator[None]:
    """Whatever a test injects ends with it."""
    from dis_cli.runtime.faults import inject

    yield
    inject(None)


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Callable[[str, object], None]:
    """Shows a line on what a test has counted or measured, such as "kills survived 8/8", at the end of all tests."""

    def tell(what: str, result: object) -> None:
        record_property(what, str(result))
        print(what, result)  # noqa: T201  beside the test's other output when it fails

    return tell


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    lines = [
        f"{report.nodeid.rpartition('/')[2]}: {what} {result}"
        for report in reports
        if getattr(report, "when", None) == "call"
        for what, result in report.user_properties
    ]
    if lines:
        terminalreporter.section("counted")
        terminalreporter.write("".join(f"{line}\n" for line in sorted(lines)))
