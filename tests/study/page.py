"""The page of the study: ``python tests/study/run.py --page`` writes ``README.md`` and its plots from results.

Every sentence that depends on an outcome is chosen by the figures: a run that goes another way changes the page.
"""

import itertools
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

FOLDER = Path(__file__).parent
PAGE, RESULTS, DIGITS = FOLDER / "README.md", FOLDER / "results", FOLDER / "digits" / "results"
TIMES = "times.json"

Result = Mapping[str, Any]

HEAD = """\
# The study

<!-- Written by `python tests/study/run.py --page` from results/; a test compares. -->

The paper claims that more Gflops give a lower FID; that DiS is comparable or superior to CNN and transformer U-Nets of
its size; and that latents cost less and keep quality. It published neither weights nor the code of its ablations. Here
each claim is tried at a size that two CPU cores reach: MNIST at 32x32 pixels, ten classes, without guidance.

## Method

- **One harness.** All backbones get the same images, noise, timesteps, loss, sampler and score. Seeds make a run a
  function of its settings; the run files of this folder hold all of them.
- **Scores.** `frechet` is the Frechet distance to the 1,996 test images in 64 features of a bundled classifier of
  MNIST: the mean of two draws of as many generated images. It is no FID.{floors}
  `eps_mse` is the error of the noise on the test images at 16 signal-to-noise ratios that all objectives share; it
  needs no samples and has the least noise, so that ablations are judged by it.
- **Choices** (recipe, learning rates) were made on a held-out tenth of the training images, never on test images.
- **MACs** are those of one evaluation, scan included; "published" counts as the paper does.

`make study` makes the runs that are missing, and continues those that were stopped. {state}
"""


@dataclass(frozen=True)
class Times:
    """Seconds of a training step on one thread of a quiet machine, by family; empty before they are measured."""

    mnist: Mapping[str, float] = field(default_factory=dict)
    digits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """A configuration: the mean of its seeds.

    Args:
        name: Of the run with the first seed.
        seeds: How many there are.
        spreads: Of each figure, its standard deviation over the seeds; nothing where there is one seed.
    """

    name: str
    family: str
    settings: tuple[str, ...]
    seeds: int
    figures: Mapping[str, float]
    spreads: Mapping[str, float]

    def __getitem__(self, figure: str) -> float:
        return self.figures[figure]

    def text(self, figure: str, digits: int = 3) -> str:
        """A figure with its spread; a dash where it was not measured."""
        if figure not in self.figures:
            return "-"
        text = significant(self.figures[figure], digits)
        return f"{text} ± {significant(self.spreads[figure], 2)}" if figure in self.spreads else text


FIGURES = ("macs", "published_macs", "parameters", "frechet_mnist", "frechet_digits", "class_accuracy", "eps_mse")
FIGURES += ("seconds_per_step", "images_seen")
QUARTERS = tuple(f"eps_mse_quarter_{number}" for number in range(1, 5))


def read_results(folder: Path) -> dict[str, Result]:
    """All results of a folder by run."""
    return {path.stem: json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))}


def points(results: Mapping[str, Result], group: str) -> list[Point]:
    """The configurations of a group that have a result, cheapest first."""
    by_name: dict[str, list[Result]] = {}
    for name, result in results.items():
        if result["group"] == group:
            by_name.setdefault(name.split("-seed")[0], []).append(result)
    found = [_point(name, rows) for name, rows in by_name.items()]
    return sorted(found, key=lambda point: (point["macs"], point.name))


def _point(name: str, rows: Sequence[Result]) -> Point:
    rows = [row | dict(zip(QUARTERS, row.get("eps_mse_quarters", ()), strict=False)) for row in rows]
    values = {key: [float(row[key]) for row in rows if row.get(key) is not None] for key in (*FIGURES, *QUARTERS)}
    means = {key: statistics.mean(found) for key, found in values.items() if found}
    spreads = {key: statistics.stdev(found) for key, found in values.items() if len(set(found)) > 1}
    first = rows[0]
    return Point(name, first["family"], tuple(first["settings"]), len(rows), means, spreads)


def significant(value: float, digits: int = 3) -> str:
    """A number with as many significant digits, thousands grouped."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def spearman(found: Sequence[Point], by: str, figure: str) -> float | None:
    """Rank correlation of two figures; None of fewer than four configurations, which say nothing."""
    both = [point for point in found if by in point.figures and figure in point.figures]
    if len(both) < 4:
        return None
    return float(spearmanr([point[by] for point in both], [point[figure] for point in both]).statistic)


def power_law(found: Sequence[Point], figure: str) -> tuple[float, float]:
    """a and b of figure = a C^-b, C being MACs in units of 10^6, by least squares of the logarithms."""
    slope, intercept = np.polyfit(
        [math.log(point["macs"] / 1e6) for point in found], [math.log(point[figure]) for point in found], 1
    )
    return math.exp(intercept), -float(slope)


def setting(point: Point, key: str, usual: str) -> str:
    """The value that a configuration gives a setting."""
    return dict(text.split("=", 1) for text in point.settings).get(key, usual)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of the page."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def scaling(found: Sequence[Point]) -> Iterator[str]:
    """The first claim."""
    yield "## More Gflops, lower FID?\n"
    if not found:
        yield "No run of it has finished yet."
        return
    rho, rank = spearman(found, "macs", "eps_mse"), spearman(found, "macs", "frechet_mnist")
    if rho is None or rank is None:
        yield f"Only {len(found)} of 9 sizes have finished: no verdict yet.\n"
    else:
        steps = [setting(point, "model.patch_size", "4") for point in found]
        breaks = [
            f"patch {patch}"
            for patch in sorted(set(steps), key=int, reverse=True)
            if not _falls([point["eps_mse"] for point, own in zip(found, steps, strict=True) if own == patch])
        ]
        verdict = "**Yes**" if rho <= -0.9 else "**Mostly**" if rho <= -0.7 else "**Not shown**"
        a, b = power_law(found, "eps_mse")
        yield (
            f"{verdict}, for {len(found)} sizes at equal images. The rank correlation of MACs with `eps_mse` is "
            f"{rho:.2f}, with the Frechet distance {rank:.2f}. "
            + ("Within each patch size the error falls with every step in size." if not breaks else "")
            + (f"Within {' and '.join(breaks)} the error does not fall with every step in size." if breaks else "")
            + f" Least squares give eps_mse = {a:.3g} C^-{b:.3g}, C in millions of MACs.\n"
        )
        rows = [
            [name, *(_rho(spearman(found, by, figure)) for figure in ("eps_mse", "frechet_mnist"))]
            for by, name in (
                ("macs", "MACs, scan included"),
                ("published_macs", "MACs as published"),
                ("parameters", "parameters"),
            )
        ]
        yield table(["rank correlation of", "with `eps_mse`", "with `frechet`"], rows) + "\n"
        yield "![eps_mse and Frechet distance against MACs, a line for each patch size](scaling.svg)\n"
    rows = [
        [
            setting(point, "model.patch_size", "4"),
            f"{setting(point, 'model.embed_dim', '96')} x {setting(point, 'model.depth', '7')}",
            significant(point["parameters"] / 1e3),
            significant(point["macs"] / 1e6),
            point.text("eps_mse", 4),
            point.text("frechet_mnist"),
            point.text("class_accuracy"),
            str(point.seeds),
        ]
        for point in found
    ]
    head = ["patch", "width x depth", "k parameters", "MMACs", "`eps_mse`", "`frechet`", "class accuracy", "seeds"]
    yield table(head, rows)


def _falls(values: Sequence[float]) -> bool:
    return all(later < earlier for earlier, later in itertools.pairwise(values))


def _rho(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def peers(found: Sequence[Point], digits: Sequence[Point], times: Times) -> Iterator[str]:
    """The second claim."""
    yield "## Comparable or superior to its peers?\n"
    for title, rows, frechet, seconds in (
        ("MNIST, each family with the best of three learning rates", found, "frechet_mnist", times.mnist),
        (
            "Digits of 8x8 pixels, all with the recipe that was found for the DiS",
            digits,
            "frechet_digits",
            times.digits,
        ),
    ):
        if not rows:
            yield f"{title}: no run has finished yet.\n"
            continue
        yield f"{title}, equal images ({significant(rows[0]['images_seen'])}):\n"
        own = next((point for point in rows if point.family == "dis"), None)
        if own is not None and len(rows) > 1:
            yield _against(own, rows) + "\n"
        yield (
            table(
                [
                    "family",
                    "k parameters",
                    "MMACs",
                    "`eps_mse`",
                    "`frechet`",
                    "class accuracy",
                    "seconds a step",
                    "seeds",
                ],
                [
                    [
                        _NAMES[point.family],
                        significant(point["parameters"] / 1e3),
                        significant(point["macs"] / 1e6),
                        point.text("eps_mse", 4),
                        point.text(frechet),
                        point.text("class_accuracy"),
                        significant(seconds[point.family]) if point.family in seconds else "-",
                        str(point.seeds),
                    ]
                    for point in rows
                ],
            )
            + "\n"
        )


def equal_seconds(results: Mapping[str, Result], times: Mapping[str, float]) -> Iterator[str]:
    """The peers' held-out errors on the way, at the seconds that the quickest of them takes for its whole training.

    Args:
        times: Quiet seconds of a training step, by family.
    """
    ways = {
        name: result["eps_mse_on_the_way"]
        for name, result in results.items()
        if result["group"] == "peers" and result.get("eps_mse_on_the_way") and result["family"] in times
    }
    families = sorted({results[name]["family"] for name in ways})
    if len(families) < 2:
        return
    most = min(ways[name][-1][0] * times[results[name]["family"]] for name in ways)
    rows: list[list[str]] = []
    for share in (0.25, 0.5, 1):
        at: dict[str, list[float]] = {family: [] for family in families}
        for name, way in ways.items():
            family = results[name]["family"]
            reached = [value for step, value in way if step * times[family] <= share * most * (1 + 1e-9)]
            at[family] += reached[-1:]
        texts = [significant(statistics.mean(at[family]), 4) if at[family] else "-" for family in families]
        rows.append([f"{share * most / 60:.1f}", *texts])
    yield (
        "At equal seconds of one thread, with the seconds of a step measured in turns on the quiet machine ("
        + ", ".join(f"{_NAMES[family]} {times[family] * 1e3:.0f} ms" for family in families)
        + "): `eps_mse` of the averaged weights on the way. A slower family has not lowered its learning rate as far.\n"
    )
    yield table(["minutes", *(_NAMES[family] for family in families)], rows) + "\n"


_NAMES = {"dis": "DiS", "dit": "DiT", "uvit": "U-ViT", "unet": "U-Net"}


def _against(own: Point, rows: Sequence[Point]) -> str:
    wins = [_NAMES[point.family] for point in rows if point is not own and own["eps_mse"] < point["eps_mse"]]
    losses = [_NAMES[point.family] for point in rows if point is not own and own["eps_mse"] >= point["eps_mse"]]
    parts = [f"lower than that of {' and '.join(wins)}"] if wins else []
    parts += [f"**higher than that of {' and '.join(losses)}**"] if losses else []
    return f"The DiS's held-out error is {', and '.join(parts)}."


def compared(title: str, found: Sequence[Point], base: Point | None, empty: str) -> Iterator[str]:
    """Configurations beside one that they differ from in a setting.

    Args:
        base: That one; None before it has a result.
        empty: What is said before there is any.
    """
    yield f"## {title}\n"
    if not found or base is None:
        yield empty
        return
    noise = base.spreads.get("eps_mse")
    if noise:
        yield f"Two seeds of the base differ by a standard deviation of {significant(noise, 2)} in `eps_mse`.\n"
    rows = [
        [
            point.name,
            " ".join(text for text in point.settings if text not in base.settings) or "the base",
            significant(point["macs"] / 1e6),
            point.text("eps_mse", 4),
            "" if point is base else f"{(point['eps_mse'] / base['eps_mse'] - 1) * 100:+.1f} %",
            point.text("frechet_mnist"),
            str(point.seeds),
        ]
        for point in (base, *found)
    ]
    yield table(["run", "settings", "MMACs", "`eps_mse`", "against the base", "`frechet`", "seeds"], rows)


def recipe(found: Sequence[Point], empty: str) -> Iterator[str]:
    """The pilots, the best first.

    Args:
        empty: What is said before there is any.
    """
    yield "## The recipe, and what did not help\n"
    if not found:
        yield empty
        return
    yield (
        "Pilots of 26 k images, one seed, judged by the Frechet distance to held-out training images. `eps_mse` "
        "cannot judge here: a model whose output is the image is off by some grey levels where there is little noise, "
        "which are many times that noise, and no sampler notices. Its quarters, from the most to the least noise, show "
        "it.\n"
    )
    shared = set.intersection(*(set(point.settings) for point in found))
    rows = [
        [
            point.name,
            " ".join(text for text in point.settings if text not in shared) or "those of base.toml",
            point.text("frechet_mnist"),
            point.text("eps_mse", 4),
            " / ".join(map(point.text, QUARTERS)),
        ]
        for point in sorted(found, key=lambda point: point["frechet_mnist"])
    ]
    yield table(["run", "settings", "`frechet`", "`eps_mse`", "its quarters"], rows)


def page(results: Mapping[str, Result], digits: Mapping[str, Result], missing: int, times: Times) -> str:
    """The whole page.

    Args:
        results: Of the study.
        digits: Of the families on the digits.
        missing: How many runs have no result yet.
        times: Seconds of a training step on a quiet machine.
    """
    state = f"**{missing} of {missing + len(results)} runs are still to be made.**" if missing else ""
    sample = next((result for result in results.values() if "floor" in result), None)
    floors = (
        ""
        if sample is None
        else (
            f" Training images have {significant(sample['floor'])}, Gaussians fitted to each class "
            f"{significant(sample['class_gaussians'])}, noise {significant(sample['noise'])}."
        )
    )
    ablations, latents = points(results, "ablations"), points(results, "latents")
    sizes = points(results, "scaling")
    base = next((point for point in sizes if point.name == "scale-p4-96x7"), None)
    recipes = points(results, "pilots")
    none = "No run of it has finished yet."
    parts = [
        HEAD.format(floors=floors, state=state),
        "\n".join(scaling(sizes)),
        "\n".join(
            (*peers(points(results, "peers"), points(digits, "families"), times), *equal_seconds(results, times.mnist))
        ).rstrip(),
        "\n".join(compared("What the paper's choices are worth", ablations, base, none)),
        "\n".join(compared("Pixels or latents?", latents, base, none)),
        "\n".join(recipe(recipes, none)),
    ]
    machines = sorted({_machine(result) for result in (*results.values(), *digits.values())})
    parts += ["## Where the figures come from\n\n" + "\n".join(f"- {text}" for text in machines)] if machines else []
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _machine(result: Result) -> str:
    machine = result["machine"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, kernel {machine['kernel']}, torch {machine['torch']}, commit "
        f"{result['commit'][:10]}"
    )


def write_page(missing: int) -> Path:
    """Write the page and its plots from the results that exist; where it lies.

    Args:
        missing: How many runs have no result yet.
    """
    results = read_results(RESULTS)
    _write_plots(results)
    PAGE.write_text(page(results, read_results(DIGITS), missing, read_times()))
    return PAGE


def read_times() -> Times:
    """The seconds of a step that were measured."""
    return Times(*map(_read_times, (PAGE.parent, DIGITS.parent)))


def _read_times(folder: Path) -> Mapping[str, float]:
    path = folder / TIMES
    return json.loads(path.read_bytes())["seconds_per_step"] if path.is_file() else {}


def _write_plots(results: Mapping[str, Result]) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    sizes = points(results, "scaling")
    if len(sizes) < 4:
        return
    with mpl.rc_context({"svg.hashsalt": "dis", "font.size": 9}):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        for axes, (key, name) in zip(
            figure.subplots(1, 2), (("eps_mse", "eps_mse"), ("frechet_mnist", "Frechet distance")), strict=True
        ):
            for patch in ("8", "4", "2"):
                own = [point for point in sizes if setting(point, "model.patch_size", "4") == patch]
                axes.loglog([p["macs"] / 1e6 for p in own], [p[key] for p in own], "o-", label=f"patch {patch}")
            axes.set(xlabel="MMACs of an evaluation", ylabel=name)
            axes.legend(frameon=False)
        figure.savefig(FOLDER / "scaling.svg", metadata={"Date": None})
