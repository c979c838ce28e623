"""What a score's result says beside its numbers, what of it is told at once, and where it is written."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

from dis_cli.config.schema import RunConfig
from dis_cli.data.source import ImageSource
from dis_cli.events import Metric, Wrote
from dis_cli.metrics.features import Extractor, score_names
from dis_cli.metrics.inception_score import NUM_SPLITS
from dis_cli.metrics.kid import NUM_SUBSETS, SUBSET_SEED, subset_size_for
from dis_cli.runtime.files import atomic_write_text
from dis_cli.runtime.targets import require_writable
from dis_cli.scan.engines import Engine
from dis_cli.workflows.load import LoadedModel
from dis_cli.workflows.scorer import Scorer

# What is told as soon as it is known, each with the numbers that give it meaning; so are all metrics.
HEADLINES: Final[dict[str, tuple[str, ...]]] = {
    "fid": (),
    "frechet_digits": ("floor", "class_gaussians"),
    "class_accuracy": ("class_accuracy_real",),
}


def joined(rounds: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """The result of several draws: the mean of each number, and under "draws" its values and their spread."""
    if len(rounds) == 1:
        return dict(rounds[0])
    numbers = [name for name, value in rounds[0].items() if isinstance(value, float)]
    values = {name: [value for found in rounds if isinstance(value := found[name], float)] for name in numbers}
    draws = {name: {"mean": fmean(own), "std": stdev(own), "values": own} for name, own in values.items()}
    means: dict[str, object] = {name: fmean(own) for name, own in values.items()}
    texts = {name: value for name, value in rounds[0].items() if isinstance(value, str)}
    return means | texts | {"draws": draws}


def conditions(
    config: RunConfig, extractor: Extractor, source: ImageSource | None, engine: Engine, num_samples: int
) -> dict[str, object]:
    """What a score of a model depends on beside the weights, as result files have it.

    Args:
        config: How the images were generated.
        extractor: What looked at them.
        source: The run's data, when they were compared with it.
        engine: What computed the scan.
        num_samples: How many there were.
    """
    data = {} if source is None else {"data": source.name, "data_sha256": source.fingerprint}
    return {
        **looked_at_by(extractor),
        **data,
        "num_samples": num_samples,
        "seed": config.evaluate.seed,
        "sample": config.sample.model_dump(mode="json"),
        "engine": asdict(engine),
    }


def looked_at_by(extractor: Extractor) -> dict[str, object]:
    """What results say of the extractor, and of the packages that computed."""
    packages = ("torch", "torch-fidelity", "numpy", "pillow")
    return {
        "features": extractor.name,
        "features_sha256": extractor.sha256,
        "preprocessing": extractor.preprocessing,
        "versions": {name: version(name) for name in packages},
    }


def measured_how(scorer: Scorer, num_samples: int) -> dict[str, object]:
    """What results say of the metrics and the reference."""
    how: dict[str, object] = {"metrics": list(scorer.metrics)}
    if scorer.compared is not None:
        how["reference"] = scorer.compared.facts
    if "inception_score" in scorer.metrics:
        how["inception_score_parts"] = NUM_SPLITS
    if "kid" in scorer.metrics and scorer.compared is not None and scorer.compared.images is not None:
        size = subset_size_for(num_samples, len(scorer.compared.images))
        how["kid_subsets"] = {"number": NUM_SUBSETS, "size": size, "seed": SUBSET_SEED}
    return how


def headlines(metrics: Mapping[str, float], extractor: Extractor, step: int | None = None) -> Iterator[Metric]:
    """What is told of the metrics at once, each with the numbers that give it meaning; ``step`` when training."""
    for name, beside in (dict.fromkeys(score_names(extractor).values(), ()) | HEADLINES).items():
        if name in metrics:
            context = {other: metrics[other] for other in beside if other in metrics}
            yield Metric(name=name, value=metrics[name], context=context, step=step)


def write_result(path: Path, result: dict[str, object]) -> Wrote:
    """Write a result file.

    Raises:
        StorageError: It could not be written.
    """
    atomic_write_text(path, json.dumps(result, indent=1) + "\n")
    return Wrote(what="result", path=path)


def require_place(path: Path) -> None:
    """Refuse a path that a result file cannot be written to.

    Raises:
        UsageError: Something else is there, or the name says something else.
        StorageError: The operating system does not allow it.
    """
    require_writable(path, "file", suffixes=(".json",))


def default_path(loaded: LoadedModel, config: RunConfig, features: str) -> Path:
    """Where a result goes unless told: the run's ``evaluations``, or ./evaluations."""
    if loaded.run_folder is None and loaded.step is None:
        root, origin = Path("evaluations"), loaded.path.stem
    else:
        root = loaded.run_folder / "evaluations" if loaded.run_folder else Path("evaluations")
        origin = f"step-{loaded.step:08d}"
    return root / result_name(origin, config, features, loaded.average.name_parts)


def result_name(origin: str, config: RunConfig, features: str, average: Sequence[str] = ()) -> str:
    """The name of a result file, so that results of other settings do not overwrite each other.

    Args:
        origin: Which weights.
        config: Its ``sample`` section says how the images were made.
        features: The extractor.
        average: Which average of the weights, when it is not the usual one.
    """
    sample = config.sample
    how = f"{sample.sampler.replace('+', 'p')}-{sample.steps}"
    return "_".join([origin, features, how, f"cfg-{sample.cfg_scale:g}", *sample.name_parts, *average]) + ".json"
