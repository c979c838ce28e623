"""The architecture page and the import rule describe the package as it is."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dis_cli"
PAGE = (PACKAGE / "README.md").read_text()
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())


def test_every_room_is_on_the_page() -> None:
    picture = PAGE.split("## The rooms")[1].split("## The tensors")[0]
    assert [room for room in ROOMS if room not in picture] == []


def test_every_file_named_on_the_page_exists() -> None:
    names = {name for name in re.findall(r"`([a-z_/]+\.(?:py|toml|md))`", PAGE) if "/" in name}
    assert len(names) > 10
    assert [name for name in names if not ((PACKAGE / name).exists() or (ROOT / name).exists())] == []


def test_every_room_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"]) - {"dis_cli", "dis_cli.presets"}
    folders = {file.parent.relative_to(ROOT) for file in PACKAGE.rglob("__init__.py")} - {Path("dis_cli")}
    assert listed == {".".join(folder.parts) for folder in folders}


def test_no_folder_is_crowded_and_no_file_is_long() -> None:
    files = list(PACKAGE.rglob("*.py"))
    crowded = {
        str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in {file.parent for file in files}
    }
    assert {folder: count for folder, count in crowded.items() if count > 15} == {}
    assert [str(file.relative_to(ROOT)) for file in files if len(file.read_text().splitlines()) > 400] == []


def test_the_top_level_is_the_agreed_one() -> None:
    allowed = {
        "dis_cli",
        "presets",
        "tests",
        "pyproject.toml",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
        "NOTICE",
    }
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in tracked.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} == allowed


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("scan", "import dis_cli.training"),
        ("config", "import torch"),
        ("diffusion", "import pydantic"),
        ("workflows", "import rich"),
        ("data", "import dis_cli.metrics"),
    ],
)
def test_a_wrong_import_breaks_the_contracts(room, line, tmp_path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "dis_cli", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "dis_cli" / room / "wrong.py").write_text(f"{line}\n")
    command = [
        sys.executable,
        "-c",
        # The copy in the current folder, not the installed package.
        "import sys; sys.path.insert(0, ''); from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--no-cache",
    ]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert checked.returncode == 1, checked.stdout + checked.stderr
    assert "BROKEN" in checked.stdout


def test_the_public_face() -> None:
    code = "import sys, dis_cli; assert 'torch' not in sys.modules; print(dis_cli.__version__)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    from dis_cli.models import DiS
    from dis_cli.scan import causal_conv_silu, selective_scan

    assert all(callable(name) for name in (DiS, causal_conv_silu, selective_scan))
    import dis_cli.models

    with pytest.raises(AttributeError, match="no attribute 'UNet'"):
        _ = dis_cli.models.UNet
