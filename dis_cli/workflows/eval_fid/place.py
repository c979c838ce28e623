"""The place of a score's result: a name made of its conditions, and never the place of another result."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dis_cli.config.generation import EvaluateConfig
from dis_cli.config.schema import RunConfig
from dis_cli.errors import MismatchError, UsageError
from dis_cli.events import Wrote
from dis_cli.metrics.extractors.base import Extractor
from dis_cli.metrics.scores import choose_metrics
from dis_cli.runtime.files import atomic_write_text, numbered
from dis_cli.runtime.targets import require_writable
from dis_cli.workflows.eval_fid.references import DATA, ScoreReference, usual_split
from dis_cli.workflows.load.model import LoadedModel
from dis_cli.workflows.sample.unfinished import FIRST_SAMPLERS, differences

# What a result says that its numbers do not depend on, or that follows from the rest.
_ASIDE: Final = ("schema", "command", "checkpoint", "result_file", "plot", "bounds", "notes", "best", "dry_run")
_SETTINGS_ASIDE: Final = ("batch_size", "precision", "ema")
# So long may a part of a name be that lists what the user gave.
_MAX_PART: Final = 40


def how_generated(config: RunConfig, average: Sequence[str] = (), precision: str = "fp32") -> tuple[str, ...]:
    """The settings that made the images, for the name of a result.

    Args:
        config: Its ``sample`` section, without "auto".
        average: Average of the weights, when it is not the usual one.
    """
    sample = config.sample
    how = f"{sample.sampler.replace('+', 'p')}-{sample.steps}"
    rounded = () if precision == "fp32" else (precision,)
    return (how, f"cfg-{sample.cfg_scale:g}", *sample.name_parts, *average, *rounded)


def how_scored(
    config: RunConfig,
    extractor: Extractor,
    metrics: Sequence[str],
    compared: ScoreReference | None,
    *,
    num_samples: int,
    usual_samples: int,
) -> tuple[str, ...]:
    """The conditions of a score that differ from the usual command's, for the name of its result.

    Args:
        usual_samples: Their default number.
    """
    first = EvaluateConfig.model_fields["seed"].default
    parts = [] if num_samples == usual_samples else [f"n-{num_samples}"]
    if compared is not None and compared.kind != DATA:
        parts.append(f"ref-{short_name(compared.name)}")
    elif compared is not None and compared.split != usual_split(config):
        parts.append(f"{compared.split}")
    if tuple(metrics) != ("fid",):
        everything = tuple(metrics) == choose_metrics(("all",), extractor, compared and compared.available)
        parts.append("all-metrics" if everything else "-".join(metrics))
    parts += [] if config.evaluate.seed == first else [f"seed-{config.evaluate.seed}"]
    return tuple(parts)


def short_name(path: str) -> str:
    """The last part of a path, as a part of a name of a file."""
    name = Path(path).absolute().name
    for suffix in (".gz", ".tgz", ".npz", ".zip", ".tar"):
        name = name.removesuffix(suffix)
    name = "".join(sign if sign.isalnum() or sign in "._-" else "-" for sign in name)
    return name[:_MAX_PART] or "images"


def listed_values(name: str, values: Sequence[str]) -> str:
    """A setting and the values that it takes, as a part of a name of a file."""
    text = "-".join(values).replace("+", "p")
    if len(text) > _MAX_PART:
        text = f"{values[0]}-to-{values[-1]}-in-{len(values)}".replace("+", "p")
    return f"{name}-{text}"


def default_path(loaded: LoadedModel, parts: Sequence[str]) -> Path:
    """The default place of a result: the run's ``evaluations``, or ./evaluations.

    Args:
        parts: Conditions of the result beside the weights; see `how_generated` and `how_scored`.
    """
    root = loaded.saved.run_folder / "evaluations" if loaded.saved.run_folder else Path("evaluations")
    return root / ("_".join([origin_of(loaded), *parts]) + ".json")


def origin_of(loaded: LoadedModel) -> str:
    """The origin that results of a model are named after: its step in a run, else its file."""
    if loaded.saved.run_folder is None or loaded.saved.step is None:
        return loaded.saved.path.name if loaded.saved.path.is_dir() else loaded.saved.path.stem
    return f"step-{loaded.saved.step:08d}"


def find_place(path: Path, settings: Mapping[str, object], *, is_named: bool) -> Path:
    """The place of a result, chosen before the work: results of other conditions are never replaced.

    Args:
        path: The file that was asked for, or the default.
        settings: Conditions of the numbers, as the result will have them; with "plot" when a picture goes beside.
        is_named: Whether the user named the file. Else another name is found where it is taken.

    Raises:
        UsageError: The named file holds something else, or a score of other settings: names what differs.
        UsageError: Something that is no file is there.
        StorageError: The operating system does not allow it.
    """
    with_picture = "plot" in settings
    require_place(path)
    if with_picture:
        require_writable(path.with_suffix(".png"), "file", suffixes=(".png",))
    now = _comparable(settings)
    for place in numbered(path):
        there = _read(place, with_picture=with_picture)
        if there is None:
            return place
        before = _comparable(there)
        changed = differences(_common(before, now), _common(now, before))
        if there and not changed:
            return place
        if not is_named:
            continue
        free = next(other for other in numbered(path) if _read(other, with_picture=with_picture) is None)
        hint = f"Choose another file, such as `--out {free}`"
        if not there:
            taken = path if path.exists() else path.with_suffix(".png")
            raise UsageError(f"`{taken}` exists and is not a score", hint)
        raise MismatchError(f"`{path}` holds a score of other settings{changed}", f"{hint}, or delete that one")
    raise AssertionError("names never end")


def require_place(path: Path) -> None:
    """Refuse a path that a result file cannot be written to.

    Raises:
        UsageError: Something else is there, or the name says something else.
        StorageError: The operating system does not allow it.
    """
    require_writable(path, "file", suffixes=(".json",))


def write_result(path: Path, result: dict[str, object]) -> Wrote:
    """Write a result file, and into ``result`` where it is: at ``path``, or beside it where other numbers are.

    Raises:
        StorageError: It could not be written.
    """
    with_picture = "plot" in result
    place = next(place for place in numbered(path) if _loses_nothing(place, result, with_picture=with_picture))
    result["result_file"] = str(place)
    if with_picture:
        result["plot"] = str(place.with_suffix(".png"))
    atomic_write_text(place, json.dumps(result, indent=1) + "\n")
    return Wrote(what="result", path=place)


def points_there(path: Path) -> int:
    """The number of points of a sweep in a file."""
    points = (_read(path, with_picture=False) or {}).get("points")
    return len(points) if isinstance(points, list) else 0


def _read(path: Path, *, with_picture: bool) -> dict[str, Any] | None:
    """The result in a file; {} when it is something else, and None when nothing would be lost by writing there."""
    if not path.is_file():
        # A picture without the result that it is of is somebody else's. What is no file is refused when it is written.
        return {} if with_picture and not path.exists() and path.with_suffix(".png").exists() else None
    try:
        content = path.read_bytes()
        record = json.loads(content) if content else None
    except (OSError, ValueError, RecursionError):
        return {}
    is_result = isinstance(record, dict) and {"features", "num_samples"} <= record.keys()
    return record if is_result or not content else {}


def _loses_nothing(path: Path, result: Mapping[str, object], *, with_picture: bool) -> bool:
    """True if everything that a file says, its numbers included, is said by a result."""
    there = _read(path, with_picture=with_picture)
    if there is None:
        return True
    before, now = _comparable(there), _comparable(result)
    points = zip(before.pop("points", ()), now.pop("points", ()), strict=False)
    same_points = all(_comparable(old) == _comparable(new) for old, new in points)
    return bool(there) and same_points and all(now.get(key) == value for key, value in before.items())


def _comparable(record: Mapping[str, object]) -> dict[str, Any]:
    """The part of a result that is equal in all results of the same conditions."""
    facts: dict[str, Any] = {key: value for key, value in json.loads(json.dumps(record)).items() if key not in _ASIDE}
    # A single score is no sweep.
    facts.setdefault("axes", None)
    if "checkpoint_sha256" in facts:
        facts = FIRST_SAMPLERS | facts
    if isinstance(facts.get("precision"), dict):
        # Results of 0.1 have it under the name of a metric.
        facts["compute_precision"] = facts.pop("precision")
    for key in ("engine", "compute_precision"):
        # Why it was chosen is no condition.
        if isinstance(facts.get(key), dict):
            facts[key] = facts[key].get("name")
    for key in ("sample", "fixed"):
        if isinstance(facts.get(key), dict):
            facts[key] = {name: value for name, value in facts[key].items() if name not in _SETTINGS_ASIDE}
    return facts


def _common(facts: dict[str, Any], others: Mapping[str, object]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key in others}
