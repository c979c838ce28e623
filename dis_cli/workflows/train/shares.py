"""Equal shares of a batch for the processes of a job."""

from dis_cli.config.schema import RunConfig
from dis_cli.errors import ConfigError
from dis_cli.runtime.process_group import ProcessGroup


def require_equal_shares(config: RunConfig, group: ProcessGroup) -> None:
    """Refuse a batch that cannot be dealt out: the batch stays what it is, whatever the number of processes."""
    parts = config.train.accumulation * group.world_size
    batch = config.train.batch_size
    if batch % parts:
        raise ConfigError(
            f"`train.batch_size`: got {batch}, which cannot be divided equally among {group.world_size} processes in "
            f"{config.train.accumulation} parts each (train.accumulation)",
            _equal_shares(batch, config.train.accumulation, group.world_size),
        )


def _equal_shares(batch: int, accumulation: int, world_size: int) -> str:
    """The hint for a batch that cannot be dealt out: first what leaves it as it is, which any run may go on with."""
    parts = next((parts for parts in range(accumulation, 0, -1) if batch % (parts * world_size) == 0), None)
    if parts is not None:
        return f"Set train.accumulation={parts}"
    fitting = [count for count in range(1, batch // accumulation + 1) if batch % (count * accumulation) == 0]
    near = [max(count for count in fitting if count < world_size), *[n for n in fitting if n > world_size][:1]]
    nearest = max(round(batch / (accumulation * world_size)), 1) * accumulation * world_size
    few = "1 process" if near == [1] else f"{' or '.join(map(str, near))} processes"
    return f"Start {few}, or a new run with train.batch_size={nearest}"
