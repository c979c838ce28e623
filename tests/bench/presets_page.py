"""The page of the presets: ``python tests/bench/presets_page.py`` writes ``presets/README.md`` from the presets.

Everything on it follows from the settings and the closed forms of `dis flops`; nothing is measured.
"""

from pathlib import Path

from dis_cli.cli.display.text import size
from dis_cli.config.presets import load_preset, preset_dir, preset_names
from dis_cli.config.schema import RunConfig
from dis_cli.workflows.cost import model_cost, model_family, model_shape

PAGE = Path(__file__).parents[2] / "presets" / "README.md"
GPUS = 8
# Of an H100: its memory without what libraries take, and its dense bfloat16 products.
GPU_BYTES, GPU_FLOPS = 70e9, 989e12
SHARES = (0.15, 0.30)
IMAGENET = "imagenet"

HEAD = """\
# Presets

<!-- Written by `python tests/bench/presets_page.py`; a test compares. -->

A preset is a TOML file that holds only what differs from the defaults; its first comment says where the recipe comes
from. `dis presets list` names them, `dis presets show NAME` prints one with every default filled in, and
`dis train --preset NAME train.lr=1e-4` changes a setting. Your own file works the same way: `--preset my.toml`.

{table}

GMAC are the multiply-accumulates of one evaluation of one image, scan included. Memory is an estimate for a training
step: weights, gradients, AdamW, weight average and activations, in the preset's precision, or in bfloat16 where it says
"auto". For the ImageNet presets it is the memory per GPU, with the batch split evenly over eight GPUs.
`dis flops --preset NAME --batch N` prints the estimate for N images at a time on one GPU.

## Training on ImageNet

Below, `imagenet` is a folder with `train/` and `val/`, each with a sub-folder per class; `imagenet/train` is its
training part. The presets of 256 and 512 pixels train on latents, which you make once, with the VAE in a local folder:

```console
$ dis encode-latents --data imagenet/train --vae sd-vae-ft-ema --image-size 256 --out latents-256
$ dis encode-latents --data imagenet/train --vae sd-vae-ft-ema --image-size 512 --out latents-512
```

Then, on one machine with eight GPUs:

```console
{commands}
```

The same command continues a run that was stopped. {accumulation}\
With `train.sharding=fsdp` each GPU keeps only its share of the weights and of the optimizer's state, here an eighth,
which saves most of the memory that does not depend on the batch. Several machines and Slurm are explained on the page
of [training runs](../dis_cli/workflows/train/README.md#several-processes-and-machines).

{estimate}

**These hours are an estimate. No training of this project has been timed on a GPU.** They are the FLOPs of the whole
recipe (three passes an image, two for each multiply-add) divided by the peak of eight H100s, 989 TFLOP/s each, at two
assumed utilisations (MFU). A good transformer reaches 30 to 50 %; a scan is not made of matrix products, so expect less
of DiS. Reading data, checkpoints and scores come in addition. A GPU needs a fast engine, too: `dis doctor` shows which
one `auto` takes; plain PyTorch (`torch`) is there for every device, not for speed. Memory is counted with the states
that the CPU kernel keeps; an engine for GPUs keeps others. Take a hundred steps before you rent a machine for days:
training prints its images per second and its MFU.
"""


def page() -> str:
    """The whole page."""
    configs = {name: load_preset(name) for name in preset_names()}
    configs = dict(sorted(configs.items(), key=lambda item: model_cost(item[1]).macs))
    large = {name: config for name, config in configs.items() if IMAGENET in name}
    rows = [_row(name, config) for name, config in configs.items()]
    heads = ["preset", "images", "model", "parameters", "GMAC", "recipe", "estimated memory"]
    hours = [_hours(name, config) for name, config in large.items()]
    hour_heads = ["preset", "estimated memory per GPU", *(f"hours at {share:.0%} MFU" for share in SHARES)]
    accumulation = ""
    if any(_parts(config) > 1 for config in large.values()):
        accumulation = (
            "`train.accumulation` computes a batch in parts where, by the estimate\n"
            "below, the whole would not fit into 80 GB; the tables include it, and the step is the same.\n"
        )
    return HEAD.format(
        table=_table(heads, rows),
        commands="\n".join(_command(name, config) for name, config in large.items()),
        accumulation=accumulation,
        estimate=_table(hour_heads, hours),
    )


def _row(name: str, config: RunConfig) -> list[str]:
    cost = model_cost(config)
    shape = model_shape(config)
    title = f"{model_family(config).title}-{shape.label}/{shape.patch_size}"
    train = config.train
    recipe = f"{train.steps:,} steps of {train.batch_size:,}, lr {train.lr:g}"
    recipe += f", {train.warmup_steps:,} of warm-up" if train.warmup_steps else ""
    macs = cost.macs / 1e9
    return [
        f"[`{name}`]({name}.toml)",
        _images(config),
        title,
        f"{cost.parameters / 1e6:.1f} M",
        f"{macs:.3f}" if macs < 1 else f"{macs:.1f}",
        recipe,
        size(_memory(name, config)),
    ]


def _images(config: RunConfig) -> str:
    """What it is trained on, by the preset's own description, without the model's name."""
    return config.description.rpartition(", ")[0] if "DiS-" in config.description else config.description.split(":")[0]


def _parts(config: RunConfig) -> int:
    """Parts that a batch has to be computed in, so that one fits into a GPU."""
    parts = config.train.accumulation
    while _bytes(config, config.train.batch_size // GPUS // parts) > GPU_BYTES:
        parts *= 2
    return parts


def _memory(name: str, config: RunConfig) -> int:
    if IMAGENET not in name:
        return _bytes(config, config.train.batch_size // config.train.accumulation)
    return _bytes(config, config.train.batch_size // GPUS // _parts(config))


def _bytes(config: RunConfig, batch: int) -> int:
    memory = model_family(config).memory
    assert memory is not None
    precision = "fp32" if config.train.precision == "fp32" else "bf16"
    return memory(model_shape(config), batch=batch, precision=precision).training


def _command(name: str, config: RunConfig) -> str:
    data = f"latents-{config.pixel_size}" if config.codec.kind == "vae" else "imagenet"
    parts = _parts(config)
    accumulation = f" train.accumulation={parts}" if parts > 1 else ""
    return f"$ torchrun --nproc-per-node {GPUS} -m dis_cli train --preset {name} --data {data}{accumulation}"


def _hours(name: str, config: RunConfig) -> list[str]:
    flops = 2 * model_cost(config).training_macs * config.train.batch_size * config.train.steps
    hours = [flops / (GPUS * GPU_FLOPS * share) / 3600 for share in SHARES]
    return [f"`{name}`", size(_memory(name, config)), *(f"{hour:.0f}" for hour in hours)]


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE.name}: {len(preset_names())} presets of {preset_dir().name}/")
