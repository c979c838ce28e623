"""`dis runs show`: one run with its settings, data, scores, time and lineage."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dis_cli.cli.display.help import Panel
from dis_cli.cli.display.output import Output
from dis_cli.cli.display.text import table
from dis_cli.cli.options import JsonFlag
from dis_cli.paths import home_path

if TYPE_CHECKING:
    from dis_cli.report.scores import ScoreRow


def show(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", parser=home_path, help="Run folder.", rich_help_panel=Panel.INPUT)
    ],
    as_json: JsonFlag = False,
) -> None:
    """Describe a run: model, data, time, what it began from, scores, and settings that are not its preset's.

    Example: dis runs show runs/dis-xs-digits
    """
    from dis_cli.report.record import preset_settings
    from dis_cli.report.scores import rows_of
    from dis_cli.workflows.run_facts import facts_of, open_run

    output = Output(as_json=as_json)
    record = open_run(run)
    for problem in record.summary.problems:
        output.warning(problem)
    facts, scores, preset = facts_of(record, whole_paths=True), rows_of(record), preset_settings(record)
    changed = {
        key: (value, preset[key]) for key, value in record.settings.items() if key in preset and preset[key] != value
    }
    told = {"run": str(run), **facts}
    width = max(map(len, told))
    lines = [f"{name:<{width}}  {value}" for name, value in told.items()]
    if scores:
        lines += ["", *table([["SCORE", "STEP", "VALUE", "IMAGES", "COMPARED WITH"], *map(_score, scores)])]
    if changed:
        rows = [[key, own, other] for key, (own, other) in changed.items()]
        lines += ["", *table([["SETTING", "THIS RUN", f"PRESET {record.settings['name']}"], *rows])]
    data = {
        "run": str(run),
        "facts": facts,
        "scores": [
            {"name": row.name, "value": row.value, "step": row.step, "images": row.images, "compared": row.compared}
            for row in scores
        ],
        "changed": {key: {"run": own, "preset": other} for key, (own, other) in changed.items()},
        "settings": record.summary.settings,
        "lineage": record.facts.get("lineage"),
    }
    output.result(lines, data)


def _score(row: "ScoreRow") -> list[str]:
    return [row.name, "-" if row.step is None else str(row.step), f"{row.value:.5g}", row.images, row.compared]
