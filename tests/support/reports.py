"""Run folders that were never trained, for pages of them."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from dis_cli.config.presets import dump_toml, load_preset
from dis_cli.config.schema import RunConfig
from dis_cli.events import Event, Metric, Started, Step
from dis_cli.runs.folder import RunDir

SHARP = '"><script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'
HOSTILE = (SHARP, "{{ 7*7 }} $\\frac{$", "\u202eright to left \u05d0\u05d1", "\U0001f9ea emoji", "n" * 300)


def png(seed: int, side: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_run(
    folder: Path, *, lr: float = 3e-3, steps: int = 40, every: int = 10, events: tuple[Event, ...] = (), depth: int = 7
) -> Path:
    """A run as training leaves it, but for its checkpoints."""
    raw = load_preset("dis-xs-digits").model_dump(mode="json")
    raw["train"] |= {"lr": lr, "steps": steps}
    raw["model"]["depth"] = depth
    config = RunConfig.model_validate(raw)
    run = RunDir(folder)
    run.create()
    run.config_path.write_text(dump_toml(config))
    facts = {"schema": 1, "command": ["dis", "train"], "device": "cpu", "config": config.model_dump(mode="json")}
    run.run_json.write_text(json.dumps(facts))
    run.append_event(Started(what="training", total=steps, unit="steps"))
    for step in range(1, steps + 1):
        run.append_event(
            Step(step=step, loss=1 / step, lr=lr, grad_norm=1.0, seconds=0.1, images_per_second=100.0 + step)
        )
        if step % every == 0:
            (run.samples / f"preview-{step:08d}.png").write_bytes(png(step))
            value = 100 * lr + depth + 10 / step
            run.append_event(Metric(name="frechet_digits", value=value, context={"floor": 4.0}, step=step))
    for event in events:
        run.append_event(event)
    return folder
