"""What is suggested where a batch cannot be dealt out to the processes of a job passes every check."""

import re
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.schema import RunConfig
from dis_cli.errors import ConfigError
from dis_cli.workflows.train.resume import CHANGEABLE
from dis_cli.workflows.train.shares import require_equal_shares


def require(config: RunConfig, processes: int) -> None:
    require_equal_shares(config, cast(Any, SimpleNamespace(world_size=processes)))


def hint_for(batch: int, accumulation: int, processes: int) -> tuple[RunConfig, str]:
    config = apply_overrides(RunConfig(), [f"train.batch_size={batch}", f"train.accumulation={accumulation}"])
    with pytest.raises(ConfigError, match=f"got {batch}, which cannot be divided equally") as caught:
        require(config, processes)
    return config, caught.value.hint or ""


@pytest.mark.parametrize(
    ("batch", "accumulation", "processes", "hint"),
    [
        (4, 1, 3, "Start 2 or 4 processes, or a new run with train.batch_size=3"),
        (8, 1, 3, "Start 2 or 4 processes, or a new run with train.batch_size=9"),
        (1, 1, 2, "Start 1 process, or a new run with train.batch_size=2"),
        (128, 1, 6, "Start 4 or 8 processes, or a new run with train.batch_size=126"),
        (6, 2, 2, "Set train.accumulation=1"),
        (32, 16, 4, "Set train.accumulation=8"),
    ],
)
def test_the_hint(batch: int, accumulation: int, processes: int, hint: str) -> None:
    assert hint_for(batch, accumulation, processes)[1] == hint


def test_every_suggestion_is_accepted() -> None:
    counted = 0
    for batch in range(1, 25):
        for accumulation in (parts for parts in range(1, batch + 1) if batch % parts == 0):
            for processes in (count for count in range(2, 10) if batch % (accumulation * count)):
                config, hint = hint_for(batch, accumulation, processes)
                for setting in re.findall(r"train\.\w+=\d+", hint):
                    require(apply_overrides(config, [setting]), processes)
                    # A run that is there may go on with the first kind only.
                    assert setting.partition("=")[0] in CHANGEABLE or "a new run" in hint
                    counted += 1
                for count in re.findall(r"\d+", hint.partition(" process")[0]) if "Start" in hint else ():
                    require(config, int(count))
                    counted += 1
    assert counted > 500
