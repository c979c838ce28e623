"""`dis train`: train a preset, or continue a run."""

from pathlib import Path
from typing import Any

from dis_cli.cli.options import (
    DataOption,
    DeviceOption,
    DryRunFlag,
    JsonFlag,
    NoProgressFlag,
    OutOption,
    Overrides,
    PresetOption,
    QuietFlag,
    SeedOption,
    VerboseFlag,
)
from dis_cli.cli.output import Output
from dis_cli.cli.text import size

DEFAULT_PRESET = "dis-xs-digits"


def train(
    overrides: Overrides = None,
    preset: PresetOption = DEFAULT_PRESET,
    data: DataOption = None,
    out: OutOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    dry_run: DryRunFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    no_progress: NoProgressFlag = False,
) -> None:
    """Train a model; running the same command again continues where it stopped.

    The run is written to runs/NAME, or to --out. Ctrl-C saves the current step first.

    Example: dis train --preset dis-m-cifar --data cifar train.batch_size=64
    """
    from dis_cli.config.overrides import apply_overrides
    from dis_cli.config.presets import load_preset

    output = Output(quiet=quiet, verbose=verbose, progress=not no_progress, as_json=as_json)
    extra = [f"data.path={data}"] if data is not None else []
    extra += [f"seed={seed}"] if seed is not None else []
    config = apply_overrides(load_preset(preset or DEFAULT_PRESET), [*extra, *(overrides or [])])
    run = out or Path("runs") / config.name

    from dis_cli.workflows.resources import look_for_vae

    # Before torch is imported, which takes seconds.
    if config.data.source != "latents":
        look_for_vae(config, None)
    if dry_run:
        from dis_cli.config.presets import dump_toml
        from dis_cli.config.schema import RunConfig
        from dis_cli.workflows.train import plan_training

        plan = plan_training(config, run, device=device)
        output.result([dump_toml(RunConfig.model_validate(plan["config"])), *_plan_lines(plan)], plan)
        return

    from dis_cli.workflows.train import train as run_training

    result = output.render(run_training(config, run, device=device), log_every=config.train.log_every)
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
    ]


def _lines(result: dict[str, Any]) -> list[str]:
    loss = "" if result["loss"] is None else f", loss {result['loss']:.4f}"
    return [
        f"trained {result['run']}: step {result['step']}{loss}",
        f"sample  dis sample --ckpt {result['run']} -n 64",
        f"score   dis eval-fid --ckpt {result['run']}",
    ]
