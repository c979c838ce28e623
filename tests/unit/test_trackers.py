"""What TensorBoard and Weights & Biases are given, and that neither ends a training."""

import importlib.util
import inspect
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.processes import python

from dis_cli.errors import MissingResourceError
from dis_cli.events import Event, Finished, Metric, Note, Saved, Step, Stopped, Wrote
from dis_cli.runs.folder import RunDir
from dis_cli.runs.trackers import STEP_KEYS, Trackers, look_for_trackers, open_trackers

CONFIG = {"name": "dis-xs-digits", "train": {"steps": 8, "betas": [0.9, 0.999]}}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create()
    return run


def step(number: int, **values: object) -> Step:
    fields = {"loss": 1 / number, "lr": 1e-3, "grad_norm": 2.0, "seconds": 0.1, "data_seconds": 0.01}
    return Step(step=number, **fields | {"images_per_second": 320.0} | values)


def saved(run: RunDir, number: int) -> Saved:
    return Saved(step=number, path=run.checkpoints / f"step-{number:08d}", size_bytes=1)


def preview(run: RunDir, number: int) -> Wrote:
    path = run.samples / f"preview-{number:08d}.png"
    levels = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    Image.fromarray(levels).save(path)
    return Wrote(what="preview", path=path)


def shown(folder: Path) -> Any:
    """What TensorBoard reads of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


class TestTensorBoard:
    def test_every_number_is_under_its_name_in_events_jsonl(self, run: RunDir) -> None:
        trackers = open_trackers(["tensorboard"], run, config=CONFIG, first_step=0)
        events: list[Event] = [
            step(1),
            step(2, memory_bytes=250_000_000, mfu=0.43),
            Metric(name="frechet_digits", value=5.75, step=2),
            Metric(name="fid", value=9.0, step=1),
            # Measured beside the training, which says no step: it belongs to the last one.
            Metric(name="class_accuracy", value=0.5),
            preview(run, 2),
            Wrote(what="result", path=run.path / "no.png"),
            step(3, loss=float("nan"), skipped=True),
            Finished(result={}),
        ]
        assert [note for event in events for note in trackers.record(event)] == []
        board = shown(run.tensorboard)
        values = {key: [(point.step, point.value) for point in board.Scalars(key)] for key in board.Tags()["scalars"]}
        assert values.keys() == {*STEP_KEYS, "frechet_digits", "fid", "class_accuracy"}
        assert set(STEP_KEYS) <= step(1).to_json().keys()
        assert values["loss"][:2] == [(1, 1.0), (2, 0.5)]
        assert values["loss"][2][0] == 3
        assert np.isnan(values["loss"][2][1])
        assert values["memory_bytes"] == [(2, 250_000_000)]
        assert values["mfu"] == [(2, pytest.approx(0.43))]
        assert values["frechet_digits"] == [(2, 5.75)]
        assert values["fid"] == [(1, 9.0)]
        assert values["class_accuracy"] == [(2, 0.5)]
        [image] = board.Images("preview")
        assert (image.step, image.width, image.height) == (2, 6, 8)

    def test_steps_that_are_taken_again_appear_once(self, run: RunDir) -> None:
        first = open_trackers(["tensorboard"], run, config=CONFIG, first_step=0)
        for number in range(1, 8):
            first.record(step(number))
        first.record(Metric(name="fid", value=9.0, step=6))
        first.close()
        again = open_trackers(["tensorboard"], run, config=CONFIG, first_step=4)
        for number in range(5, 11):
            again.record(step(number, loss=10.0 + number))
        again.record(Metric(name="fid", value=8.0, step=6))
        again.record(Finished(result={}))
        board = shown(run.tensorboard)
        assert [(point.step, point.value) for point in board.Scalars("loss")] == [
            *((number, pytest.approx(1 / number)) for number in range(1, 5)),
            *((number, 10.0 + number) for number in range(5, 11)),
        ]
        assert [point.value for point in board.Scalars("fid")] == [8.0]

    def test_what_a_checkpoint_covers_is_on_the_disk_with_it(self, run: RunDir) -> None:
        trackers = open_trackers(["tensorboard"], run, config=CONFIG, first_step=0)
        trackers.record(step(1))
        trackers.record(saved(run, 1))
        assert [point.step for point in shown(run.tensorboard).Scalars("loss")] == [1]
        trackers.close()

    def test_a_full_disk_is_told_once_and_does_not_end_the_training(self, run: RunDir) -> None:
        program = f"""
import json, resource, signal
from pathlib import Path
from dis_cli.events import Finished, Saved, Step
from dis_cli.runs.folder import RunDir
from dis_cli.runs.trackers import open_trackers

trackers = open_trackers(["tensorboard"], RunDir(Path({str(run.path)!r})), config={{}}, first_step=0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
notes = []
for number in range(1, 2001):
    notes += trackers.record(
        Step(step=number, loss=1.0, lr=1e-3, grad_norm=1.0, seconds=0.1, images_per_second=1.0)
    )
notes += trackers.record(Saved(step=2000, path=Path("x"), size_bytes=1)) + trackers.record(Finished(result={{}}))
print(json.dumps([(note.level, note.message) for note in notes]))
"""
        done = python("-W", "error", "-c", program)
        assert done.returncode == 0, done.stderr
        [(level, message)] = json.loads(done.stdout)
        assert level == "warning"
        assert message.startswith("tensorboard failed and shows no more of this run: [Errno 27]")


class Failing:
    """A tracker that fails when told to, and counts what it is asked."""

    name = "failing"

    def __init__(self, *bad: str) -> None:
        self.bad = bad
        self.calls: list[str] = []

    def _do(self, name: str) -> None:
        self.calls.append(name)
        if name in self.bad:
            raise OSError("no space\nleft")

    def scalars(self, *_: object) -> None:
        self._do("scalars")

    def image(self, *_: object) -> None:
        self._do("image")

    def flush(self) -> None:
        self._do("flush")

    def close(self, *, succeeded: bool) -> None:
        self._do(f"close {succeeded}")


WARNING = Note(message="failing failed and shows no more of this run: no space", level="warning")


@pytest.mark.parametrize("bad", ["scalars", "image", "flush"])
def test_one_that_fails_is_closed_and_told_once_while_others_go_on(bad: str, run: RunDir) -> None:
    # Its closing fails as well, which is no news.
    failing, sound = Failing(bad, "close False"), Failing()
    trackers = Trackers([failing, sound])
    events = [step(1), preview(run, 1), saved(run, 1), step(2), Finished(result={})]
    assert [note for event in events for note in trackers.record(event)] == [WARNING]
    assert failing.calls[-2:] == [bad, "close False"]
    assert sound.calls == ["scalars", "image", "flush", "scalars", "close True"]


@pytest.mark.parametrize(
    ("event", "succeeded"),
    [
        (Finished(result={}), True),
        (Stopped(step=1, reason="signal", message=""), True),
        (Stopped(step=1, reason="time", message=""), True),
        (Stopped(step=1, reason="error", message=""), False),
        (None, False),
    ],
)
def test_they_are_told_how_it_ended_and_are_closed_once(event: Event | None, succeeded: bool) -> None:
    tracker = Failing()
    trackers = Trackers([tracker])
    if event is not None:
        assert trackers.record(event) == []
    trackers.close()
    assert trackers.record(step(2)) == []
    assert tracker.calls == [f"close {succeeded}"]


def test_a_failing_end_is_told() -> None:
    assert Trackers([Failing("close True")]).record(Finished(result={})) == [WARNING]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_an_absent_package_is_told_with_the_command(name: str, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == name else find_spec(wanted))
    with pytest.raises(MissingResourceError, match=f"asks for {name}, which is not installed") as caught:
        look_for_trackers([name])
    assert f"`pip install 'dis-cli[{name}]'`" in str(caught.value.hint)
    with pytest.raises(MissingResourceError):
        open_trackers(["tensorboard", "wandb"], run, config=CONFIG, first_step=0)
    # Nothing was begun before all were found.
    assert not run.tensorboard.exists()


def test_a_package_that_does_not_load_is_told(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(MissingResourceError, match="does not load"):
        open_trackers(["tensorboard"], run, config=CONFIG, first_step=0)


def test_looking_for_them_imports_neither_them_nor_torch() -> None:
    program = """
import sys
from dis_cli.runs.trackers import look_for_trackers
look_for_trackers(["tensorboard"])
print([name for name in ("torch", "tensorboard", "wandb", "numpy", "PIL") if name in sys.modules])
"""
    assert python("-c", program).stdout == "[]\n"


class FakeRun:
    """A run of the stand-in: takes what the real one takes and nothing else."""

    def __init__(self, *, offline: bool) -> None:
        self.offline = offline
        self.rows: list[tuple[int, dict[str, object]]] = []
        self.exit_codes: list[int] = []

    @property
    def url(self) -> str:
        assert not self.offline, "says that there is none, on standard error"
        return "https://wandb.example/dis/runs/1"

    def log(self, data: dict[str, object], step: int) -> None:
        assert type(data) is dict
        assert type(step) is int
        assert not self.rows or step >= self.rows[-1][0], "of earlier steps it keeps nothing"
        for key, value in data.items():
            assert isinstance(key, str)
            assert isinstance(value, (int, float, FakeImage)), (key, value)
        self.rows.append((step, data))

    def finish(self, exit_code: int) -> None:
        assert type(exit_code) is int
        self.exit_codes.append(exit_code)


class FakeImage:
    def __init__(self, data_or_path: str) -> None:
        assert type(data_or_path) is str
        with Image.open(data_or_path) as image:
            self.size = image.size


class FakeWandb(types.ModuleType):
    """Stands in for the package wandb 0.31, as far as it is used here: names, keywords and types."""

    Image = FakeImage

    def __init__(self, *, login: bool, network: bool = True) -> None:
        super().__init__("wandb")
        self.has_login, self.network = login, network
        self.runs: list[tuple[FakeRun, dict[str, object]]] = []
        self.torn_down = 0

    @staticmethod
    def Settings(
        *, console: str, silent: bool, init_timeout: float, finish_timeout: float, finish_timeout_raises: bool
    ) -> dict[str, object]:
        assert console == "off"
        assert silent
        assert finish_timeout_raises
        # A stopped run has to end.
        assert 0 < finish_timeout <= 30
        return {"init_timeout": init_timeout}

    def login(self, *, verify: bool, prompt: bool) -> bool:
        assert not prompt
        assert not verify
        return self.has_login

    def init(
        self,
        *,
        project: str,
        name: str,
        id: str,  # noqa: A002 - its name there
        resume: str,
        dir: str,  # noqa: A002
        config: dict[str, object],
        allow_val_change: bool,
        reinit: str,
        settings: dict[str, object],
        mode: str | None = None,
    ) -> FakeRun:
        mode = mode or os.environ.get("WANDB_MODE") or "online"
        assert mode in ("online", "offline")
        assert (resume, allow_val_change, reinit) == ("allow", True, "create_new")
        assert Path(dir).is_dir()
        assert type(config) is dict
        assert settings["init_timeout"] <= 30
        if mode == "online" and not self.has_login:
            raise RuntimeError("No API key configured. Use `wandb login` to log in.")
        if mode == "online" and not self.network:
            self.pending = id
            raise RuntimeError("Failed to get resume status\nwhile retrying: no such host")
        assert getattr(self, "pending", None) != id, "run ID is in use"
        run = FakeRun(offline=mode == "offline")
        self.runs.append((run, {"project": project, "name": name, "id": id, "dir": dir, "config": config}))
        return run

    def teardown(self) -> None:
        self.pending = None


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "wandb" or find_spec(name))

    def install(**facts: bool) -> FakeWandb:
        module = FakeWandb(**facts)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return install


class TestWandb:
    def test_it_gets_the_same_keys_and_continues_the_same_run(self, run: RunDir, wandb) -> None:
        module = wandb(login=True)
        first = open_trackers(["wandb"], run, config=CONFIG, first_step=0)
        notes = first.record(step(1))
        assert notes == [Note(message="wandb: https://wandb.example/dis/runs/1")]
        for event in (
            step(2, memory_bytes=1, mfu=0.5),
            Metric(name="fid", value=9.0, step=2),
            preview(run, 2),
            saved(run, 2),
            Stopped(step=2, reason="error", message=""),
        ):
            assert first.record(event) == []
        [(shown_run, facts)] = module.runs
        assert facts["config"] == CONFIG
        assert (facts["project"], facts["name"], facts["dir"]) == ("dis", "dis-xs-digits", str(run.path))
        assert [(number, set(data)) for number, data in shown_run.rows] == [
            (1, {*STEP_KEYS} - {"memory_bytes", "mfu"}),
            (2, {*STEP_KEYS}),
            (2, {"fid"}),
            (2, {"preview"}),
        ]
        assert shown_run.rows[-1][1]["preview"].size == (6, 8)
        assert shown_run.exit_codes == [1]
        open_trackers(["wandb"], run, config=CONFIG, first_step=2).close()
        assert module.runs[1][1]["id"] == facts["id"] == run.wandb_id_path.read_text().strip()

    def test_two_runs_are_two(self, run: RunDir, tmp_path: Path, wandb) -> None:
        module = wandb(login=True)
        other = RunDir(tmp_path / "other")
        other.create()
        for folder in (run, other):
            open_trackers(["wandb"], folder, config=CONFIG, first_step=0)
        assert module.runs[0][1]["id"] != module.runs[1][1]["id"]

    def test_a_damaged_name_is_replaced(self, run: RunDir, wandb) -> None:
        module = wandb(login=True)
        run.wandb_id_path.write_bytes(b"\xff\x00")
        open_trackers(["wandb"], run, config=CONFIG, first_step=0)
        assert module.runs[0][1]["id"] == run.wandb_id_path.read_text().strip() != ""

    @pytest.mark.parametrize(
        ("login", "network", "reason"),
        [
            (False, True, "there is no login on this machine"),
            (True, False, "Failed to get resume status"),
        ],
    )
    def test_without_login_or_network_it_works_offline_and_says_so(self, login, network, reason, run, wandb) -> None:
        module = wandb(login=login, network=network)
        [note] = open_trackers(["wandb"], run, config=CONFIG, first_step=0).record(step(1))
        assert note.level == "warning"
        assert note.message.startswith(f"wandb works offline ({reason}): ")
        assert str(run.path / "wandb") in note.message
        assert module.runs[0][0].offline

    @pytest.mark.parametrize(("login", "network"), [(False, True), (True, False)])
    def test_what_wandb_mode_asks_for_is_not_replaced(self, login, network, run, wandb, monkeypatch) -> None:
        module = wandb(login=login, network=network)
        monkeypatch.setenv("WANDB_MODE", "offline")
        assert open_trackers(["wandb"], run, config=CONFIG, first_step=0).record(step(1)) == []
        assert module.runs[0][0].offline
        monkeypatch.setenv("WANDB_MODE", "online")
        with pytest.raises(MissingResourceError, match="wandb, which cannot start: ") as caught:
            open_trackers(["wandb", "tensorboard"], run, config=CONFIG, first_step=0)
        assert "WANDB_MODE=offline" in str(caught.value.hint)

    def test_the_stand_in_takes_what_the_package_takes(self) -> None:
        real = pytest.importorskip("wandb")
        for name in ("init", "login"):
            accepted = inspect.signature(getattr(real, name)).parameters
            assert set(inspect.signature(getattr(FakeWandb, name)).parameters) - {"self"} <= accepted.keys()
        for name in ("log", "finish"):
            taken = set(inspect.signature(getattr(FakeRun, name)).parameters)
            assert taken <= inspect.signature(getattr(real.Run, name)).parameters.keys()
        assert set(inspect.signature(FakeWandb.Settings).parameters) <= real.Settings.model_fields.keys()

    def test_the_package_itself(self, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_MODE", "offline")
        for first in (0, 2):
            trackers = open_trackers(["wandb"], run, config=CONFIG, first_step=first)
            events = [step(first + 1), step(first + 2), preview(run, first + 2), Finished(result={})]
            assert [note for event in events for note in trackers.record(event)] == []
        identity = run.wandb_id_path.read_text().strip()
        assert list((run.path / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
        assert len(list((run.path / "wandb").rglob("preview_*.png"))) >= 1


def test_both_at_once_and_each_once(run: RunDir, wandb) -> None:
    module = wandb(login=True)
    trackers = open_trackers(["tensorboard", "wandb", "tensorboard"], run, config=CONFIG, first_step=0)
    trackers.record(step(1))
    trackers.record(Finished(result={}))
    assert len(list(run.tensorboard.iterdir())) == 1
    assert shown(run.tensorboard).Scalars("loss")[0].value == module.runs[0][0].rows[0][1]["loss"]
