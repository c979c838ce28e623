"""Own pictures in one command: whatever form they have, they are recognised, and the model fits them."""

import io
import json
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.archives import pack
from support.tiny import dis

import dis_cli
from dis_cli.runs.place import name_of, run_of

CLASSES = ("balls", "china", "flower")
TINY = ["model.embed_dim=16", "model.depth=1", "train.steps=2", "train.batch_size=4", "train.validate_every=none"]
TINY += ["train.preview_images=4", "sample.sampler=euler", "sample.steps=2"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve coloured pictures in three classes, 40x30 to 48x48, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for index in range(12):
        path = tmp_path / "photos" / CLASSES[index % 3] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (30, 40, 3) if index % 2 else (48, 48, 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    return tmp_path / "photos"


def shards(photos: Path, suffix: str = "cls", *, as_names: bool = False) -> Path:
    """Three tar files as WebDataset writes them."""
    folder = photos.parent / "shards"
    folder.mkdir()
    for number in range(3):
        with tarfile.open(folder / f"set-{number:04d}.tar", "w") as archive:
            for index, path in enumerate(sorted(photos.rglob("*.png"))):
                if index % 3 != number:
                    continue
                label: object = path.parent.name if as_names else CLASSES.index(path.parent.name)
                text = json.dumps({"label": label}) if suffix == "json" else f"{label}\n"
                for ending, content in (("png", path.read_bytes()), (suffix, text.encode())):
                    info = tarfile.TarInfo(f"./{index:05d}.{ending}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return folder


def reworked(photos: Path, name: str) -> Path:
    """The same pictures in another mode."""
    for path in photos.rglob("*.png"):
        copy = photos.parent / name / path.relative_to(photos)
        copy.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(path)
        if name == "grey":
            image = image.convert("L")
        else:
            image = image.convert("RGBA")
            image.putalpha(100)
        image.save(copy)
    return photos.parent / name


def settings(run: Path) -> dict[str, Any]:
    return tomllib.loads((run / "config.toml").read_text())


@pytest.mark.parametrize("form", ["folder", "zip", "tar", "shards", "flat", "grey", "transparent"])
def test_one_command_trains_on_any_form(photos: Path, capsys: Any, form: str) -> None:
    data = photos
    match form:
        case "zip" | "tar":
            data = pack(photos, photos.parent / f"pictures.{form}")
        case "shards":
            data = shards(photos)
        case "flat":
            data = photos.parent / "flat"
            data.mkdir()
            for path in photos.rglob("*.png"):
                path.rename(data / path.name)
        case "grey" | "transparent":
            data = reworked(photos, form)
        case _:
            pass
    assert dis("train", "--data", data, *TINY) == 0
    told = capsys.readouterr().err
    run = Path("runs") / {"zip": "pictures", "tar": "pictures", "folder": "photos"}.get(form, data.name)
    found = settings(run)
    names = ("0", "1", "2") if form == "shards" else CLASSES
    classes = "no classes" if form == "flat" else f"3 classes: {', '.join(names)}"
    assert f"{classes}; 12 images, 40x30 to 48x48, {'grey' if form == 'grey' else 'RGB'}" in told
    assert "6 of 12 images looked at are cropped to their centred square" in told
    assert ("laid on white where they are transparent" in told) == (form == "transparent")
    assert found["model"]["num_classes"] == (0 if form == "flat" else 3)
    assert found["model"]["in_channels"] == (1 if form == "grey" else 3)
    assert found["data"]["source"] == (form if form in ("zip", "tar", "shards") else "folder")
    assert found["name"] == run.name
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["preview-00000001.png", "preview-00000002.png"]


def test_what_follows_needs_no_settings_and_no_network(photos: Path, capsys: Any) -> None:
    assert dis("train", "--data", photos, *TINY) == 0
    assert "newest preview runs/photos/samples/preview-00000002.png" in capsys.readouterr().out
    assert dis("sample", "--ckpt", "runs/photos", "--class", "flower", "-n", "2", "--out", "out") == 0
    assert (photos.parent / "out" / "grid.png").is_file()
    capsys.readouterr()
    assert dis("eval-fid", "--ckpt", "runs/photos", "--json") == 0
    captured = capsys.readouterr()
    assert "measuring denoising_loss, which needs none, in place of FID; `--download` fetches them" in captured.err
    assert json.loads(captured.out)["num_samples"] == 1
    assert dis("checkpoint", "export", "runs/photos", "--out", "photos.safetensors") == 0
    model = dis_cli.load_model("photos.safetensors")
    assert model.class_names == CLASSES
    assert dis_cli.sample_images(model, 2, classes="china").shape == (2, 32, 32, 3)


def test_the_same_command_continues_and_keeps_what_was_decided(photos: Path, capsys: Any) -> None:
    assert dis("train", "--data", photos, *TINY) == 0
    before = settings(Path("runs/photos"))
    assert dis("train", "--data", photos, *TINY, "train.steps=3", "train.preview_every=1") == 0
    assert "step 3" in capsys.readouterr().out
    assert settings(Path("runs/photos"))["model"] == before["model"]
    # The run's own settings are a preset of these data, wherever it is started.
    assert dis("train", "--preset", "runs/photos/config.toml", "train.steps=4") == 0
    assert "runs/photos: step 4" in capsys.readouterr().out


def test_two_data_sets_do_not_meet(photos: Path, capsys: Any) -> None:
    assert dis("train", "--data", photos, *TINY) == 0
    other = photos.parent / "more" / "photos"
    other.parent.mkdir()
    (photos.parent / "photos").rename(other)
    assert dis("train", "--data", other, *TINY) == 0
    assert "trained runs/photos-2" in capsys.readouterr().out
    assert run_of(Path("runs"), other) == Path("runs/photos-2")
    assert run_of(Path("runs"), photos.parent / "third" / "photos") == Path("runs/photos-3")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("photos", "photos"), ("My cats.tar.gz", "My-cats"), ("a.zip", "a"), ("v1.5", "v1.5"), ("日本", "images")],
)
def test_runs_are_named_after_their_data(tmp_path: Path, name: str, expected: str) -> None:
    assert name_of(tmp_path / name) == expected


@pytest.mark.parametrize("suffix", ["cls", "json"])
def test_labels_of_shards_may_be_names(photos: Path, capsys: Any, suffix: str) -> None:
    folder = shards(photos, suffix, as_names=True)
    assert dis("train", "--data", folder, *TINY, "--dry-run") == 0
    captured = capsys.readouterr()
    assert "3 classes: balls, china, flower; 12 images" in captured.err
    assert "time        about 0:0" in captured.out
    assert "[model]" not in captured.out


def test_shards_with_some_labels_are_refused(photos: Path, capsys: Any) -> None:
    folder = shards(photos)
    with tarfile.open(folder / "set-0003.tar", "w") as archive:
        path = next(photos.rglob("*.png"))
        archive.add(path, "lonely.png")
    assert dis("train", "--data", folder, *TINY, "--dry-run") == 1
    error = capsys.readouterr().err
    assert f"1 of 13 images in `{folder}` have no label\n  set-0003.tar/lonely.png" in error
    assert "NAME.cls or NAME.json" in error


def test_shards_are_parted_by_their_names(photos: Path) -> None:
    from dis_cli.data.images.shards import ShardFiles

    folder = shards(photos)
    for number, part in enumerate(("train", "train", "val")):
        (folder / f"set-{number:04d}.tar").rename(folder / f"set-{part}-{number:04d}.tar")
    assert len(ShardFiles(folder, "train").labels) == 8
    assert len(ShardFiles(folder, "test").labels) == 4
    assert len(ShardFiles(folder, "all").labels) == 12


def test_what_a_preset_loses_is_said_first(photos: Path, capsys: Any) -> None:
    small = ["model.embed_dim=16", "model.depth=1", "train.steps=1", "train.batch_size=4"]
    assert dis("train", "--preset", "dis-s-cifar", "--data", photos, "--out", "run", *small, "--dry-run") == 0
    told = capsys.readouterr().err
    assert "data.source=folder in place of cifar10: recognised by" in told
    assert "warning: classes are not used (model.num_classes=3 trains on them)" in told
    assert dis("train", "--data", photos, "model.in_channels=1", *TINY, "--dry-run") == 0
    assert "warning: colours become grey (model.in_channels=3 keeps them)" in capsys.readouterr().err
    assert dis("train", "--preset", "dis-xs-digits", "--data", photos, "--out", "run", "--dry-run") == 2
    assert "The model has 10 classes, the data" in capsys.readouterr().err


def test_a_quick_look_takes_some_images_of_every_class(photos: Path, capsys: Any) -> None:
    assert dis("train", "--data", photos, *TINY, "data.max_images=6", "data.validation=none") == 0
    assert "images 6," in capsys.readouterr().err
    from dis_cli.config.presets import read_config
    from dis_cli.workflows.build import build_source

    source = build_source(read_config(Path("runs/photos/config.toml")))
    assert sorted(source.labels.tolist()) == [0, 0, 1, 1, 2, 2]


def test_without_data_the_preset_says_what_it_needs(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert dis("train", "--preset", "dis-xs-images") == 2
    assert "is a preset for your own pictures, and no data were given" in capsys.readouterr().err
    assert dis("flops", "--preset", "dis-xs-images", "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_parameters"] == 1_100_000
    assert dis("presets", "show", "dis-xs-images") == 0
    assert 'num_classes = "auto"' in capsys.readouterr().out
    assert dis("train", "--data", tmp_path / "nowhere") == 1
    assert "Folder not found" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "nowhere").exists()
