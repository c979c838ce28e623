"""`dis train`: train a preset, or continue a run."""

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from dis_cli.cli.display.output import Output
from dis_cli.cli.display.text import size
from dis_cli.cli.options import (
    DataOption,
    DeviceOption,
    DryRunFlag,
    JsonOption,
    NoProgressFlag,
    OldDryRunFlag,
    OutOption,
    Overrides,
    PresetOption,
    QuietFlag,
    SeedOption,
    VerboseFlag,
)
from dis_cli.runs.folder import RunDir
from dis_cli.runtime.distributed import part_from_environment
from dis_cli.runtime.signals import stop_on_signals
from dis_cli.runtime.targets import require_writable

DEFAULT_PRESET = "dis-xs-digits"


def train(
    overrides: Overrides = None,
    preset: PresetOption = DEFAULT_PRESET,
    data: DataOption = None,
    out: OutOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over; what the run's folder holds is moved into its earlier-N.")
    ] = False,
    dry_run: DryRunFlag = False,
    old_dry_run: OldDryRunFlag = False,
    json: JsonOption = None,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    no_progress: NoProgressFlag = False,
) -> None:
    """Train a model; running the same command again continues where it stopped.

    The run is written to runs/NAME, or to --out. Ctrl-C saves the current step first. With `torchrun` in front, all
    processes train one model: torchrun --nproc-per-node 8 -m dis_cli train --preset NAME

    Example: dis train --preset dis-m-cifar --data cifar train.batch_size=64
    """
    from dis_cli.config.overrides import apply_overrides
    from dis_cli.config.presets import load_preset

    # Of several processes only the first one speaks.
    is_leader = part_from_environment().index == 0
    output = Output(
        quiet=quiet or not is_leader,
        verbose=verbose and is_leader,
        progress=not no_progress,
        as_json=json == "object",
        json_lines=json == "lines" and is_leader,
    )
    if old_dry_run:
        output.warning("`-n` is taken as `--dry-run`, and will not be for long: `-n` is a number of images elsewhere")
    dry_run = dry_run or old_dry_run
    extra = [f"data.path={data}"] if data is not None else []
    extra += [f"seed={seed}"] if seed is not None else []
    config = apply_overrides(load_preset(preset or DEFAULT_PRESET), [*extra, *(overrides or [])])
    run = out or Path("runs") / config.name
    require_writable(run, "filled folder")

    from dis_cli.runs.trackers import look_for_trackers
    from dis_cli.workflows.preflight import look_for_vae

    # Before torch is imported, which takes seconds.
    look_for_trackers(config.train.trackers)
    if config.data.source != "latents":
        look_for_vae(config, None)
    if dry_run:
        from dis_cli.config.presets import dump_toml
        from dis_cli.config.schema import RunConfig
        from dis_cli.workflows.train.train import plan_training

        plan: dict[str, Any] = plan_training(config, run, device=device, fresh=fresh)
        for warning in plan["warnings"]:
            output.warning(warning)
        output.result([dump_toml(RunConfig.model_validate(plan["config"])), *_plan_lines(plan)], plan)
        return

    # Before torch is imported too: of two that want one folder, one has to know at once; and a signal must not leave
    # the folder behind.
    with stop_on_signals() as stop, RunDir(run).lock() if is_leader else contextlib.nullcontext():
        from dis_cli.workflows.train.train import train as run_training

        events = run_training(config, run, device=device, fresh=fresh, is_locked=True, stop=stop)
        result = output.render(events, log_every=config.train.log_every)
    if is_leader:
        output.result(_lines(result), result)


def _plan_lines(plan: dict[str, Any]) -> list[str]:
    return [
        f"run         {plan['run']}",
        f"images      {plan['images']}",
        f"steps       {plan['steps']}",
        f"parameters  {plan['parameters'] / 1e6:.1f} M",
        f"compute     {plan['macs_per_image'] / 1e9:.3f} GMAC a forward and image",
        f"memory      {size(plan['state_memory_bytes'])} for weights, gradients, optimizer and average",
        f"disk        {size(plan['disk_bytes'])} for checkpoints",
        f"engine      {plan['engine']['name']}: {plan['engine']['reason']}",
        f"precision   {plan['precision']['name']}: {plan['precision']['reason']}",
        *(f"note        {note}" for note in plan["notes"]),
    ]


def _lines(result: dict[str, Any]) -> list[str]:
    run, step = result["run"], result["step"]
    loss = "" if result["loss"] is None else f", loss {result['loss']:.4f}"
    lines = [f"trained {run}: step {step}{loss}"]
    if not result.get("complete", True):
        place = f"stopped after train.max_minutes at step {step} of {result['steps']}"
        lines.append(f"{place}; run the same command again to continue")
    if skipped := result.get("skipped"):
        updates = "1 update was" if skipped == 1 else f"{skipped} updates were"
        lines.append(f"skipped {updates} left out: the loss or a gradient was not finite")
    if best := result.get("best"):
        lines.append(f"best    {best['checkpoint']}: {best['metric']} {best['value']:.4g} at step {best['step']}")
    return [
        *lines,
        f"sample  dis sample --ckpt {run} -n 64",
        f"score   dis eval-fid --ckpt {run}",
    ]
