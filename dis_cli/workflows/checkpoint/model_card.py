"""The page that goes with a model which is given away: what it is, how it came about, and what was measured."""

import json
from pathlib import Path
from typing import Any

from dis_cli.config.presets import dump_toml, load_preset, preset_names
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import as_text
from dis_cli.metrics.table import scores_in_results
from dis_cli.workflows.cost import model_cost, model_family, model_shape
from dis_cli.workflows.load.saved import SavedModel


def scores_of(saved: SavedModel) -> list[dict[str, Any]]:
    """The results that the run's folder has of exactly these weights, by file name; unreadable ones are left out."""
    if saved.run_folder is None:
        return []
    results: list[dict[str, Any]] = []
    for path in sorted((saved.run_folder / "evaluations").glob("*.json")):
        try:
            result = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        weights = (saved.step, saved.average.decay)
        if not isinstance(result, dict) or (result.get("step"), result.get("ema_decay")) != weights:
            continue
        # Scores while training say the step only.
        if result.get("checkpoint_sha256", saved.sha256) == saved.sha256:
            results.append(result)
    return results


def model_card(saved: SavedModel, config: RunConfig, name: str, scores: list[dict[str, Any]]) -> str:
    """The text of a ``README.md``; it says only what the checkpoint and its run say.

    Args:
        config: Its settings, as they are written beside it; see `true_description`.
        name: The folder's name, for the commands.
        scores: Results that were measured of it; see `scores_of`.
    """
    train, model, family = config.train, config.model, model_family(config)
    # Not what the preset of that name describes: its name would say what it is not.
    is_other = config.name in preset_names() and not config.description
    decay = saved.average.decay
    average = f"moving average of decay {as_text(decay)}" if decay else "as they were trained, not averaged"
    facts: dict[str, str] = {"begun with the preset": config.name} if is_other else {}
    facts |= {
        "parameters": f"{model_cost(config).parameters:,}",
        "model": describe_model(config),
        "objective": describe_objective(config),
        "weights": average,
        "steps": "unknown" if saved.step is None else f"{saved.step:,} of batches of {train.batch_size}",
    }
    if saved.form != "published":
        facts |= {
            "data": config.data.source,
            "optimizer": f"AdamW, learning rate {train.lr:g} ({train.lr_schedule})",
            "seed of the training": str(config.seed),
        }
    if saved.vae is not None:
        facts["VAE"] = f"{saved.vae.name}, weights of sha256 {saved.vae.weights_sha256}"
    elif config.codec.kind == "vae":
        facts["VAE"] = as_text(config.codec.vae)
    if saved.class_names:
        facts["classes"] = ", ".join(saved.class_names)
    label = "--class 0 " if model.num_classes else ""
    classes = ", classes=0" if model.num_classes else ""
    vae = " --vae DIR" if config.codec.kind == "vae" else ""
    return f"""---
license:
library_name: dis
pipeline_tag: unconditional-image-generation
tags: [diffusion, state-space-model, dis]
---

# {name if is_other else config.name}

{config.description or "A diffusion model of images."}

It is a {family.title}: {family.summary}.

| | |
| --- | --- |
{_rows(facts)}

## How to sample it

```console
$ dis sample --ckpt {name} {label}-n 16 --seed 0{vae}
```

```python
import dis_cli

model = dis_cli.load_model("{name}")
images = dis_cli.sample_images(model, n=16{classes}, seeds=range(16))  # (16, h, w, c), uint8
```

An image depends on its seed and class only. Unless asked for otherwise: {describe_sampling(config)}.

## Scores

{_score_table(scores)}

## License

To be filled in, above as well, by whoever gives the model away.

## Settings

```toml
{dump_toml(config).strip()}
```
"""


def true_description(config: RunConfig) -> str:
    """What the settings say of the model in words; nothing where these are a preset's, and the model or data are not.

    Settings take over the name and the description of the preset that they began with.
    """
    if config.name not in preset_names():
        return config.description
    preset = load_preset(config.name)
    return config.description if _described(preset) == _described(config) else ""


def _described(config: RunConfig) -> tuple[object, ...]:
    """What descriptions of presets are about."""
    return (config.description, model_shape(config), config.data.source, config.codec.kind, config.codec.downsample)


def describe_model(config: RunConfig) -> str:
    """The architecture in a line."""
    model = config.model
    classes = f"{model.num_classes} classes" if model.num_classes else "unconditional"
    grid = f"{model.image_size}x{model.image_size}x{model.in_channels}"
    where = f"latents {grid} of {config.pixel_size} pixels" if config.codec.kind == "vae" else f"pixels {grid}"
    return f"{model_shape(config).layers}, patch {model.patch_size}, on {where}, {classes}"


def describe_objective(config: RunConfig) -> str:
    """What the model predicts, of which process, in a line."""
    diffusion = config.diffusion
    return f"{diffusion.prediction}, {diffusion.schedule}, {diffusion.num_timesteps} timesteps, {diffusion.variance}"


def describe_sampling(config: RunConfig) -> str:
    """How images are generated unless asked for otherwise, in a line."""
    sample = config.sample
    return f"{sample.sampler}, {sample.steps} steps, guidance {sample.cfg_scale:g}"


def _score_table(scores: list[dict[str, Any]]) -> str:
    rows = [
        [
            score.label,
            f"{result[key]:.6g}",
            str(result.get("num_samples")),
            _compared(result),
            _how(result),
            str(result.get("features")),
        ]
        for result in scores
        for key, score in scores_in_results().items()
        if isinstance(result.get(key), int | float)
    ]
    if not rows:
        return "None were found with the checkpoint. `dis eval-fid` measures them."
    header = ["score", "value", "images", "compared with", "how", "features"]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in [header, ["---"] * len(header), *rows])


def _compared(result: dict[str, Any]) -> str:
    told = result.get("reference")
    reference: dict[str, Any] = told if isinstance(told, dict) else {}
    split = f", {reference['split']}" if reference.get("split") else ""
    count = f" ({reference['n']} images)" if reference.get("n") else ""
    # Where it lies on this machine is nobody's business.
    return f"{Path(str(reference['name'])).name}{split}{count}" if reference.get("name") else "-"


def _how(result: dict[str, Any]) -> str:
    sample = result.get("sample")
    how: dict[str, Any] = sample if isinstance(sample, dict) else {}
    return (
        f"{how.get('sampler')}, {how.get('steps')} steps, guidance {how.get('cfg_scale')}, "
        f"seeds from {result.get('seed')}"
    )


def _rows(facts: dict[str, str]) -> str:
    return "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items())


def _cell(text: str) -> str:
    """Text that may hold anything, in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
