"""The reports of ``dis flops`` as tables, and tables as text, Markdown and CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dis_cli.cli.display.text import size, table

Report = Mapping[str, Any]

_MEMORY_ROWS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer (AdamW)",
    "ema": "weight average (EMA)",
    "activations": "activations",
    "checkpointed_activations": "activations, checkpointed",
    "training": "training",
    "checkpointed_training": "training, checkpointed",
    "sampling": "sampling",
}


@dataclass(frozen=True)
class Table:
    """One table.

    Args:
        rows: Cells, as many in each as in the header.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def model_tables(report: Report) -> list[Table]:
    """One model: its parts, the conventions, the work, the memory; and the time when it was measured."""
    share = report["published_macs"] / report["macs"]
    totals = {
        "MACs": report["macs"],
        "FLOPs": report["flops"],
        "+ elementwise": report["macs_with_elementwise"],
        "as published": report["published_macs"],
        "as printed": report["published_flops"],
    }
    conventions = [
        [name, f"{totals[name] / 1e9:,.4f}", meaning + (f": {share:.1%} of MACs" if name == "as published" else "")]
        for name, meaning in report["conventions"].items()
    ]
    parts = ["PART", "PARAMETERS", "SHARE", "GMAC", "SHARE", "+ ELEMENTWISE", "AS PUBLISHED"]
    tables = [
        Table(_model_line(report), parts, _part_rows(report)),
        Table("Conventions, for one evaluation of one image", ["CONVENTION", "G", "WHAT IT COUNTS"], conventions),
        Table("Work", ["OF", "GMAC", "GFLOPs", ""], _work_rows(report)),
    ]
    # Not of a family whose memory nobody counted.
    if all(report["memory"].values()):
        title = f"Memory with a batch of {report['batch_size']}, on the CPU kernel"
        tables.append(Table(title, ["OF", "FP32", "BF16"], _memory_rows(report)))
    return [*tables, _time_table(report["time"])] if "time" in report else tables


def match_lines(report: Report) -> list[str]:
    """The settings of the nearest model, and both models' figures."""
    rows = [["MODEL", "PARAMETERS", "GMAC", "TRAINING STEP"]]
    for model in report["models"]:
        seconds = model["training_step_seconds"]
        time = "-" if seconds is None else f"{seconds:.4g} s"
        rows.append([model["name"], f"{model['num_parameters']:,}", _giga(model["macs"]), time])
    return [*table(rows), "", " ".join(report["settings"])]


def model_records(report: Report) -> list[Report]:
    """One model, a record for each part and for all; or for each thing that was timed."""
    if "time" in report:
        return [{"name": report["name"], "timed": what, **timing} for what, timing in report["time"]["timings"].items()]
    total = {
        "num_parameters": report["num_parameters"],
        "macs": report["macs"],
        "macs_share": 1.0,
        "macs_with_elementwise": report["macs_with_elementwise"],
        "published_macs": report["published_macs"],
    }
    return [{"part": name, **part} for name, part in (*report["parts"].items(), ("all", total))]


def sizes_tables(report: Report) -> list[Table]:
    """Every size and patch."""
    models = report["models"]
    header = ["MODEL", "PARAMETERS", "TOKENS", "GMAC", "GFLOPs", "+ ELEMENTWISE", "AS PUBLISHED", "MISSED"]
    rows = [
        [
            model["name"],
            f"{model['num_parameters']:,}",
            f"{model['num_tokens']:,}",
            *(_giga(model[name]) for name in ("macs", "flops", "macs_with_elementwise", "published_macs")),
            f"{1 - model['published_macs'] / model['macs']:.1%}",
        ]
        for model in models
    ]
    return [Table(f"One evaluation: {_grid(models[0])}", header, rows)]


def sizes_records(report: Report) -> list[Report]:
    """Every size and patch, a record for each model."""
    return report["models"]


def comparison_tables(report: Report) -> list[Table]:
    """DiS beside transformers, a table for each size."""
    pixels = report["image_sizes_pixels"]
    seen = "latents of images" if report["latent"] else "images"
    labels = f"{report['num_classes']} classes" if report["num_classes"] else "unconditional"
    header = ["MODEL", "PARAMETERS", *(f"{side:,} PX" for side in pixels), "DIS IS CHEAPER"]
    tables: list[Table] = []
    for comparison in report["comparisons"]:
        models = comparison["models"]
        tokens = [f"{cost['num_tokens']:,}" for cost in models[0]["costs"]]
        rows = [
            ["tokens", "", *tokens, ""],
            *(
                [
                    model["name"],
                    f"{model['num_parameters']:,}",
                    *(_giga(cost["macs"]) for cost in model["costs"]),
                    _crossing(model["dis_cheaper_from"], is_own=model is models[0]),
                ]
                for model in models
            ),
        ]
        title = f"GMAC of one evaluation, attention counted: {seen}, {labels}"
        tables.append(Table(title if not tables else "", header, rows))
    return tables


def comparison_records(report: Report) -> list[Report]:
    """DiS beside transformers, a record for each model and size of image."""
    return [
        {"name": model["name"], "num_parameters": model["num_parameters"], **cost}
        for comparison in report["comparisons"]
        for model in comparison["models"]
        for cost in model["costs"]
    ]


def as_text(tables: Iterable[Table]) -> list[str]:
    """Aligned columns, numbers and their headings to the right."""
    lines: list[str] = []
    for one in tables:
        columns = [_padded(column) for column in zip(one.header, *one.rows, strict=True)]
        lines += [""] * bool(lines) + [one.title] * bool(one.title)
        lines += table([list(row) for row in zip(*columns, strict=True)])
    return lines


def as_markdown(tables: Iterable[Table]) -> list[str]:
    """Tables as GitHub shows them."""
    lines: list[str] = []
    for one in tables:
        columns = list(zip(*one.rows, strict=True))
        lines += [""] * bool(lines) + ([one.title, ""] if one.title else [])
        lines += [
            _markdown_row(one.header),
            _markdown_row(["---:" if _is_numeric(column) else "---" for column in columns]),
            *map(_markdown_row, one.rows),
        ]
    return lines


def as_csv(records: Sequence[Report]) -> list[str]:
    """Records as comma-separated values, the first line naming the columns."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue().splitlines()


def _model_line(report: Report) -> str:
    parameters = report["num_parameters"]
    return f"{report['name']}: {parameters / 1e6:.1f} M parameters; {_grid(report)}, {report['num_tokens']:,} tokens"


def _grid(report: Report) -> str:
    grid, side = report["grid_size"], report["image_size_pixels"]
    seen = f"{grid}x{grid}x{report['in_channels']}"
    seen += f" latents of {side}x{side} pixels" if report["latent"] else " pixels"
    return f"{seen}, {report['num_classes']} classes" if report["num_classes"] else f"{seen}, unconditional"


def _part_rows(report: Report) -> list[list[str]]:
    parameters, macs = report["num_parameters"], report["macs"]
    rows = [
        [
            name,
            f"{part['num_parameters']:,}",
            f"{part['num_parameters'] / parameters:.1%}",
            _giga(part["macs"]),
            f"{part['macs'] / macs:.1%}",
            _giga(part["macs_with_elementwise"]),
            _giga(part["published_macs"]),
        ]
        for name, part in report["parts"].items()
    ]
    totals = [_giga(report[name]) for name in ("macs", "macs_with_elementwise", "published_macs")]
    return [*rows, ["all", f"{parameters:,}", "100.0%", totals[0], "100.0%", *totals[1:]]]


def _work_rows(report: Report) -> list[list[str]]:
    step, image = report["training_step"], report["image_sampled"]
    batch = report["batch_size"]
    images = "1 image" if batch == 1 else f"{batch:,} images"
    guided = "with the class and without it (guidance)" if image["guided"] else "without guidance"
    works = [
        ("one evaluation", report["macs"], "forward of 1 image"),
        ("one training step", step["macs"], f"forward and backward of {images}"),
        ("the same, checkpointed", step["checkpointed_macs"], "each block computed again in the backward"),
        ("one image sampled", image["macs"], f"over {image['steps']:,} steps {guided}"),
    ]
    return [[what, _giga(macs), _giga(2 * macs), meaning] for what, macs, meaning in works]


def _memory_rows(report: Report) -> list[list[str]]:
    memory = report["memory"]
    return [
        [label, *(size(memory[precision][f"{name}_bytes"]) for precision in ("fp32", "bf16"))]
        for name, label in _MEMORY_ROWS.items()
    ]


def _time_table(time: Report) -> Table:
    threads = time["num_threads"]
    where = f"{threads} thread{'s' * (threads != 1)}" if time["device"] == "cpu" else time["device"]
    title = (
        f"On this machine, {where}, engine {time['engine']['name']}, {time['precision']['name']}, "
        f"batch of {time['batch_size']}; a large matrix product reaches {time['matmul_gflops_per_second']:,.1f} GFLOP/s"
    )
    rows = [
        [
            what.replace("_", " "),
            f"{timing['seconds']:.4g} s",
            f"{timing['images_per_second']:.4g}",
            f"{timing['gflops_per_second']:,.1f}",
            f"{timing['utilisation']:.1%}",
        ]
        for what, timing in time["timings"].items()
    ]
    return Table(title, ["OF", "TIME", "IMAGES/S", "GFLOP/S", "OF THE PRODUCT'S"], rows)


def _crossing(start: Report | None, *, is_own: bool) -> str:
    if is_own:
        return ""
    if start is None or start["num_patches"] == 1:
        return "always" if start else "never"
    return f"from {start['num_tokens']:,} tokens ({start['image_size_pixels']:,} px)"


def _giga(number: int) -> str:
    return f"{number / 1e9:,.4f}" if number else "-"


def _is_numeric(column: Iterable[str]) -> bool:
    return all(not cell or cell == "-" or cell[0].isdigit() for cell in column)


def _padded(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    return [cell.rjust(width) for cell in column] if _is_numeric(column[1:]) else list(column)


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
