"""The results of `dis eval-fid` as lines of text."""

from typing import Any

from dis_cli.metrics.table import DIGIT_SCORES, EPSILON_ERROR, OF_MODEL

_WIDTH = 14


def result_lines(result: dict[str, Any]) -> list[str]:
    """One result."""
    if EPSILON_ERROR in result or OF_MODEL in result.get("metrics", ()):
        return _loss_lines(result)
    lines = [*_head(result), *_digit_lines(result)]
    scores: list[tuple[str, str]] = []
    for name, value in scores_of(result).items():
        # These are said in lines of their own.
        if name in DIGIT_SCORES and "floor" in result:
            continue
        if not name.endswith("_std"):
            scores.append((name, _number(value) + _around(result, name)))
    for name, draw in result.get("draws", {}).items():
        is_judged = name not in DIGIT_SCORES or DIGIT_SCORES[name].higher_is_better is not None
        if is_judged and name not in _stds(result):
            values = ", ".join(_number(value) for value in draw["values"])
            scores.append((f"{name}, draws", f"{_number(draw['mean'])} +- {_number(draw['std'])}  ({values})"))
    width = max([_WIDTH, *(len(name) for name, _ in scores)])
    lines += [f"{name:<{width}}  {text}" for name, text in scores]
    return [*lines, _line("result", result["result_file"])]


def _loss_lines(result: dict[str, Any]) -> list[str]:
    """Losses on held-out images."""
    kind = "training images" if result["trained_on"] else "held-out images"
    lines = [_line("images", f"{result['num_samples']:,} {kind} of {result['held_out']}")]
    if EPSILON_ERROR in result:
        spread = result[f"{EPSILON_ERROR}_std_error"]
        quarters = ", ".join(map(_number, result[f"{EPSILON_ERROR}_quarters"]))
        lines += [
            _line(OF_MODEL, _number(result[OF_MODEL])),
            _line(EPSILON_ERROR, f"{_number(result[EPSILON_ERROR])} +- {_number(spread)}"),
            _line("", f"by quarters, from the noisiest: {quarters}"),
        ]
    return [*lines, _line("result", result["result_file"])]


def sweep_lines(result: dict[str, Any]) -> list[str]:
    """The table of a sweep, its best row marked."""
    points = result["points"]
    if not points:
        return [f"points  {result.get('num_points', 0)}", _line("result", result["result_file"])]
    keys = list(points[0]["settings"])
    judged = result["judged_by"]
    constant = [name for score in DIGIT_SCORES.values() for name in score.beside]
    names = [
        name for name in scores_of(points[0]) if name not in constant and name != judged and not name.endswith("_std")
    ]
    names = [judged, *names]
    rows = [["", *keys, *names]]
    for place, point in enumerate(points):
        mark = "*" if place == result["best"] else ""
        rows.append([mark, *(point["settings"][key] for key in keys), *(_number(point[name]) for name in names)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    fixed = [f"{name} {_number(points[0][name])}" for name in constant if name in points[0]]
    return [
        *_head(result),
        *table,
        *([f"real and simple images: {', '.join(fixed)}"] if fixed else []),
        _line("plot", result["plot"]),
        _line("result", result["result_file"]),
    ]


def scores_of(result: dict[str, Any]) -> dict[str, float]:
    """The numbers that were measured."""
    known = ("ema_decay",)
    return {name: value for name, value in result.items() if isinstance(value, float) and name not in known}


def _head(result: dict[str, Any]) -> list[str]:
    what = f"{result['num_samples']:,}"
    if "sample" in result:
        how = result["sample"]
        what += f", {how['sampler']} {how['steps']} steps, guidance {how['cfg_scale']:g}, seeds from {result['seed']}"
    elif "images" in result:
        what += f" of {result['images']}"
    else:
        what += f" for each point, seeds from {result['seed']}"
    lines = [_line("images", what)]
    reference = result.get("reference")
    if reference is not None:
        split = f", {reference['split']} images" if "split" in reference else ""
        count = "" if reference["n"] is None else f" ({reference['n']:,})"
        lines.append(_line("compared with", f"{reference['name']}{split}{count}"))
    return [*lines, _line("features", f"{result['features']}, sha256 {result['features_sha256'][:12]}...")]


def _digit_lines(result: dict[str, Any]) -> list[str]:
    if "floor" not in result:
        return []
    name = next(name for name, score in DIGIT_SCORES.items() if "floor" in score.beside and name in result)
    real = "test" if result["reference"].get("split") == "test" else "reference"
    lines = [
        _line(
            name,
            f"{result[name]:.2f} to the {real} images  "
            f"(floor: real training images {result['floor']:.2f}; class Gaussians {result['class_gaussians']:.1f})"
            f"{_interval(result, name)}",
        ),
        _line("", f"{result[f'{name}_train']:.2f} to the training images"),
    ]
    if "class_accuracy" in result:
        lines.append(
            _line(
                "class accuracy",
                f"{result['class_accuracy']:.1%}  (real {real} images {result['class_accuracy_real']:.1%})",
            )
        )
    copies = (
        f"{result['copy_share']:.3f} nearer to a training image than the median neighbour, "
        f"{result['near_copy_share']:.3f} than the 5 % nearest  "
        f"(real {real} images {result['copy_share_real']:.3f}, {result['near_copy_share_real']:.3f})"
    )
    return [*lines, _line("copies", copies)]


def _around(result: dict[str, Any], name: str) -> str:
    spread = f" +- {_number(result[f'{name}_std'])}" if f"{name}_std" in result else ""
    return spread + _interval(result, name)


def _interval(result: dict[str, Any], name: str) -> str:
    interval = result.get(f"{name}_interval")
    if interval is None:
        return ""
    return f"  ({interval['level']:.0%} interval {_number(interval['low'])} to {_number(interval['high'])})"


def _stds(result: dict[str, Any]) -> list[str]:
    return [name for name in scores_of(result) if name.endswith("_std")]


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"


def _line(name: str, text: str) -> str:
    return f"{name:<{_WIDTH}}  {text}"
