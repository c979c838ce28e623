"""`dis doctor`: the capabilities of this machine, and a check that it computes correctly."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from dis_cli.cli.display.help import Panel
from dis_cli.cli.display.output import Output
from dis_cli.cli.display.text import size, table
from dis_cli.cli.options import JsonFlag
from dis_cli.errors import DisError, NegativeVerdict


def doctor(
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="Check only this device: cpu, cuda or cuda:N  [default: all]",
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Report versions, devices and engines, and check that each engine computes correctly.

    Exits with 3 if an engine computes wrongly or fails; an engine that is not installed is no failure.

    Example: dis doctor --json
    """
    output = Output(progress=False, as_json=as_json)
    try:
        from dis_cli.workflows.doctor import diagnose
    except ImportError as error:
        raise DisError(f"A required package does not load: {error}", "Install dis-cli again") from error

    report = output.render(diagnose(device=device))
    output.result(_lines(report), report)
    if problems := report["problems"]:
        raise NegativeVerdict(
            f"{len(problems)} {'check' if len(problems) == 1 else 'checks'} failed:"
            + "".join(f"\n  {problem}" for problem in problems),
            "Train and sample with engine=torch, which computes everywhere, or without the GPU: `--device cpu`",
        )


def _lines(report: Mapping[str, Any]) -> list[str]:
    cpu = report["cpu"]
    threads = cpu["num_torch_threads"]
    kernel = report["kernel"]
    packages = ", ".join(f"{name} {version or 'not installed'}" for name, version in report["packages"].items())
    lines = [
        f"versions   dis {report['dis']}, Python {report['python']}, PyTorch {report['torch']}",
        f"packages   {packages}",
        f"platform   {report['platform']}",
        f"processor  {cpu['name']}, {_count(cpu['num_cores'], 'core')}, {_count(threads, 'thread')} for PyTorch, "
        f"which uses {cpu['torch_capability']}",
        f"waiting    {_waiting(cpu['threads_wait'])}",
        f"memory     {_memory(report)}",
        f"disk       {size(report['free_disk_bytes'])} free in this folder",
        f"kernel     {kernel['isa'] if kernel['why_not'] is None else kernel['why_not']}",
    ]
    for name, facts in report["devices"].items():
        rates = facts["matmul_gflops_per_second"]
        lines += [
            "",
            f"{name}" if name == "cpu" else f"{name}: {facts['name']}, {_memory(facts)}",
            f"  engine     auto takes {facts['engine']['name']}: {facts['engine']['reason']}",
            f"  precision  auto takes {facts['precision']['name']}: {facts['precision']['reason']}",
            "  products   " + ", ".join(f"{rate:,.0f} GFLOP/s in {numbers}" for numbers, rate in rates.items()),
            "",
            *(f"  {line}" for line in _engine_table(report["engines"][name])),
        ]
    verdict = "healthy: every installed engine agrees with the recurrence" if report["healthy"] else "not healthy"
    return [*lines, "", verdict]


def _engine_table(engines: Mapping[str, Any]) -> list[str]:
    rows = [["ENGINE", "ERROR", "STATE"]]
    for name, facts in engines.items():
        error = facts["parity_error"]
        state = "available" if facts["available"] else "not available"
        reason = f": {facts['reason']}" if facts["reason"] else ""
        rows.append([name, "-" if error is None else f"{error:.1e}", state + reason])
    return table(rows)


def _waiting(facts: Mapping[str, Any]) -> str:
    """The waiting of OpenMP's threads for each other."""
    variable, value = facts["variable"], facts["value"]
    if value is None:
        return f"OpenMP's own default: {variable} is not set"
    who = f"set by dis; {variable} in the environment overrides it" if facts["set_by"] == "dis" else "your environment"
    return f"threads spin by {variable}={value} ({who})"


def _memory(facts: Mapping[str, Any]) -> str:
    total, free = facts["total_memory_bytes"], facts["free_memory_bytes"]
    if total is None:
        return "of unknown size"
    return f"{size(total)}" if free is None else f"{size(free)} free of {size(total)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
