"""The result of a score: its conditions beside its numbers, and its headlines."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from statistics import fmean, stdev
from types import MappingProxyType
from typing import Final

from dis_cli.config.schema import RunConfig
from dis_cli.data.source import ImageSource
from dis_cli.diffusion.samplers.table import VERSION
from dis_cli.dotted import load
from dis_cli.events import Metric
from dis_cli.metrics.extractors.base import Extractor, score_names
from dis_cli.metrics.table import DIGIT_SCORES, METRICS
from dis_cli.scan.engines.choose import ChosenEngine
from dis_cli.workflows.eval_fid.scorer import Scorer


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
    config: RunConfig, extractor: Extractor, source: ImageSource | None, engine: ChosenEngine, num_samples: int
) -> dict[str, object]:
    """The conditions of a model's score beside its weights, as result files have them.

    Args:
        source: The run's data, when they were compared with it.
    """
    data: dict[str, object] = {} if source is None else {"data": source.name, "data_sha256": source.fingerprint}
    if config.codec.kind == "vae":
        data["codec"] = config.codec.model_dump(mode="json")
    return {
        **extractor_facts(extractor),
        **data,
        "num_samples": num_samples,
        "seed": config.evaluate.seed,
        "sample": config.sample.model_dump(mode="json"),
        "samplers": VERSION,
        "engine": asdict(engine),
    }


def extractor_facts(extractor: Extractor) -> dict[str, object]:
    """The facts about the extractor and the packages, for results."""
    packages = ("torch", "torch-fidelity", "numpy", "pillow")
    return {
        "features": extractor.name,
        "features_sha256": extractor.sha256,
        "preprocessing": extractor.preprocessing,
        "versions": {name: version(name) for name in packages},
    }


def measurement_facts(scorer: Scorer, num_samples: int) -> dict[str, object]:
    """The facts about the metrics and the reference, for results."""
    how: dict[str, object] = {"metrics": list(scorer.metrics), "interval": scorer.interval}
    if scorer.compared is not None:
        how["reference"] = scorer.compared.facts
    images = None if scorer.compared is None else scorer.compared.images
    for name in scorer.metrics:
        if (place := METRICS[name].facts) is not None:
            how |= load(place)(num_samples, None if images is None else len(images))
    return how


# What two scores that are told while training must have in common to be compared.
_COMPARED: Final = (
    "num_samples", "seed", "features", "features_sha256", "data", "data_sha256", "codec", "reference", "sample",
    "ema_decay",
)  # fmt: skip


def headlines(
    metrics: Mapping[str, float],
    extractor: Extractor,
    step: int | None = None,
    result: Mapping[str, object] = MappingProxyType({}),
) -> Iterator[Metric]:
    """The headlines of the metrics, each with the numbers that give it meaning.

    Args:
        metrics: Numbers by their names.
        step: The optimizer step, when training.
        result: Conditions of the numbers, when training.
    """
    conditions = {key: result[key] for key in _COMPARED if key in result}
    if isinstance(sample := conditions.get("sample"), dict):
        # These change no image, or its last bits.
        conditions["sample"] = {key: sample[key] for key in sample if key not in ("batch_size", "precision")}
    judged = [name for name, score in DIGIT_SCORES.items() if score.higher_is_better is not None]
    for name in dict.fromkeys((*score_names(extractor).values(), *judged)):
        if name in metrics:
            beside = DIGIT_SCORES[name].beside if name in DIGIT_SCORES else ()
            context = {other: metrics[other] for other in beside if other in metrics}
            yield Metric(name=name, value=metrics[name], context=context, step=step, conditions=conditions)
