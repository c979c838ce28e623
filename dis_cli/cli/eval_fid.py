"""`dis eval-fid`: score a checkpoint."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dis_cli.cli.options import (
    CkptOption,
    DataOption,
    DeviceOption,
    DryRunFlag,
    JsonFlag,
    NoProgressFlag,
    OutOption,
    Overrides,
    PresetOption,
    QuietFlag,
    StepOption,
    VerboseFlag,
)
from dis_cli.cli.output import Output
from dis_cli.cli.sample_options import (
    CfgChannelsOption,
    CfgIntervalOption,
    CfgScaleOption,
    CfgScheduleOption,
    EtaOption,
    SamplerOption,
    StepsOption,
    VaeOption,
    sample_settings,
)
from dis_cli.errors import NegativeVerdict


def eval_fid(
    ckpt: CkptOption,
    overrides: Overrides = None,
    data: DataOption = None,
    inception: Annotated[
        Path | None,
        typer.Option("--inception", metavar="PATH", help="Weights of the Inception that FID is defined with."),
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option("--num-samples", metavar="N", min=2, help="Generated images; default as many as real.")
    ] = None,
    fail_above: Annotated[
        float | None,
        typer.Option("--fail-above", metavar="X", min=0, help="Exit with 3 when the distance is above this."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, max=2**31 - 1, help="Seed of the first image.")
    ] = None,
    steps: StepsOption = None,
    sampler: SamplerOption = None,
    eta: EtaOption = None,
    cfg_scale: CfgScaleOption = None,
    cfg_channels: CfgChannelsOption = None,
    cfg_interval: CfgIntervalOption = None,
    cfg_schedule: CfgScheduleOption = None,
    vae: VaeOption = None,
    preset: PresetOption = None,
    step: StepOption = None,
    out: OutOption = None,
    device: DeviceOption = "auto",
    dry_run: DryRunFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    no_progress: NoProgressFlag = False,
) -> None:
    """Generate images and measure their distance to the real ones.

    The bundled digits are scored by a bundled classifier (frechet_digits, class accuracy); everything else by Inception
    (FID), whose weights you give with --inception.

    Example: dis eval-fid --ckpt runs/dis-xs-digits --fail-above 8
    """
    output = Output(quiet=quiet, verbose=verbose, progress=not no_progress, as_json=as_json)
    options = {"data.path": data, "evaluate.num_samples": num_samples, "evaluate.seed": seed}
    settings = [f"{key}={value}" for key, value in options.items() if value is not None]
    settings += sample_settings(
        steps=steps,
        sampler=sampler,
        eta=eta,
        cfg_scale=cfg_scale,
        cfg_channels=cfg_channels,
        cfg_interval=cfg_interval,
        cfg_schedule=cfg_schedule,
        vae=vae,
        overrides=overrides,
    )

    from dis_cli.workflows.resources import look_for_inception, look_for_vae, read_config

    # Before torch is imported, which takes seconds.
    config = read_config(Path(ckpt), settings, step)
    look_for_inception(config, inception)
    if not dry_run:
        look_for_vae(config, vae)

    from dis_cli.workflows.evaluate import check_bound, evaluate

    result = output.render(
        evaluate(
            Path(ckpt),
            inception=inception,
            overrides=settings,
            preset=preset,
            step=step,
            out=out,
            device=device,
            dry_run=dry_run,
        )
    )
    output.result(_lines(result), result)
    failure = None if dry_run else check_bound(result, fail_above)
    if failure:
        raise NegativeVerdict(failure)


def _lines(result: dict[str, Any]) -> list[str]:
    how = result["sample"]
    lines = [
        f"images          {result['num_samples']}, {how['sampler']} {how['steps']} steps, "
        f"guidance {how['cfg_scale']:g}, seeds from {result['seed']}"
    ]
    if "fid" in result:
        lines.append(f"fid             {result['fid']:.3f}")
    if "frechet_digits" in result:
        lines += [
            f"frechet_digits  {result['frechet_digits']:.2f} to the test images  "
            f"(floor: real training images {result['floor']:.2f}; class Gaussians {result['class_gaussians']:.1f})",
            f"                {result['frechet_digits_train']:.2f} to the training images",
        ]
    if "class_accuracy" in result:
        lines.append(
            f"class accuracy  {result['class_accuracy']:.1%}  (real test images {result['class_accuracy_real']:.1%})"
        )
    if "copy_share" in result:
        lines.append(
            f"copies          {result['copy_share']:.3f} nearer to a training image than the median neighbour, "
            f"{result['near_copy_share']:.3f} than the 5 % nearest  "
            f"(real test images {result['copy_share_real']:.3f}, {result['near_copy_share_real']:.3f})"
        )
    return [*lines, f"result          {result['result_file']}"]
