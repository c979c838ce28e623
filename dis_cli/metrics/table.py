"""The metrics: a row each, the only place that names them. No torch.

A new metric is a function of two sets' statistics or features, and a row here.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number in results.

    Attributes:
        label: Name in print; empty where it is not judged.
        higher_is_better: Better direction; None for a number that only gives meaning to others.
        beside: Values of real or simple images, which give it meaning.
    """

    label: str = ""
    higher_is_better: bool | None = None
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric; its own name is that of the number with the published Inception.

    Attributes:
        label: Name with the published Inception, and with nothing else.
        other_label: Name with any other extractor.
        other_name: The same in results, before the name of the extractor.
        short_name: Another word for it on the command line.
        needs: Data kept of each set: mean and covariance of the features or of the spatial features; all features;
            or nothing of the logits, which are added up as they come. "model": nothing, it is of a model.
        needs_reference: Whether it compares two sets, or is of the scored images alone.
        fewest: Images that each set must have.
        higher_is_better: Better direction.
        compute: "module:function" of what is kept of the scored images, then of the reference where it needs one. Gives
            the number, a `Spread`, or an object with the number as the attribute of the metric's name, computed once
            for all metrics that it holds. Of logits, a class with the members of `InceptionScore`.
        on_device: Whether the function also takes ``device``, where to compute.
        facts: "module:function" of the numbers of images of both sets: what results say of how it was measured.
        notes: "module:function" of what ``compute`` takes: sentences for the reader of the number.
    """

    label: str
    other_label: str
    other_name: str
    short_name: str | None = None
    needs: Literal["statistics", "spatial", "features", "logits", "model"]
    needs_reference: bool = True
    fewest: int
    higher_is_better: bool
    compute: str
    on_device: bool = False
    facts: str | None = None
    notes: str | None = None

    @property
    def output(self) -> str:
        """The extractor's output that it is made of."""
        return "features" if self.needs == "statistics" else self.needs


# Radii of balls reach to the 5th neighbour.
_NEIGHBOURS: Final[dict[str, Any]] = {
    "needs": "features",
    "fewest": 6,
    "higher_is_better": True,
    "compute": "dis_cli.metrics.precision_recall:precision_recall",
    "on_device": True,
}

METRICS: Final[dict[str, Metric]] = {
    "fid": Metric(
        label="FID",
        other_label="Frechet distance",
        other_name="frechet",
        needs="statistics",
        fewest=2,
        higher_is_better=False,
        compute="dis_cli.metrics.frechet:frechet_distance",
    ),
    "sfid": Metric(
        label="sFID",
        other_label="spatial Frechet distance",
        other_name="frechet_spatial",
        needs="spatial",
        fewest=2,
        higher_is_better=False,
        compute="dis_cli.metrics.frechet:frechet_distance",
    ),
    "inception_score": Metric(
        label="Inception Score",
        other_label="classifier score",
        other_name="classifier_score",
        short_name="is",
        needs="logits",
        needs_reference=False,
        fewest=10,
        higher_is_better=True,
        compute="dis_cli.metrics.inception_score:InceptionScore",
        facts="dis_cli.metrics.inception_score:facts",
    ),
    "kid": Metric(
        label="KID",
        other_label="kernel distance",
        other_name="kernel_distance",
        needs="features",
        fewest=2,
        higher_is_better=False,
        compute="dis_cli.metrics.kid:kernel_distance",
        facts="dis_cli.metrics.kid:facts",
        notes="dis_cli.metrics.kid:notes",
    ),
    "precision": Metric(label="precision", other_label="precision", other_name="precision", **_NEIGHBOURS),
    "recall": Metric(label="recall", other_label="recall", other_name="recall", **_NEIGHBOURS),
    "density": Metric(label="density", other_label="density", other_name="density", **_NEIGHBOURS),
    "coverage": Metric(label="coverage", other_label="coverage", other_name="coverage", **_NEIGHBOURS),
    # Of a model and images that it was not trained on; it looks at no image, and is the same with any extractor.
    "denoising_loss": Metric(
        label="held-out loss",
        other_label="held-out loss",
        other_name="denoising_loss",
        needs="model",
        fewest=1,
        higher_is_better=False,
        compute="dis_cli.diffusion.denoising:epsilon_errors",
    ),
}

# The metric that is of a model, not of images; and what is told beside it.
OF_MODEL: Final = "denoising_loss"
EPSILON_ERROR: Final = "eps_mse"

# Further scores of generated handwritten digits; see `digit_scores`.
DIGIT_SCORES: Final[dict[str, Score]] = {
    "frechet_digits": Score(
        label="Frechet distance, digits", higher_is_better=False, beside=("floor", "class_gaussians")
    ),
    "frechet_digits_train": Score(),
    "frechet_mnist": Score(
        label="Frechet distance, mnist", higher_is_better=False, beside=("floor", "class_gaussians", "noise")
    ),
    "frechet_mnist_train": Score(),
    "floor": Score(),
    "class_gaussians": Score(),
    "noise": Score(),
    "class_accuracy": Score(label="class accuracy", higher_is_better=True, beside=("class_accuracy_real",)),
    "class_accuracy_real": Score(),
    "copy_share": Score(beside=("copy_share_real",)),
    "copy_share_real": Score(),
    "near_copy_share": Score(beside=("near_copy_share_real",)),
    "near_copy_share_real": Score(),
}

# The extractors behind the names of scores, those first by which a run is rather judged.
_EXTRACTORS: Final = ("digits", "mnist", "inception", "clip", "dinov2")


def words() -> tuple[str, ...]:
    """The names of the metrics on the command line."""
    return tuple(row.short_name or name for name, row in METRICS.items())


def full_name(word: str) -> str:
    """The metric that a word on the command line stands for; other words as they are."""
    return next((name for name, row in METRICS.items() if row.short_name == word), word)


def result_name(metric: str, extractor: str | None) -> str:
    """The name of a metric in results; only the standard FID, and what comes from it, is called FID.

    Args:
        metric: One of METRICS.
        extractor: The label of the extractor; None is the published Inception.
    """
    return metric if extractor is None else f"{METRICS[metric].other_name}_{extractor}"


def scores_in_results() -> dict[str, Score]:
    """Every number in results that is better or worse than another, by its name there."""
    found: dict[str, Score] = {}
    for name, row in METRICS.items():
        for extractor in (None, *_EXTRACTORS) if row.needs != "model" else (None,):
            label = row.label if extractor is None else f"{row.other_label}, {extractor}"
            found[result_name(name, extractor)] = Score(label=label, higher_is_better=row.higher_is_better)
    found[EPSILON_ERROR] = Score(label="held-out error of epsilon", higher_is_better=False)
    return found | {name: score for name, score in DIGIT_SCORES.items() if score.higher_is_better is not None}


def judges(best_metric: str) -> tuple[str, ...]:
    """The names in results of what ``train.best_metric`` asks for: "distance" is the Frechet distance."""
    metric = "fid" if best_metric == "distance" else best_metric
    if metric not in METRICS or METRICS[metric].needs == "model":
        return (metric,)
    return tuple(result_name(metric, extractor) for extractor in (None, *_EXTRACTORS))


def without_reference() -> tuple[str, ...]:
    """The metrics of the scored images alone."""
    return tuple(name for name, row in METRICS.items() if not row.needs_reference)
