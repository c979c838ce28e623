"""Bad images among good ones: all are named before the work starts, and the rest is used in full."""

from pathlib import Path

import pytest
import torch
from support.pictures import BAD_FILES, CLASSES, NUM_GOOD, Table, bilevel_png, make_table, noise, outcome
from support.processes import python
from support.tiny import TINY, dis, result

from dis_cli.data.decode import printable
from dis_cli.data.images.files import FileSource, FolderFiles
from dis_cli.data.images.verify import check_images
from dis_cli.errors import DataError
from dis_cli.events import Event, Note, Progress, Started
from dis_cli.runtime.signals import StopRequest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def table(folder: Path) -> Table:
    return make_table(folder)


@pytest.fixture
def source(table: Table, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileSource:
    monkeypatch.setenv("DIS_CACHE_DIR", str(tmp_path / "cache"))
    return FileSource(FolderFiles(folder), image_size=16)


def assert_all_listed(message: str, table: Table) -> None:
    first, *lines = message.splitlines()
    assert first.startswith(f"{len(table.bad)} of {len(table.bad) + NUM_GOOD + len(table.used)} images cannot be used")
    assert len(lines) == len(table.bad)
    for name, reason in table.bad.items():
        listed = [line for line in lines if line.startswith(f"  {printable(name)}: ")]
        assert len(listed) == 1, name
        assert reason in listed[0]


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_all_bad_images_are_listed_before_the_work(source: FileSource, table: Table, num_workers: int) -> None:
    events: list[Event] = []
    check = check_images(source, on_bad="stop", num_workers=num_workers, stop=StopRequest())
    with pytest.raises(DataError) as caught:
        # what was taken in before the error stays
        events.extend(check)
    assert_all_listed(caught.value.message, table)
    assert "--on-bad skip" in (caught.value.hint or "")
    assert "data.on_bad=skip" in (caught.value.hint or "")
    assert isinstance(events[0], Started)
    assert all(isinstance(event, Progress) for event in events[1:])
    assert events[-1] == Progress(done=len(source), total=len(source), unit="images")


def test_skipping_uses_all_others_with_their_labels(source: FileSource, table: Table) -> None:
    events, kept = outcome(check_images(source, on_bad="skip", num_workers=2, stop=StopRequest()))
    names = [kept.sample_name(index) for index in range(len(kept))]
    assert sorted(names) == sorted(table.good + table.used)
    assert [CLASSES[label] for label in kept.labels] == [name.partition("/")[0] for name in names]
    assert kept.class_names == CLASSES
    places = {source.sample_name(index): index for index in range(len(source))}
    grids = [kept.load(index, None) for index in range(len(kept))]
    for name, grid in zip(names, grids, strict=True):
        assert torch.equal(grid, source.load(places[name], None))
    assert len({grid.numpy().tobytes() for grid in grids}) == len(grids)

    notes = [event for event in events if isinstance(event, Note)]
    assert [note.level for note in notes] == ["warning"] * 3
    for message, remark in zip(sorted(note.message for note in notes[:-1]), sorted(table.remarks), strict=True):
        assert message.startswith(remark)
        assert message.endswith(": 1 images")
    assert_all_listed(notes[-1].message, table)


MEASURE = """
import sys
from pathlib import Path
from dis_cli.data.images.files import FileSource, FolderFiles
from dis_cli.errors import DataError
from dis_cli.runtime.signals import StopRequest
from dis_cli.data.images.verify import check_images

def megabytes(key):
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) / 1000

def check(folder):
    source = FileSource(FolderFiles(Path(folder)), image_size=16)
    try:
        list(check_images(source, on_bad="stop", num_workers=2, stop=StopRequest()))
    except DataError as error:
        return error.message

# whatever is made once for all images
check(sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")
before = megabytes("VmRSS")
message = check(sys.argv[2])
print(megabytes("VmHWM") - before, message)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the process's peak from Linux's /proc")
@pytest.mark.parametrize("large", ["hundred.png", "bomb.png", "within the limit"])
def test_images_of_extreme_size_take_no_memory(tmp_path: Path, large: str) -> None:
    for folder in ("small", "large"):
        (tmp_path / folder).mkdir()
        noise().save(tmp_path / folder / "a.png")
    # one that is decoded shows that the measure sees it
    content = BAD_FILES[large][0] if large in BAD_FILES else bilevel_png(8_900, rows=8_900)
    (tmp_path / "large" / "b.png").write_bytes(content)
    done = python("-c", MEASURE, *(str(tmp_path / name) for name in ("small", "large")), DIS_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    growth, message = done.stdout.split(maxsplit=1)
    if large in BAD_FILES:
        assert "over the limit of 80 megapixels" in message
        assert float(growth) < 64
    else:
        assert message.strip() == "None"
        assert float(growth) > 64


def training(folder: Path, out: Path, *overrides: object) -> list[object]:
    settings = ["data.source=folder", "model.image_size=16", "model.num_classes=2", "train.steps=2"]
    return ["train", "--preset", "dis-s-cifar", "--data", folder, "--out", out, "-q", *TINY, *settings, *overrides]


def test_training_stops_before_anything_is_written(table: Table, folder: Path, tmp_path: Path, capsys) -> None:
    assert dis(*training(folder, tmp_path / "run", "--json")) == 1
    assert_all_listed(result(capsys)["error"]["message"], table)
    assert not (tmp_path / "run").exists()


def test_training_can_go_on_without_them(table: Table, folder: Path, tmp_path: Path, capsys) -> None:
    for steps in (1, 2):
        command = training(folder, tmp_path / "run", "data.on_bad=skip", f"train.steps={steps}")
        # quiet only hides what is said on the way
        assert dis(*[argument for argument in command if argument != "-q"]) == 0
        said = capsys.readouterr().err
        assert f"images {NUM_GOOD + len(table.used)}" in said
        assert f"{len(table.bad)} of" in said
    # the others are not the images that the run was trained on
    assert dis(*training(folder, tmp_path / "run", "data.check=false", "train.steps=3")) == 2
    assert "are not those that" in capsys.readouterr().err
