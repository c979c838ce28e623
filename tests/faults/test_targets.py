"""Where a result cannot be written, every command says so before it has done anything, and leaves nothing behind."""

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.latents import save_images
from support.tiny import TINY, dis, result, trained
from support.vae import save_tiny_vae

from dis_cli.errors import DisError, StorageError, UsageError
from dis_cli.events import Started
from dis_cli.runtime.targets import require_writable

# A file system of the kernel's, where nobody makes files.
KERNEL = Path("/sys")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, an export, a VAE, images and their latents."""
    made = tmp_path_factory.mktemp("made")
    trained(made / "run", "train.steps=1", "sample.steps=2", "sample.sampler=ddim")
    assert dis("checkpoint", "export", made / "run", "--out", made / "x.pt", "-q") == 0
    save_tiny_vae(made / "vae")
    encode = ["encode-latents", "--data", save_images(made / "images", 4), "--vae", made / "vae", "--image-size", 16]
    assert dis(*encode, "--out", made / "latents", "-q") == 0
    return made


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with things in it that are in the way of results."""
    place = tmp_path / "place"
    (place / "folder").mkdir(parents=True)
    (place / "folder" / "text").write_text("precious")
    (place / "file").write_text("precious")
    os.mkfifo(place / "pipe")
    (place / "nowhere").symlink_to(place / "gone")
    monkeypatch.chdir(place)
    with socket.socket(socket.AF_UNIX) as own:
        own.bind("socket")
        yield place


# What is written, and the command up to where; its ending, when it is a file that must have one.
COMMANDS: dict[str, tuple[str, list[object]]] = {
    "samples": ("", ["sample", "--ckpt", "run", "-n", 2, "--out"]),
    "samples in an npz": (".npz", ["sample", "--ckpt", "run", "-n", 2, "--out"]),
    "a score": (".json", ["eval-fid", "--ckpt", "run", "-n", 20, "--out"]),
    "a score of images": (
        ".json",
        ["eval-fid", "--images", "images", "--ref", "images", "--features", "digits", "--out"],
    ),
    "scored images": ("", ["eval-fid", "--ckpt", "run", "-n", 20, "--save-images"]),
    "scored images in a zip": (".zip", ["eval-fid", "--ckpt", "run", "-n", 20, "--save-images"]),
    "a sweep": (".json", ["eval-fid", "--ckpt", "run", "-n", 20, "--sweep", "steps=2,3", "--out"]),
    "statistics": (".npz", ["eval-fid", "stats", "--data", "images", "--features", "digits", "--out"]),
    "latents": ("", ["encode-latents", "--data", "images", "--vae", "vae", "--image-size", 16, "--out"]),
    "a grid of latents": (".png", ["encode-latents", "--decode", "latents", "--vae", "vae", "--out"]),
    "an export": (".safetensors", ["checkpoint", "export", "run", "--out"]),
    "an exported folder": ("", ["checkpoint", "export", "run", "--format", "diffusers", "--out"]),
    "an imported run": ("", ["checkpoint", "import", "x.pt", "--out"]),
    "a plot": (".png", ["flops", "--size", "s", "--resolutions", "256", "--plot"]),
    "a run": ("", ["train", *TINY, "train.steps=1", "--out"]),
}


def told(made: Path, words: list[object]) -> list[object]:
    return [made / word if isinstance(word, str) and (made / word).exists() else word for word in words]


def targets(ending: str) -> dict[str, str]:
    """What stands in the way, and a path there."""
    inside = {
        "below a file": f"file/x{ending}",
        "below a missing folder below a file": f"file/x/y{ending}",
        "below a link to nothing": f"nowhere/x{ending}",
        "a long name": "x" * 300 + ending,
        "a long name in a missing folder": "new/" + "x" * 300 + ending,
        "the kernel's folder": str(KERNEL / f"x{ending}"),
        "a folder with files": "folder",
        "a device": "/dev/null",
        "a full device": "/dev/full",
        "a pipe": "pipe",
        "a socket": "socket",
        "a link to nothing": "nowhere",
        "no text": "",
        "a dash": "-",
    }
    # The name is of something else.
    others = [other for other in (".npy", ".tar", ".PNG", ".jpg", ".tgz") if other.lower() != ending]
    inside |= {f"a name of {other}": f"new/x{other}" for other in others}
    return inside | ({} if ending == "" else {"a slash": f"new/x{ending}/"})


def traces(place: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in place.rglob("*") if not path.is_dir())


@pytest.mark.parametrize("what", COMMANDS)
def test_told_before_the_work(
    what: str, made: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(Started, "__init__", begin)
    ending, words = COMMANDS[what]
    before = traces(place), sorted(place.rglob("*"))
    for name, path in targets(ending).items():
        # A run is continued in a folder with files; other commands say whether they know what is in it.
        if what == "a run" and name == "a folder with files":
            continue
        status = dis(*told(made, words), path)
        error = capsys.readouterr().err
        assert status in (1, 2), (name, status, error)
        assert error.count("error:") == 1, (name, error)
        assert "hint:" in error, (name, error)
        assert "unexpected" not in error, (name, error)
        assert "begun" not in error, (name, error)
        assert (traces(place), sorted(place.rglob("*"))) == before, name


@pytest.mark.parametrize("what", [name for name, (ending, _) in COMMANDS.items() if ending])
def test_endings_in_capitals_and_new_folders(what: str, made: Path, place: Path) -> None:
    ending, words = COMMANDS[what]
    path = place / "new" / "er" / f"x{ending.upper()}"
    assert dis(*told(made, words), path, *([] if words[0] == "flops" else ["-q"])) == 0
    assert path.is_file()


@pytest.mark.parametrize("what", ["samples", "scored images", "an exported folder", "an imported run"])
def test_an_empty_folder_is_taken_and_a_link_to_one_is_followed(what: str, made: Path, place: Path) -> None:
    for name in ("empty", "linked"):
        (place / name).mkdir()
    (place / "link").symlink_to("linked")
    for name in ("empty", "link"):
        assert dis(*told(made, COMMANDS[what][1]), place / name, "-q") == 0
        assert any((place / name).iterdir())
    assert (place / "link").is_symlink()


@pytest.mark.parametrize("what", ["samples", "scored images", "an exported folder", "an imported run"])
def test_the_current_folder_keeps_its_place(
    what: str, made: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "empty").mkdir()
    monkeypatch.chdir(place / "empty")
    for path in (".", place / "empty"):
        assert dis(*told(made, COMMANDS[what][1]), path) == 2
        assert "is the current folder" in capsys.readouterr().err
    assert list((place / "empty").iterdir()) == []


def test_samples_of_another_name_than_they_are(made: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sample", "--ckpt", made / "run", "-n", 2, "-q", "--out"]
    assert dis(*command, "x.tar.gz") == 2
    error = capsys.readouterr().err
    assert "allowed: a name that ends in .npz or .zip, or in neither" in error
    assert "Give `--out x`" in error
    # A version number is no ending, and a folder that is there is a folder whatever it is called.
    (place / "old.png").mkdir()
    for name in ("cfg-1.5", "x", "old.png"):
        assert dis(*command, name) == 0
        assert (place / name / "grid.png").is_file()
    assert dis(*command, "x.NPZ", "--format", "zip") == 2
    assert dis("checkpoint", "export", made / "run", "--out", "x.pt", "--format", "safetensors") == 2
    assert "contradicts" in capsys.readouterr().err


def test_an_export_that_cannot_take_the_place_of_another(
    made: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["checkpoint", "export", made / "run", "-q", "--out", place / "out"]
    assert dis(*command) == 0
    (place / "out.new").mkdir()
    assert dis(*command, "--force") == 2
    assert "is where the new export would be made" in capsys.readouterr().err
    (place / "out.new").rmdir()
    assert dis(*command, "--force") == 0


def test_a_run_whose_own_folders_take_nothing(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no path is given, the run's own is looked at as well."""
    run = shutil.copytree(made / "run", tmp_path / "run")
    for name in ("samples", "evaluations"):
        shutil.rmtree(run / name)
        (run / name).write_text("precious")
    monkeypatch.setattr(Started, "__init__", lambda *_, **__: pytest.fail("the work has begun"))
    for command in (["sample", "-n", 2], ["eval-fid", "-n", 20], ["eval-fid", "-n", 20, "--sweep", "steps=2,3"]):
        assert dis(*command, "--ckpt", run) == 1
        assert "is not a folder" in capsys.readouterr().err


def test_what_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "link.json").symlink_to(tmp_path / "full" / "x")
    for path, kind in {
        "new/er/x.json": "file",
        "full/x": "file",
        "link.json": "file",
        "x.v2": "file",
        "x": "folder",
        "x.5": "folder",
        "full": "filled folder",
    }.items():
        require_writable(tmp_path / path, kind, suffixes=(".json",))
    assert {path.name for path in tmp_path.rglob("*")} == {"full", "x", "link.json"}


@pytest.mark.parametrize(
    ("path", "kind", "error", "message"),
    [
        ("/dev/null", "file", UsageError, "exists and is a device; a file is to be written"),
        ("/", "file", UsageError, "exists and is a folder; a file is to be written"),
        ("/", "folder", UsageError, "the place where a disk is mounted"),
        (KERNEL / "x", "file", StorageError, "Cannot write `/sys/x`"),
        (KERNEL / "x" / "y", "folder", StorageError, "Cannot create `/sys/x/y`"),
        (KERNEL, "filled folder", StorageError, "Cannot create `/sys`"),
        ("x" * 256, "file", StorageError, "File name too long"),
        ("x.csv", "file", UsageError, "ends in .csv, but the result is .json"),
        ("x.zip", "filled folder", UsageError, "ends in .zip, but the result is a folder"),
    ],
)
def test_what_is_said(path: Path | str, kind: str, error: type[DisError], message: str) -> None:
    suffixes = (".json",) if kind == "file" else ()
    with pytest.raises(error) as raised:
        require_writable(Path(path), kind, suffixes=suffixes)
    assert message in raised.value.message
    assert raised.value.hint


def test_json_of_a_refused_start(made: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dis("sample", "--ckpt", made / "run", "--out", "pipe", "--json") == 2
    assert result(capsys)["error"]["exit_code"] == 2


@pytest.mark.parametrize("known", [True, False])
def test_a_file_system_that_knows_no_nameless_files(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the attempt has a name for a moment."""
    opened: list[str] = []
    usual = os.open

    def noted(path: Path, flags: int, mode: int = 0o777) -> int:
        if not known and Path(path).is_dir():
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        opened.append(Path(path).name)
        return usual(path, flags, mode)

    monkeypatch.setattr(os, "open", noted)
    require_writable(tmp_path / "new" / "x", "file")
    assert len(opened) == 1
    assert opened[0].startswith(".tmp-") != known
    assert list(tmp_path.iterdir()) == []
