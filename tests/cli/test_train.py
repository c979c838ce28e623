"""`dis train`: what it writes, how it continues, what it refuses."""

import json
import signal
import tomllib

import pytest
from support.cifar import make_cifar10
from support.tiny import TINY, dis, result, train

from dis_cli.checkpoints.store import list_checkpoints, read_checkpoint
from dis_cli.config.presets import load_preset
from dis_cli.errors import StorageError
from dis_cli.runs.folder import read_events


def test_a_run_folder_holds_what_it_should(tmp_path, capsys) -> None:
    run = tmp_path / "run"
    assert train(run, "train.steps=5", "train.save_every=2", "train.keep_last=2") == 0
    assert sorted(path.name for path in run.iterdir() if not path.name.startswith(".")) == [
        "checkpoints",
        "config.toml",
        "evaluations",
        "events.jsonl",
        "log.txt",
        "run.json",
        "samples",
    ]
    # The last step is saved though it is no multiple of save_every; older ones are gone.
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-00000004", "step-00000005"]
    events = read_events(run / "events.jsonl")
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3, 4, 5]
    assert [event["step"] for event in events if event["event"] == "saved"] == [2, 4, 5]
    assert events[0]["event"] == "started"
    assert json.loads((run / "run.json").read_text())["parameters"] == events[0]["details"]["parameters"]
    # The stored configuration is itself a preset.
    assert tomllib.loads((run / "config.toml").read_text())["model"]["embed_dim"] == 16
    assert load_preset(run / "config.toml").train.steps == 5
    assert "sample  dis sample --ckpt" in capsys.readouterr().out


def test_the_same_command_continues_bit_equal(tmp_path, capsys) -> None:
    assert train(tmp_path / "straight", "train.steps=6", "train.save_every=3") == 0
    assert train(tmp_path / "resumed", "train.steps=3", "train.save_every=3") == 0
    assert train(tmp_path / "resumed", "train.steps=6", "train.save_every=3") == 0
    expected, got = (
        read_checkpoint(tmp_path / name / "checkpoints" / "step-00000006") for name in ("straight", "resumed")
    )
    assert got.tensors.keys() == {"model", "ema", "optimizer"}
    for group, tensors in expected.tensors.items():
        assert tensors
        for name, tensor in tensors.items():
            assert tensor.equal(got.tensors[group][name]), (group, name)
    steps = [event["step"] for event in read_events(tmp_path / "resumed" / "events.jsonl") if event["event"] == "step"]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_is_finished(tmp_path, capsys) -> None:
    assert train(tmp_path, "train.steps=2") == 0
    capsys.readouterr()
    assert dis("train", "--out", tmp_path, "--json", *TINY, "train.steps=2") == 0
    assert result(capsys)["step"] == 2


def test_json_is_one_object(tmp_path, capsys) -> None:
    assert dis("train", "--out", tmp_path, "--json", *TINY, "train.steps=2") == 0
    data = result(capsys)
    assert data["schema"] == 1
    assert data["step"] == 2
    assert data["loss"] > 0
    assert data["checkpoint"].endswith("step-00000002")


def test_other_settings_in_the_same_folder_are_refused(tmp_path, capsys) -> None:
    assert train(tmp_path, "train.steps=2") == 0
    before = (tmp_path / "config.toml").read_bytes()
    assert train(tmp_path, "train.steps=2", "train.lr=0.5", "model.embed_dim=32") == 2
    error = capsys.readouterr().err
    assert "train.lr: 0.003 there, 0.5 asked for" in error
    assert "model.embed_dim: 16 there, 32 asked for" in error
    assert "hint: Choose another folder" in error
    assert (tmp_path / "config.toml").read_bytes() == before


def test_dry_run_writes_nothing(tmp_path, capsys) -> None:
    assert dis("train", "--out", tmp_path / "run", "--dry-run", "--json") == 0
    plan = result(capsys)
    assert plan["parameters"] == 655_492
    assert plan["images"] == 1347
    assert list(tmp_path.iterdir()) == []


def test_cifar10(tmp_path, capsys) -> None:
    make_cifar10(tmp_path / "data")
    command = ["train", "--preset", "dis-m-cifar", "--data", tmp_path / "data", "--out", tmp_path / "run", "-q"]
    # The preset's own model has 229 M parameters; here its recipe, data and diffusion on a small one.
    small = ["model.embed_dim=16", "model.depth=3", "model.patch_size=8"]
    assert dis(*command, *small, "train.steps=2", "train.batch_size=2") == 0
    assert "step 2" in capsys.readouterr().out
    # The model is unconditional: images without a class.
    assert dis("sample", "--ckpt", tmp_path / "run", "--out", tmp_path / "out", "-n", "3", "--steps", "2", "-q") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"000000.png", "000001.png", "000002.png", "grid.png", "samples.json"}
    assert dis("sample", "--ckpt", tmp_path / "run", "--class", "1") == 2
    assert "unconditional and has no class 1" in capsys.readouterr().err


def test_missing_cifar_says_what_to_put_where(tmp_path, capsys) -> None:
    assert dis("train", "--preset", "dis-m-cifar", "--data", tmp_path, "--out", tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert "cifar-10-python.tar.gz" in error
    assert "cifar-10-batches-py" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--preset", "dis-s-cifr"], "Preset not found: `dis-s-cifr`", "Did you mean `dis-s-cifar`?"),
        (["train.stps=2"], "train.stps", "train.steps"),
        (["train.steps=0"], "0", "1"),
        (["model.depth=4"], "depth must be odd", ""),
        (["--preset", "dis-m-cifar"], "No folder given", "--data DIR"),
        (["data.source=folder", "--data", "/nonexistent"], "/nonexistent", ""),
        (["--device", "cuda:9"], "cuda:9", ""),
        (["model.num_classes=7"], "7 classes", "model.num_classes=10"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message, hint, tmp_path, capsys) -> None:
    status = dis("train", "--out", tmp_path / "run", *arguments)
    assert status in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert hint in captured.err
    assert captured.err.count("error:") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_the_current_step(number, status, tmp_path, capsys, monkeypatch) -> None:
    from dis_cli.runs.folder import RunDir

    append = RunDir.append_event

    def interrupt_at_step_three(self, event) -> None:
        append(self, event)
        if event.to_json().get("step") == 3 and event.kind == "step":
            signal.raise_signal(number)

    monkeypatch.setattr(RunDir, "append_event", interrupt_at_step_three)
    assert train(tmp_path / "run", "train.steps=50") == status
    monkeypatch.undo()
    error = capsys.readouterr().err
    assert "which is saved" in error
    assert "Run the same command again" in error
    saved = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert read_checkpoint(saved).step in (3, 4)


def test_a_full_disk_keeps_the_earlier_checkpoint(tmp_path, capsys, monkeypatch) -> None:
    import dis_cli.checkpoints.store as store

    write = store.write_durably

    def full_after_the_first(path, data, *, shown_as=None) -> None:
        if "step-00000004" in str(shown_as):
            raise StorageError(f"Cannot write `{shown_as}`: No space left on device (needs {len(data):,} bytes)")
        write(path, data, shown_as=shown_as)

    monkeypatch.setattr(store, "write_durably", full_after_the_first)
    assert train(tmp_path, "train.steps=6", "train.save_every=2") == 1
    assert "No space left on device" in capsys.readouterr().err
    folders = list_checkpoints(tmp_path / "checkpoints")
    assert [read_checkpoint(folder).step for folder in folders] == [2]
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".tmp-")]


def test_weights_that_blow_up_stop_the_run(tmp_path, capsys) -> None:
    # Adam steps of 1 in every weight: the loss grows until it is no number.
    status = train(tmp_path, "train.steps=400", "train.lr=1.0", "train.clip_norm=none", "train.warmup_steps=0")
    captured = capsys.readouterr()
    if status == 1:
        assert "loss is" in captured.err
        assert "Lower the learning rate" in captured.err
    else:
        assert status == 0


def test_a_jump_of_the_learning_rate_is_said_before_the_first_step(tmp_path, capsys) -> None:
    falling = ("train.lr_schedule=linear", "train.decay_fraction=1.0")
    assert train(tmp_path, "train.steps=4", *falling) == 0
    said = "train.steps 4 -> 8 under train.lr_schedule=linear: the learning rate rises from "
    capsys.readouterr()
    assert train(tmp_path, "train.steps=8", *falling, "--dry-run", "--json") == 0
    assert said in result(capsys)["warnings"][0]
    assert train(tmp_path, "train.steps=8", *falling) == 0
    events = read_events(tmp_path / "events.jsonl")
    note = next(event for event in events if event["event"] == "note" and event["level"] == "warning")
    rates = {event["step"]: event["lr"] for event in events if event["event"] == "step"}
    assert events.index(note) < events.index(next(event for event in events if event.get("step") == 5))
    assert note["message"].startswith(f"{said}{rates[4]:.3g} in step 4 to {rates[5]:.3g} in step 5.")
