"""The model card of an export: the model, its training, and its scores."""

import json
from typing import Any

from dis_cli.config.presets import dump_toml, load_preset, preset_names
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import as_text
from dis_cli.report.scores import score_rows
from dis_cli.workflows.cost import model_cost, model_family, model_shape
from dis_cli.workflows.describe import describe_model, describe_objective, describe_sampling
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


def model_card(
    saved: SavedModel, config: RunConfig, name: str, scores: list[dict[str, Any]], picture: str | None = None
) -> str:
    """The text of a ``README.md``; it says only what the checkpoint and its run say.

    Args:
        config: Its settings, as they are written beside it; see `true_description`.
        name: The folder's name, for the commands.
        scores: Results that were measured of it; see `scores_of`.
        picture: The file beside it that shows images of these weights; None when there is none.
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
    shown = f"![Images that the run made while training]({picture})\n\n" if picture else ""
    return f"""---
license:
library_name: dis
pipeline_tag: unconditional-image-generation
tags: [diffusion, state-space-model, dis]
---

# {name if is_other else config.name}

{config.description or "A diffusion model of images."}

{shown}It is a {family.title}: {family.summary}.

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

Each image depends only on its seed and class. By default: {describe_sampling(config)}.

## Scores

{_score_table(scores)}

## License

Fill it in, here and above, before you publish the model.

## Settings

```toml
{dump_toml(config).strip()}
```
"""


def true_description(config: RunConfig) -> str:
    """The settings' description of the model; empty where it is a preset's, and the model or data are not.

    Settings take over the name and the description of the preset that they began with.
    """
    if config.name not in preset_names():
        return config.description
    preset = load_preset(config.name)
    return config.description if _described(preset) == _described(config) else ""


def _described(config: RunConfig) -> tuple[object, ...]:
    """The settings that descriptions of presets are about."""
    return (config.description, model_shape(config), config.data.source, config.codec.kind, config.codec.downsample)


def _score_table(scores: list[dict[str, Any]]) -> str:
    rows = [
        [row.label, f"{row.value:.6g}", row.images, row.compared, row.how, row.features] for row in score_rows(scores)
    ]
    if not rows:
        return "None were found with the checkpoint. `dis eval-fid` measures them."
    header = ["score", "value", "images", "compared with", "how", "features"]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in [header, ["---"] * len(header), *rows])


def _rows(facts: dict[str, str]) -> str:
    return "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items())


def _cell(text: str) -> str:
    """Text that may hold anything, in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
