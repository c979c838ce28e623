"""Running Python in a process of its own, as a user would: without what the tests' configuration installs."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python *arguments`` with these changes to the environment; the tests' packages can be imported."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DIS_")}
    variables = inherited | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], env=variables | environment, capture_output=True, text=True, check=False
    )
