"""What another number of steps does to the learning rate, and that it is said."""

import pytest

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.schema import RunConfig
from dis_cli.runs.folder import RunDir
from dis_cli.workflows.train.resume import LastState, notes_on_start


def notes(tmp_path, settings: list[str], step: int, steps: int) -> list[str]:
    """What is said when a run of 100 steps goes on at ``step`` for ``steps`` in all."""
    recorded = apply_overrides(RunConfig(), ["train.steps=100", "train.lr=0.001", "train.precision=fp32", *settings])
    run = RunDir(tmp_path)
    config = apply_overrides(recorded, [f"train.steps={steps}"])
    from dis_cli.config.presets import dump_toml

    run.config_path.write_text(dump_toml(recorded))
    return notes_on_start(run, LastState(recorded=recorded, step=step), config)


@pytest.mark.parametrize(
    ("schedule", "step", "steps", "rates"),
    [
        ("linear", 100, 200, "rises from 1e-05 in step 100 to 0.0005 in step 101"),
        ("cosine", 100, 200, "rises from 2.47e-07 in step 100 to 0.0005 in step 101"),
        ("linear", 50, 60, "falls from 0.00051 in step 50 to 0.000167 in step 51"),
        ("cosine", 50, 60, "falls from 0.000516 in step 50 to 6.7e-05 in step 51"),
        ("linear", 50, 200, "rises from 0.00051 in step 50 to 0.00075 in step 51"),
    ],
)
def test_both_learning_rates_are_said(schedule, step, steps, rates, tmp_path) -> None:
    [note] = notes(tmp_path, [f"train.lr_schedule={schedule}"], step, steps)
    assert note.startswith(f"train.steps 100 -> {steps} under train.lr_schedule={schedule}: the learning rate {rates}.")
    assert "keep train.steps=100" in note


@pytest.mark.parametrize(
    ("settings", "step", "steps"),
    [
        (["train.lr_schedule=constant"], 100, 200),
        (["train.lr_schedule=inverse_sqrt", "train.warmup_steps=10"], 100, 200),
        # The rise is the same, and the fall is still to come.
        (["train.lr_schedule=linear", "train.warmup_steps=20"], 10, 200),
        (["train.lr_schedule=linear", "train.decay_fraction=0.2"], 50, 200),
        (["train.lr_schedule=linear"], 50, 100),
        (["train.lr_schedule=linear", "train.min_lr_ratio=1.0"], 50, 200),
        # No step is left to be taken, or none was taken.
        (["train.lr_schedule=linear"], 60, 50),
        (["train.lr_schedule=linear"], 0, 200),
    ],
)
def test_nothing_is_said_where_nothing_changes(settings, step, steps, tmp_path) -> None:
    assert notes(tmp_path, settings, step, steps) == []
