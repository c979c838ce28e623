"""`dis train`: train a preset, or continue a run."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dis_cli.cli.completion.words import step_words
from dis_cli.cli.display.help import Panel
from dis_cli.cli.display.output import Output
from dis_cli.cli.display.text import duration, size
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
from dis_cli.errors import UsageError
from dis_cli.paths import home_path
from dis_cli.runs.folder import RunDir
from dis_cli.runtime.distributed import part_from_environment
from dis_cli.runtime.signals import stop_on_signals
from dis_cli.runtime.targets import require_writable

if TYPE_CHECKING:
    from dis_cli.workflows.train.branch import Branch
    from dis_cli.workflows.train.init import Init


def train(
    overrides: Overrides = None,
    preset: PresetOption = None,
    data: DataOption = None,
    out: OutOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Start over: the run so far is moved into the folder's earlier-N.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = False,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init",
            metavar="PATH",
            parser=home_path,
            help="Model whose weights a new run begins with: a run, checkpoint, exported model or published .pt. Its "
            "architecture and diffusion are taken over.",
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    init_ema: Annotated[
        float | None,
        typer.Option(
            "--init-ema",
            metavar="DECAY",
            min=0,
            max=1,
            help="Weight average of --init, of those that it kept; 0 is the weights themselves.",
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    branch: Annotated[
        Path | None,
        typer.Option(
            "--branch",
            metavar="RUN",
            parser=home_path,
            help="Run whose whole state a new run continues (weights, averages, optimizer, step, place in the data), "
            "with its settings where none are given; in runs/NAME-branch without --out.",
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    at: Annotated[
        int | None,
        typer.Option(
            "--at",
            metavar="STEP",
            min=0,
            help="Checkpoint of --branch to continue, instead of the newest.",
            autocompletion=step_words,
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    dry_run: DryRunFlag = False,
    old_dry_run: OldDryRunFlag = False,
    json: JsonOption = None,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    no_progress: NoProgressFlag = False,
) -> None:
    """Train a model; the same command continues a run that stopped.

    With --data alone, it trains on your own pictures, whatever their classes, colours and sizes; with neither --data
    nor --preset, on bundled handwritten digits. The run folder is runs/NAME, or --out. Ctrl-C saves the current step
    before it stops. Under torchrun, all processes train one model: torchrun --nproc-per-node 8 -m dis_cli train
    --preset NAME

    Example: dis train --data photos/
    """
    from dis_cli.config.other_backbone import describe_change
    from dis_cli.config.overrides import apply_overrides
    from dis_cli.config.presets import DEFAULT_PRESET, OWN_DATA_PRESET, load_preset
    from dis_cli.config.schema import RunConfig
    from dis_cli.runs.place import name_of, recorded_config, run_of

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
        output.warning(
            "`-n` is taken as `--dry-run` for now; write `--dry-run`: `-n` is the number of images elsewhere"
        )
    dry_run = dry_run or old_dry_run
    extra = [f"data.path={data}"] if data is not None else []
    extra += [f"seed={seed}"] if seed is not None else []
    typed = [override.partition("=")[0].strip() for override in (*extra, *(overrides or []))]
    is_given = "data.path" in typed
    _refuse_together(init=init, init_ema=init_ema, branch=branch, at=at, preset=preset)
    origin: Init | Branch | None = None
    if branch is not None:
        from dis_cli.workflows.train.fork import fork

        settings = [*extra, *(overrides or [])]
        start = fork(branch, settings, step=at, out=out, fresh=fresh, reads=is_leader)
        config, run, origin = start.config, start.out, start.branch
        if origin is not None and is_given and config.data.path is not None:
            origin.check_place(config.data.path)
    else:
        asked = load_preset(preset or (OWN_DATA_PRESET if is_given else DEFAULT_PRESET))
        config = apply_overrides(asked, [*extra, *(overrides or [])])
        if init is not None:
            from dis_cli.workflows.train.init import read_init, with_model_of

            origin = read_init(init, init_ema)
            config = with_model_of(config, origin.model, typed)
        elif change := describe_change(asked, config):
            output.note(change)
        run = out or Path("runs") / config.name
        if config.data.path is not None and asked.open_settings:
            run = out or run_of(Path("runs"), config.data.path)
            config = config.model_copy(update={"name": name_of(run)})
    for sentence in () if origin is None else origin.notes:
        output.warning(sentence)
    require_writable(run, "filled folder")

    from dis_cli.runs.trackers import look_for_trackers
    from dis_cli.workflows.preflight import look_for_vae

    # Before torch is imported, which takes seconds.
    look_for_trackers(config.train.trackers)
    if config.data.source != "latents":
        look_for_vae(config, None)

    def fitted() -> RunConfig:
        from dis_cli.workflows.train.fit import fit_to_data

        fit = fit_to_data(config, typed, is_given=is_given, recorded=None if fresh else recorded_config(run))
        if fit.found is not None:
            output.note(fit.found)
        for note in fit.notes:
            (output.warning if note.level == "warning" else output.note)(note.message)
        return fit.config

    if dry_run:
        from dis_cli.config.presets import dump_toml
        from dis_cli.workflows.train.plan import plan_training

        config = fitted()
        plan: dict[str, Any] = plan_training(config, run, device=device, fresh=fresh, origin=origin)
        for warning in plan["warnings"]:
            output.warning(warning)
        toml = [dump_toml(RunConfig.model_validate(plan["config"]))] if verbose else []
        output.result([*_plan_lines(plan), *toml], plan)
        return

    # Before torch is imported too: of two that want one folder, one has to know at once; and a signal must not leave
    # the folder behind.
    with stop_on_signals() as stop, RunDir(run).lock() if is_leader else contextlib.nullcontext():
        from dis_cli.workflows.train.train import train as run_training

        config = fitted()
        events = run_training(config, run, device=device, fresh=fresh, origin=origin, is_locked=True, stop=stop)
        result = output.render(events, log_every=config.train.log_every)
    if is_leader:
        output.result(_lines(result), result)


def _refuse_together(
    *, init: Path | None, init_ema: float | None, branch: Path | None, at: int | None, preset: str | None
) -> None:
    if init is not None and branch is not None:
        raise UsageError(
            "--init and --branch are two ways to begin a run",
            "Give `--branch RUN` to go on from its whole state, or `--init PATH` to take weights alone",
        )
    if init is None and init_ema is not None:
        raise UsageError("--init-ema chooses an average of --init, which is not given", "Give `--init PATH` too")
    if branch is None and at is not None:
        raise UsageError("--at chooses a checkpoint of --branch, which is not given", "Give `--branch RUN` too")
    if branch is not None and preset is not None:
        raise UsageError(
            f"--branch takes all settings from its run, and `--preset {preset}` has settings too",
            "Leave `--preset` out, and change single settings with KEY=VALUE",
        )


def _plan_lines(plan: dict[str, Any]) -> list[str]:
    return [
        f"run         {plan['run']}",
        f"images      {plan['images']}",
        f"steps       {plan['steps']}",
        f"parameters  {plan['parameters'] / 1e6:.1f} M",
        f"compute     {plan['macs_per_image'] / 1e9:.3f} GMAC per forward pass and image",
        f"memory      {size(plan['state_memory_bytes'])} for weights, gradients, optimizer and average",
        f"disk        {size(plan['disk_bytes'])} for checkpoints",
        *_time_lines(plan),
        f"engine      {plan['engine']['name']}: {plan['engine']['reason']}",
        f"precision   {plan['precision']['name']}: {plan['precision']['reason']}",
        *(f"note        {note}" for note in plan["notes"]),
    ]


def _time_lines(plan: dict[str, Any]) -> list[str]:
    if plan["seconds"] is None:
        return ["time        not estimated: a step would take too long to time here"]
    step = f"{plan['seconds_per_step']:.2g} s a step"
    return [f"time        about {duration(plan['seconds'])} without previews and scores: {step}, timed here and now"]


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
    if preview := result.get("preview"):
        lines.append(f"newest preview {preview}")
    return [
        *lines,
        f"sample  dis sample --ckpt {run} -n 64",
        f"score   dis eval-fid --ckpt {run}",
    ]
