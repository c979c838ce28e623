"""A run that goes on from the whole state of another with other settings, and is then a run like any other."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.faulty import curve, flip, hashes
from support.latents import save_images
from support.tiny import TINY, dis, trained

from dis_cli.checkpoints.store import list_checkpoints, read_checkpoint, write_checkpoint
from dis_cli.config.presets import load_preset
from dis_cli.data import batches
from dis_cli.runs.folder import RunDir

# Two averages, drawn dropped paths, and a rate that does not depend on the number of steps.
SETTINGS = ["train.ema_more=0.5", "model.drop_path=0.1", "train.lr_schedule=constant", "train.save_every=3"]
SETTINGS += ["train.keep_last=9", "data.max_images=60"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps, and one that simply went on to 8."""
    root = tmp_path_factory.mktemp("branch")
    trained(root / "source", *SETTINGS, "train.steps=6")
    trained(root / "whole", *SETTINGS, "train.steps=8")
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, to be spoilt, in the working directory."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def branch(*arguments: object, source: str = "source") -> int:
    return dis("train", "--branch", source, *arguments)


def last(run: Path) -> Path:
    return list_checkpoints(RunDir(run).checkpoints)[-1]


def lineage(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())["lineage"]


def commands_in(text: str) -> list[list[str]]:
    return [shlex.split(part)[1:] for part in text.split("`") if part.startswith("dis train --")]


@pytest.mark.parametrize("at", [[], ["--at", "3"]], ids=["newest", "earlier"])
def test_with_the_same_settings_it_ends_as_the_run_that_went_on(place: Path, at: list[str]) -> None:
    assert branch(*at, "--out", "b", "-q", "train.steps=8") == 0
    assert last(Path("b")).name == "step-00000008"
    assert hashes(last(Path("b"))) == hashes(last(Path("whole")))
    assert sorted(hashes(last(Path("b")))) == [
        "ema.safetensors",
        "ema_more_0.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
    ]
    first = 3 if at else 6
    assert curve(Path("b")) == curve(Path("whole"))[first:]


def test_where_it_comes_from_and_what_differs_is_recorded(place: Path, capsys: Any) -> None:
    assert branch("--at", "3", "--out", "b", "train.steps=5", "train.lr=0.001", "train.betas=0.8,0.9") == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "branch of `source` from step 3, after 12 images" in told
    assert "train.lr: 0.003 -> 0.001" in told
    assert "learning rate: 0.003 in step 3, 0.001 in step 4" in told
    source = RunDir(Path("source")).checkpoint(3)
    assert lineage(Path("b")) == {
        "kind": "branch",
        "path": str(source.resolve()),
        "step": 3,
        "asked_step": 3,
        "images": 12,
        "sha256": read_checkpoint(source, ()).sha256,
        "changed": {"train.steps": [6, 5], "train.lr": [0.003, 0.001], "train.betas": [[0.9, 0.99], [0.8, 0.9]]},
    }
    assert read_checkpoint(last(Path("b")), ()).meta["lineage"] == lineage(Path("b"))
    config = load_preset("b/config.toml")
    assert (config.name, config.train.lr, config.train.batch_size) == ("b", 0.001, 4)
    # Continued by its settings alone, it says so still.
    assert dis("train", "--preset", "b/config.toml", "--out", "b", "-q", "train.steps=6") == 0
    assert lineage(Path("b"))["step"] == 3
    assert read_checkpoint(last(Path("b")), ()).meta["lineage"] == lineage(Path("b"))


def test_with_another_rate_the_first_loss_is_the_same(place: Path) -> None:
    assert branch("--out", "b", "-q", "train.steps=8", "train.lr=0.03") == 0
    first, second = curve(Path("b"))
    step, loss, norm, rate = curve(Path("whole"))[6]
    assert first == (step, loss, norm, 0.03)
    assert rate == 0.003
    assert second[1] != curve(Path("whole"))[7][1]


def test_with_another_batch_no_image_is_seen_twice_or_left_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    index_at = batches.index_at

    def noted(position: int, **of: Any) -> int:
        seen.append(index_at(position, **of))
        return seen[-1]

    monkeypatch.setattr(batches, "index_at", noted)
    # 7 steps of 4, 2 of 11, then of 5, with a stop in between: 60 images, and 15 of the next epoch.
    trained(place / "first", *SETTINGS, "train.steps=7")
    assert branch("--out", "second", "-q", "train.batch_size=11", "train.steps=8", source="first") == 0
    more = ["--preset", "second/config.toml", "--out", "second", "-q"]
    assert dis("train", *more, "train.steps=9") == 0
    assert branch("--out", "third", "-q", "train.batch_size=5", "train.steps=14", source="second") == 0
    assert len(seen) == 28 + 22 + 25
    assert sorted(seen[:60]) == list(range(60))
    assert len(set(seen[60:])) == 15
    # In the order of the run that goes on.
    own = seen[28:]
    seen.clear()
    trained(place / "first", *SETTINGS, "train.steps=19")
    assert seen[: len(own)] == own
    counts = [read_checkpoint(last(Path(name)), ()).meta["images"] for name in ("first", "second", "third")]
    assert counts == [76, 50, 75]


def test_the_batch_may_be_larger_than_all_before(place: Path) -> None:
    assert branch("--at", "3", "--out", "b", "-q", "train.batch_size=40", "train.steps=4") == 0
    assert read_checkpoint(last(Path("b")), ()).meta["images"] == 12 + 40


def test_averages_go_on_by_their_decay(place: Path, capsys: Any) -> None:
    settings = ["train.ema_decay=0.5", "train.ema_more=0.25,0.995", "train.steps=7", "train.save_every=1"]
    assert branch("--out", "b", *settings) == 0
    assert "averages that begin with the weights of step 6: 0.25" in capsys.readouterr().err
    before = hashes(last(Path("source")))
    after = hashes(RunDir(Path("b")).checkpoint(6))
    of = {name.removesuffix(".safetensors"): sha256 for name, sha256 in before.items()}
    assert {name.removesuffix(".safetensors"): sha256 for name, sha256 in after.items()} == {
        "model": of["model"],
        "ema": of["ema_more_0"],
        "ema_more_0": of["model"],
        "ema_more_1": of["ema"],
        "optimizer": of["optimizer"],
    }


def test_the_same_command_continues_it_without_its_source(place: Path, capsys: Any) -> None:
    command = ["--at", "3", "-q", "train.lr=0.001"]
    assert branch(*command, "train.steps=4") == 0
    assert branch(*command, "train.steps=5") == 0
    # Other settings, or another step, are another branch.
    assert branch(*command, "train.steps=5", "train.weight_decay=0.1") == 0
    assert branch("-q", "train.lr=0.001", "train.steps=7") == 0
    trained(place / "source", *SETTINGS, "train.steps=7")
    assert branch("-q", "train.lr=0.001", "train.steps=8") == 0
    assert last(Path("runs/source-branch-3")).name == "step-00000008"
    shutil.rmtree(RunDir(place / "source").checkpoint(3))
    assert branch(*command, "train.steps=6") == 0
    runs = sorted(path.name for path in Path("runs").iterdir())
    assert runs == ["source-branch", "source-branch-2", "source-branch-3"]
    assert last(Path("runs/source-branch")).name == "step-00000006"
    assert load_preset("runs/source-branch-2/config.toml").name == "source-branch-2"
    capsys.readouterr()
    # A folder that was named is continued or refused.
    assert branch(*command, "train.steps=6", "train.clip_norm=3", "--out", "runs/source-branch") == 2
    assert "train.clip_norm: 1.0 there, 3.0 asked for" in capsys.readouterr().err
    # A state that is gone can begin nothing.
    assert branch("--at", "3", "--out", "new") == 2
    assert "`source` has no checkpoint of step 3: there are 6, 7" in capsys.readouterr().err
    assert not Path("new").exists()


def test_started_over_it_begins_with_its_source_again(place: Path) -> None:
    command = ["--out", "b", "-q", "train.lr=0.001", "train.steps=8"]
    assert branch(*command) == 0
    before = hashes(last(Path("b")))
    assert branch(*command, "--fresh") == 0
    assert hashes(last(Path("b"))) == before
    assert hashes(last(Path("b/earlier-1"))) == before


def test_a_checkpoint_can_be_named_by_its_folder(place: Path) -> None:
    assert branch("--out", "b", "-q", "train.steps=4", source="source/checkpoints/step-00000003") == 0
    assert branch("-q", "train.steps=7", source="source/checkpoints") == 0
    assert lineage(Path("b"))["step"] == 3
    assert lineage(Path("runs/source-branch"))["step"] == 6


def test_the_refusal_of_other_settings_points_here(place: Path, capsys: Any) -> None:
    again = ["train", "--out", "source", *TINY, *SETTINGS]
    assert dis(*again, "train.steps=9", "train.lr=0.001", "train.batch_size=8") == 2
    told = capsys.readouterr().err
    command = next(words for words in commands_in(told) if "--branch" in words)
    assert command[1:] == ["--branch", "source", "train.batch_size=8", "train.lr=0.001", "train.steps=9"]
    assert dis(*command) == 0
    assert load_preset("runs/source-branch/config.toml").train.lr == 0.001
    # Where no step would be left, more are named.
    capsys.readouterr()
    assert dis(*again, "train.steps=6", "train.loss_weight=min_snr") == 2
    assert dis(*again, "train.steps=6", "diffusion.loss_weight=min_snr") == 2
    command = next(words for words in commands_in(capsys.readouterr().err) if "--branch" in words)
    assert dis(*command) == 0
    assert last(Path("runs/source-branch-2")).name == "step-00000012"
    # What a branch cannot change either is not said to be possible.
    capsys.readouterr()
    assert dis(*again, "train.steps=6", "model.depth=5") == 2
    assert "--branch" not in capsys.readouterr().err


def test_the_warning_of_a_longer_schedule_points_here(place: Path, capsys: Any) -> None:
    falling = ["train.lr_schedule=linear", "train.save_every=2"]
    trained(place / "falling", *falling, "train.steps=4")
    capsys.readouterr()
    assert dis("train", "--out", "falling", *TINY, *falling, "train.steps=8") == 0
    command = next(words for words in commands_in(capsys.readouterr().err) if "--branch" in words)
    assert dis(*command) == 0
    rates = [rate for *_, rate in curve(Path("runs/falling-branch"))]
    assert len(rates) == 4
    assert rates[0] == pytest.approx(curve(Path("falling"))[3][3], rel=1e-2)
    assert len(set(rates)) == 1


def test_a_plan_changes_nothing(place: Path, capsys: Any) -> None:
    assert branch("--dry-run", "--json", "train.steps=8") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["run"], plan["steps"]) == ("runs/source-branch", 8)
    assert plan["seconds"] == pytest.approx(2 * plan["seconds_per_step"])
    assert not Path("runs").exists()
    assert branch("--dry-run", "train.steps=6") == 2


def test_the_source_may_be_in_training(place: Path, capsys: Any) -> None:
    with RunDir(place / "source").lock():
        assert branch("--out", "b", "train.steps=7") == 0
        told = " ".join(capsys.readouterr().err.split())
        assert "`source` is in use by process" in told
        assert "its newest sound checkpoint is of step 6" in told
        assert dis("train", "--init", "source", "--out", "i", *TINY, "train.steps=1") == 0
        assert "its newest sound checkpoint is of step 6" in " ".join(capsys.readouterr().err.split())


def test_of_damaged_checkpoints_the_newest_sound_one_is_taken(place: Path, capsys: Any) -> None:
    flip(RunDir(Path("source")).checkpoint(6) / "optimizer.safetensors", 4000)
    assert branch("--at", "6", "--out", "b", "train.steps=7") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "is damaged: expected sha256" in told
    assert "Sound ones of `source` are of steps 3" in told
    assert branch("--out", "b", "train.steps=7") == 0
    assert "Passed over a damaged checkpoint" in " ".join(capsys.readouterr().err.split())
    assert hashes(RunDir(Path("b")).checkpoint(3)) == hashes(RunDir(Path("source")).checkpoint(3))
    flip(RunDir(Path("source")).checkpoint(3) / "optimizer.safetensors", 4000)
    assert branch("--out", "c") == 2
    assert "All checkpoints of `source` are damaged" in " ".join(capsys.readouterr().err.split())
    assert not Path("c").exists()


REFUSED = {
    "another family": (["model.backbone=dit"], "model.backbone: dis there, dit asked for"),
    "another model": (["model.embed_dim=24", "train.steps=9"], "model.embed_dim: 16 there, 24 asked for"),
    "another process": (["diffusion.prediction=x_0", "diffusion.num_timesteps=500"], "prediction: v there, x_0 asked"),
    "other images": (["data.max_images=50"], "data.max_images: 60 there, 50 asked for"),
    "another share": (["data.validation=0.1"], "data.validation: none there, 0.1 asked for"),
    "no step left": ([], "is at step 6, and train.steps is 6: no step is left to take"),
    "no such step": (["--at", "4"], "`source` has no checkpoint of step 4: there are 3, 6"),
    "its own folder": (["--out", "source"], "which is the run that the branch is to go on from"),
    "another run's folder": (["--out", "whole", "train.steps=8"], "`whole` holds a run already, at step 8"),
    "a preset": (["--preset", "dis-xs-digits"], "and `--preset dis-xs-digits` has settings too"),
    "both ways": (["--init", "source"], "--init and --branch are two ways to begin a run"),
    "no such data kind": (["--data", "cats"], "data.source is folder there, digits in the run"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=[*REFUSED])
def test_what_does_not_go_with_the_state_is_refused(
    arguments: list[str], message: str, place: Path, capsys: Any
) -> None:
    save_images(place / "cats", 4)
    steps = [] if any(word.startswith("train.steps") for word in arguments) or not arguments else ["train.steps=9"]
    before = sorted(str(path) for path in place.rglob("*"))
    assert branch(*arguments, *steps) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(str(path) for path in place.rglob("*")) == before


def test_at_alone_chooses_nothing(place: Path, capsys: Any) -> None:
    assert dis("train", "--at", "3", "--out", "b") == 2
    assert "--at chooses a checkpoint of --branch, which is not given" in capsys.readouterr().err


def test_other_settings_of_the_model_begin_with_the_weights_alone(place: Path, capsys: Any) -> None:
    assert branch("train.steps=9", "model.d_state=4") == 2
    command = next(words for words in commands_in(capsys.readouterr().err) if "--init" in words)
    assert dis(*command, "train.steps=1") == 0
    assert lineage(Path("source-init"))["kind"] == "init"


@pytest.mark.parametrize("classes", [("cat", "dog"), ("cat", "dog", "eel")])
def test_other_data_begin_with_the_weights_alone(
    place: Path, capsys: Any, classes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_images(place / "pets", 6)
    save_images(place / "others", 9, classes)
    own = ["--preset", "dis-xs-images", *TINY, "model.image_size=8", "train.precision=fp32"]
    own += ["data.validation=none", "train.validate_every=none", "train.preview_every=none"]
    assert dis("train", "--data", "pets", "--out", "run", "-q", *own, "train.steps=1") == 0
    capsys.readouterr()
    assert branch("--data", "others", "--out", "b", "train.steps=2", source="run") == 2
    told = capsys.readouterr().err
    assert ("are not those that" in told) == (len(classes) == 2)
    assert ("The model has 2 classes" in told) == (len(classes) == 3)
    command = next(words for words in commands_in(told) if "--init" in words)
    assert not Path("b").exists()
    assert dis(*command, *own[2:], "train.steps=1") == 0
    # The same pictures elsewhere are the same data.
    (place / "pets").rename(place / "moved")
    assert branch("--data", "moved", "--out", "b", "-q", "train.steps=2", source="run") == 0


def test_another_seed_draws_on_but_not_the_held_out_images(place: Path, capsys: Any) -> None:
    assert branch("--seed", "1", "--out", "b", "-q", "train.steps=8") == 0
    assert curve(Path("b"))[0][1] != curve(Path("whole"))[6][1]
    trained(place / "held", *SETTINGS, "train.steps=2", "data.validation=0.1")
    assert branch("--seed", "1", "train.steps=3", source="held") == 2
    assert "seed: 0 there, 1 asked for" in capsys.readouterr().err


def test_weights_without_a_state_are_refused(place: Path, capsys: Any) -> None:
    assert dis("checkpoint", "export", "source", "--out", "model.safetensors", "-q") == 0
    assert dis("checkpoint", "export", "source", "--out", "folder", "-q") == 0
    assert dis("checkpoint", "import", "model.safetensors", "--out", "imported", "-q") == 0
    for source in ("model.safetensors", "folder", "imported"):
        capsys.readouterr()
        assert branch("train.steps=9", source=source) == 2
        told = capsys.readouterr().err
        assert "holds weights only, without the optimizer's state" in told
        assert f"`--init {source}`" in told
    assert branch(source="absent") == 2
    assert "No run at `absent`" in capsys.readouterr().err
    (place / "empty").mkdir()
    assert branch(source="empty") == 2
    assert "`empty` has no checkpoint to go on from" in capsys.readouterr().err


def test_a_run_of_a_newer_version_is_refused(place: Path, capsys: Any) -> None:
    saved = read_checkpoint(last(Path("source")))
    config = saved.meta["config"]
    config["train"]["time_travel"] = True
    write_checkpoint(Path("source/checkpoints"), 7, saved.tensors, {**saved.meta, "step": 7, "config": config})
    assert branch("train.steps=9") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "`train.time_travel`" in told
    assert "install a newer `dis`" in told


def test_what_was_to_begin_with_another_does_not_begin_at_random(place: Path, capsys: Any) -> None:
    for option in (["--branch", "source"], ["--init", "source"]):
        run = place / option[0].strip("-")
        settings = ["train.steps=8"] if "--branch" in option else [*TINY, "train.steps=2"]
        assert dis("train", *option, "--out", run, "-q", *settings) == 0
        before = hashes(last(run))
        # As a kill leaves it that comes before the first checkpoint.
        shutil.rmtree(run / "checkpoints")
        capsys.readouterr()
        assert dis("train", "--preset", run / "config.toml", "--out", run) == 2
        told = capsys.readouterr().err
        assert "was stopped before it did" in told
        [command] = commands_in(told)
        assert dis(*command, "-q", *settings) == 0
        assert hashes(last(run)) == before
    # In the usual place, too, the same command begins it there.
    assert branch("-q", "train.steps=8") == 0
    shutil.rmtree("runs/source-branch/checkpoints")
    assert branch("-q", "train.steps=8") == 0
    assert [path.name for path in Path("runs").iterdir()] == ["source-branch"]
