"""The facts about a run as its folder tells them: model, data, time, machine, what it began from."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dis_cli.report.record import RunRecord, number, read_run, shell, without_places
from dis_cli.workflows.cost import model_cost, model_family
from dis_cli.workflows.describe import describe_model, describe_objective, describe_sampling

# The keys of run.json that may say what a run came from.
_LINEAGE = ("lineage", "from")


def open_run(folder: Path) -> RunRecord:
    """A run, with what its model costs.

    Raises:
        UsageError: It is no run folder.
    """
    record = read_run(folder)
    if record.config is None:
        return record
    cost = model_cost(record.config)
    return replace(record, macs=cost.macs, parameters=cost.parameters)


def facts_of(record: RunRecord, *, whole_paths: bool = False) -> dict[str, str]:
    """What a run is, by name.

    Args:
        whole_paths: Whether paths keep the folders that they lie in.
    """
    shown = str if whole_paths else without_places
    summary, config, facts = record.summary, record.config, record.facts
    found: dict[str, str] = {"status": _status(record)}
    if config is not None:
        found["description"] = config.description
        found["model"] = f"{model_family(config).title}, {describe_model(config)}"
        found["objective"] = describe_objective(config)
        found["sampling"] = describe_sampling(config)
        found["data"] = config.data.source
    elif summary.preset:
        found["preset"] = summary.preset
    parameters = record.parameters or number(facts.get("parameters"))
    found["parameters"] = f"{parameters:,.0f}" if parameters else ""
    found["cost"] = f"{record.macs:,} MACs a forward and image" if record.macs is not None else ""
    seconds = record.steps["seconds"]
    found["time of the steps"] = _time(float(seconds[seconds == seconds].sum())) if len(seconds) else ""
    found["lineage"] = _lineage(facts)
    found["started"] = _text(facts, "started") or _text(facts, "imported")
    found["machine"] = ", ".join(filter(None, (_text(facts, "device"), _text(facts, "platform"))))
    found["processes and threads"] = " x ".join(filter(None, (_text(facts, "processes"), _text(facts, "threads"))))
    for name in ("engine", "precision"):
        told = facts.get(name)
        found[name] = f"{told.get('name')}: {told.get('reason')}" if isinstance(told, Mapping) else ""
    found["versions"] = ", ".join(
        f"{name} {_text(facts, name)}" for name in ("dis", "torch", "python") if _text(facts, name)
    )
    command = facts.get("command")
    if isinstance(command, list) and command and all(isinstance(word, str) for word in command):
        found["command"] = shell(["dis", *command[1:]])
    return {name: shown(value) for name, value in found.items() if value}


def _status(record: RunRecord) -> str:
    summary = record.summary
    steps = "" if summary.step is None else f", step {summary.step:,}"
    steps += f" of {summary.steps:,}" if steps and summary.steps is not None else ""
    # What holds a run names a machine.
    detail = f": {summary.detail}" if summary.detail and summary.status in ("stopped", "failed") else ""
    # The page that a training writes last is written while it still holds the run.
    is_over = summary.step is not None and summary.steps is not None and summary.step >= summary.steps
    status = "finished" if summary.status == "running" and is_over else summary.status
    return f"{status}{steps}{detail}"


def _lineage(facts: Mapping[str, object]) -> str:
    told = {key: facts[key] for key in _LINEAGE if facts.get(key)}
    return json.dumps(next(iter(told.values())) if len(told) == 1 else told, ensure_ascii=False) if told else ""


def _text(facts: Mapping[str, object], name: str) -> str:
    value = facts.get(name)
    return str(value) if isinstance(value, str | int) else ""


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{seconds / 60:.1f} min"
