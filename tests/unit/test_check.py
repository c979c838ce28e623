"""The check of image files: what it remembers, and how it ends."""

import errno
import json
import os
import shutil
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from support.pictures import ODD_FILES, encoded, noise, outcome

from dis_cli.data import decode
from dis_cli.data.images import check
from dis_cli.data.images.files import FileSource, FolderFiles
from dis_cli.data.images.verify import MAX_LISTED, check_images
from dis_cli.errors import DataError, Interrupted
from dis_cli.events import Note, Progress, Started
from dis_cli.runtime.signals import StopRequest

NUM_IMAGES = 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(NUM_IMAGES):
        path = tmp_path / "set" / ("ant" if index % 2 else "bee") / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(seed=index).save(path)
    return tmp_path / "set"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read, in any order."""
    names: list[str] = []

    class Counted(FolderFiles):
        def open(self, index: int) -> Path:
            path = super().open(index)
            names.append(path.name)
            return path

    monkeypatch.setattr(__name__ + ".FolderFiles", Counted)
    return names


def run(folder, on_bad="stop", num_workers=2, stop=None):
    source = FileSource(FolderFiles(folder), image_size=16)
    return outcome(check_images(source, on_bad=on_bad, num_workers=num_workers, stop=stop or StopRequest()))


def fault(folder, **options):
    with pytest.raises(DataError) as caught:
        run(folder, **options)
    return caught.value.message


def num_remembered(cache):
    (path,) = cache.iterdir()
    return path.stat().st_size // 16 - 1


def test_what_was_found_flawless_is_not_read_again(folder, cache, opened):
    events, source = run(folder)
    assert events[0] == Started(what="check images", total=NUM_IMAGES, unit="images")
    assert [type(event) for event in events[1:]] == [Progress] * (len(events) - 1)
    assert events[-1] == Progress(done=NUM_IMAGES, total=NUM_IMAGES, unit="images")
    assert len(source) == NUM_IMAGES
    assert len(opened) == num_remembered(cache) == NUM_IMAGES
    opened.clear()
    (path,) = cache.iterdir()
    written = path.stat().st_mtime_ns
    assert len(run(folder)[1]) == NUM_IMAGES
    assert opened == []
    # and what holds nothing new is not written again
    assert path.stat().st_mtime_ns == written


def test_a_file_is_read_again_when_its_time_or_size_changes(folder, opened):
    run(folder)
    opened.clear()
    times = (folder / "ant/01.png").stat()
    os.utime(folder / "ant/01.png", ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    times = (folder / "bee/02.png").stat()
    with (folder / "bee/02.png").open("ab") as file:
        file.write(b"\0")
    os.utime(folder / "bee/02.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    (folder / "bee/04.png").rename(folder / "bee/renamed.png")
    run(folder)
    assert sorted(opened) == ["01.png", "02.png", "renamed.png"]
    opened.clear()
    run(folder)
    assert opened == []


def test_a_file_that_changes_while_it_is_checked_is_read_again(folder, opened, monkeypatch):
    def replaced_when_opened(self: FolderFiles, index: int) -> Path:
        times = self._file(index).stat()
        os.utime(self._file(index), ns=(times.st_atime_ns, times.st_mtime_ns + 1))
        return self._file(index)

    with monkeypatch.context() as patch:
        patch.setattr(FolderFiles, "open", replaced_when_opened)
        run(folder)
    run(folder)
    assert len(opened) == NUM_IMAGES


def test_a_file_that_became_bad_is_found_however_it_was_replaced(folder, tmp_path):
    run(folder)
    whole = (folder / "ant/01.png").read_bytes()
    times = (folder / "ant/01.png").stat()
    # the same size, another time
    (folder / "ant/01.png").write_bytes(bytes(len(whole)))
    os.utime(folder / "ant/01.png", ns=(times.st_atime_ns, times.st_mtime_ns + 1_000))
    assert "ant/01.png: not a PNG" in fault(folder)
    # the same time, another size
    (folder / "ant/01.png").write_bytes(whole[:-50])
    os.utime(folder / "ant/01.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "ant/01.png: " in fault(folder)
    # the file of another name that was flawless
    shutil.copy2(folder / "ant/03.png", folder / "ant/01.png")
    assert len(run(folder)[1]) == NUM_IMAGES


def test_bad_files_and_those_with_remarks_are_reported_every_time(folder, cache, opened):
    (folder / "ant/text.png").write_text("no image")
    (folder / "ant/animated.gif").write_bytes(ODD_FILES["animated.gif"][0])
    messages = []
    for _ in range(2):
        opened.clear()
        events, source = run(folder, on_bad="skip")
        assert len(source) == NUM_IMAGES + 1
        messages.append([event.message for event in events if isinstance(event, Note)])
        assert num_remembered(cache) == NUM_IMAGES
    assert sorted(opened) == ["animated.gif", "text.png"]
    assert messages[0] == messages[1]
    assert messages[0] == [
        "Only the first frame of animated images is used: 1 images",
        f"1 of 42 images cannot be used and are skipped\n  ant/text.png: not a {', '.join(decode.FORMATS)} file",
    ]
    # an error remembers what is flawless as well
    shutil.rmtree(cache)
    fault(folder)
    assert num_remembered(cache) == NUM_IMAGES


def test_files_that_are_gone_are_forgotten(folder, cache):
    run(folder)
    (folder / "ant/01.png").unlink()
    run(folder)
    assert num_remembered(cache) == NUM_IMAGES - 1
    # a part of the files says nothing of the others
    source = FileSource(FolderFiles(folder), image_size=16).without([0, 5])
    _, same = outcome(check_images(source, on_bad="stop", num_workers=1, stop=StopRequest()))
    assert same is source
    assert num_remembered(cache) == NUM_IMAGES - 1


def test_a_part_of_a_source_is_checked_alone(folder, opened):
    for name in ("01.png", "05.png"):
        (folder / "ant" / name).write_text("no image")
    source = FileSource(FolderFiles(folder), image_size=16).without([0, 1])
    assert source.sample_name(0) == "ant/05.png"
    _, kept = outcome(check_images(source, on_bad="skip", num_workers=1, stop=StopRequest()))
    assert (len(opened), len(kept)) == (NUM_IMAGES - 2, NUM_IMAGES - 3)
    assert kept.left_out == (0, 1, 2)


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"DiS: flawless 1\n" + bytes(7), np.random.default_rng(0).bytes(4096)]
)
def test_a_damaged_memory_is_ignored_and_replaced(folder, cache, opened, content):
    run(folder)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(content)
    opened.clear()
    run(folder)
    assert len(opened) == NUM_IMAGES
    assert path.read_bytes() == whole


def test_a_memory_that_is_not_sorted_makes_no_file_pass(folder, cache, opened):
    run(folder)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:16] + whole[:15:-1])
    (folder / "ant/01.png").write_text("no image")
    assert "1 of 40" in fault(folder)
    assert num_remembered(cache) == NUM_IMAGES - 1


@pytest.mark.parametrize(
    "obstacle",
    ["a file", "a folder that may not be written", "a folder in its place", "a pipe", "a file that may not be read"],
)
def test_a_memory_that_cannot_be_kept_is_no_error(folder, cache, opened, monkeypatch, obstacle):
    if obstacle == "a file":
        cache.write_text("mine")
    elif obstacle == "a folder that may not be written":
        if os.geteuid() == 0:
            # root may write anywhere, but not here
            monkeypatch.setenv("DIS_CACHE_DIR", "/proc/self/cache")
        else:
            cache.mkdir(mode=0o500)
    elif obstacle == "a file that may not be read":
        run(folder)
        opened.clear()
        # root may read any
        monkeypatch.setattr(Path, "read_bytes", lambda _: os.open(cache, os.O_WRONLY))
    else:
        run(folder)
        (path,) = cache.iterdir()
        path.unlink()
        path.mkdir() if obstacle == "a folder in its place" else os.mkfifo(path)
        opened.clear()
    for _ in range(2):
        assert len(run(folder)[1]) == NUM_IMAGES
    assert len(opened) == 2 * NUM_IMAGES
    assert not cache.is_dir() or not list(cache.glob(".tmp-*"))


def test_the_same_files_elsewhere_are_read(folder, tmp_path, cache, opened, monkeypatch):
    run(folder)
    opened.clear()
    copy = shutil.copytree(folder, tmp_path / "copy")
    run(copy)
    assert len(opened) == NUM_IMAGES
    # by another way to the same folder
    opened.clear()
    run(copy / ".." / folder.name)
    assert opened == []
    monkeypatch.chdir(tmp_path)
    run(Path("copy"))
    assert opened == []
    assert len(list(cache.iterdir())) == 2
    # even when one is taken for the memory of the other
    paths = sorted(cache.iterdir())
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)
    run(folder)
    assert len(opened) == NUM_IMAGES


def test_other_rules_and_another_pillow_read_again(folder, cache, opened, monkeypatch):
    for name, value in (("RULES", decode.RULES + 1), ("PIL", type("PIL", (), {"__version__": "0.1"}))):
        run(folder)
        opened.clear()
        with monkeypatch.context() as patch:
            patch.setattr(check, name, value)
            run(folder)
        assert len(opened) == NUM_IMAGES


def test_the_users_cache_folder_is_the_default(folder, tmp_path, monkeypatch):
    for value in (None, ""):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"home {value}"))
        monkeypatch.setattr("platformdirs.user_cache_dir", lambda name, value=value: f"{tmp_path}/{name} {value}")
        monkeypatch.delenv("DIS_CACHE_DIR") if value is None else monkeypatch.setenv("DIS_CACHE_DIR", value)
        run(folder)
        assert num_remembered(tmp_path / f"dis {value}") == NUM_IMAGES


def test_an_interruption_ends_in_order_and_keeps_what_was_checked(folder, opened):
    stop = StopRequest()
    source = FileSource(FolderFiles(folder), image_size=16)
    events = check_images(source, on_bad="stop", num_workers=2, stop=stop)
    checked = next(event.done for event in events if isinstance(event, Progress))
    assert 0 < checked < NUM_IMAGES
    stop.requested = 15
    with pytest.raises(Interrupted, match=f"{checked} of 40 images are checked") as caught:
        next(events)
    assert caught.value.code == 128 + 15
    assert len(opened) == checked
    # nor does it matter that whoever looks on goes away
    events = check_images(source, on_bad="stop", num_workers=2, stop=StopRequest())
    next(event for event in events if isinstance(event, Progress) and event.done > checked)
    events.close()
    run(folder)
    assert sorted(opened) == sorted(path.name for path in folder.glob("*/*.png"))


@pytest.mark.parametrize("seconds", [0, 0.002])
def test_progress_is_shown_often_however_fast_files_are_read(tmp_path, monkeypatch, seconds):
    class Many:
        title, class_names, skipped, notes = str(tmp_path), (), (), ()
        other_files: ClassVar[dict[str, int]] = {}
        labels = np.zeros(2_000, np.int64)
        names = np.array([b"%d.png" % index for index in range(2_000)])

        def facts(self, _: int) -> tuple[int, int]:
            return 0, 0

        def open(self, _: int) -> Path:
            return tmp_path

    monkeypatch.setattr(check, "check_image", lambda _: time.sleep(seconds * (len(done) > 2)) or [])
    done = [0]
    for event in check_images(FileSource(Many(), image_size=8), on_bad="stop", num_workers=2, stop=StopRequest()):
        done += [event.done] if isinstance(event, Progress) else []
    # half a second's work after the first surprise
    assert max(np.diff(done)) <= 512
    assert seconds == 0 or max(np.diff(done)[4:-1]) <= 500


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_without_any_usable_image_there_is_nothing_to_go_on_with(folder, on_bad):
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"")
    (folder / "ant/link.png").symlink_to("nowhere")
    with pytest.raises(DataError) as caught:
        run(folder, on_bad=on_bad)
    first, *lines = caught.value.message.splitlines()
    assert first == "41 of 41 images cannot be used"
    assert lines[:2] == ["  ant/link.png: a broken link", "  ant/01.png: the file is empty"]
    assert ("skip" in caught.value.hint) == (on_bad == "stop")


def test_entries_that_are_no_files_stop_as_bad_files_do(folder):
    (folder / "ant/link.png").symlink_to("nowhere")
    assert fault(folder) == "1 of 41 images cannot be used\n  ant/link.png: a broken link"
    events, kept = run(folder, on_bad="skip")
    assert len(kept) == NUM_IMAGES
    assert "ant/link.png: a broken link" in events[-1].message


def test_a_class_that_skipping_empties_is_named(folder):
    for path in folder.glob("ant/*.png"):
        path.write_bytes(b"")
    events, kept = run(folder, on_bad="skip")
    assert set(kept.labels.tolist()) == {1}
    assert kept.class_names == ("ant", "bee")
    assert events[-1] == Note(message="No image is left in 1 classes\n  ant", level="warning")


@pytest.mark.parametrize("labels", [None, [["a.png", 3], ["b.png", 3]]])
def test_only_classes_that_had_images_can_be_emptied(tmp_path, labels):
    (tmp_path / "set").mkdir()
    noise().save(tmp_path / "set/a.png")
    (tmp_path / "set/b.png").write_bytes(b"")
    (tmp_path / "set/dataset.json").write_text(json.dumps({"labels": labels}))
    events, kept = run(tmp_path / "set", on_bad="skip")
    assert kept.labels.tolist() == [3 if labels else 0]
    assert len([event for event in events if isinstance(event, Note)]) == 1


@pytest.mark.parametrize("num_more", [0, 7])
def test_long_lists_are_cut(tmp_path, num_more):
    (tmp_path / "set").mkdir()
    for index in range(MAX_LISTED + num_more):
        (tmp_path / "set" / f"{index:03d}.png").write_bytes(b"")
    first, *lines = fault(tmp_path / "set").splitlines()
    assert first == f"{100 + num_more} of {100 + num_more} images cannot be used"
    assert lines[MAX_LISTED:] == (["  and 7 more"] if num_more else [])


def test_a_file_that_vanishes_or_may_not_be_read_is_a_bad_one(folder):
    source = FileSource(FolderFiles(folder), image_size=16)
    (folder / "ant/01.png").unlink()
    _, kept = outcome(check_images(source, on_bad="skip", num_workers=2, stop=StopRequest()))
    assert len(kept) == NUM_IMAGES - 1
    with pytest.raises(DataError, match=r"ant/01\.png: No such file or directory"):
        outcome(check_images(source, on_bad="stop", num_workers=2, stop=StopRequest()))


def test_pillows_own_warnings_change_no_verdict(folder, recwarn):
    """They are errors in these tests; a damaged EXIF block is one."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0" + bytes(8)
    (folder / "ant/exif.jpg").write_bytes(encoded(noise(), "JPEG", exif=exif))
    _, kept = run(folder)
    assert len(kept) == NUM_IMAGES + 1
    assert not recwarn


def test_a_million_digests_take_16_bytes_each_and_are_found(tmp_path):
    digests = np.unique(np.frombuffer(np.random.default_rng(0).bytes(16 << 20), check._VOID))
    path = tmp_path / "digests"
    path.write_bytes(check._MAGIC + digests.tobytes())
    known = check._read_digests(path)
    assert known.nbytes == 16 << 20
    assert all(check._contains(known, digest.tobytes()) for digest in digests[:: 1 << 12])
    assert not any(check._contains(known, digest.tobytes()[::-1]) for digest in digests[:: 1 << 12])


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_an_image_is_not_to_blame_when_no_more_files_may_be_open(on_bad, folder, cache, monkeypatch):
    def refuse(file, *args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files", str(file))

    monkeypatch.setattr("PIL.Image.open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        run(folder, on_bad=on_bad)
