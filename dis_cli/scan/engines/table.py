"""The engines: one row each, the only place outside an engine's own files that names it. No torch.

An engine computes what a block needs between its linear layers. Another one is a folder beside ``cpu/`` and a row here:
its module, which has to import on every machine, has the members of ``dis_cli.scan.contract.EngineModule``.
"""

import os
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Engine:
    """One engine.

    Args:
        module: Where it is, as a dotted name.
        devices: torch's kinds of devices that it computes on; empty for all.
        preference: Its place in what "auto" tries on such a device, the highest first; 0 is never tried.
        compiled: Whether it is compiled code, which is not taken on trust: it has to compute something small first.
        float64: Whether it computes in float64 too.
        bfloat16: Whether it reads and writes sequences in bfloat16 too, and computes in float32; the others are given
            copies in float32.
        interpreter: The environment variable that, set to 1, lets it compute on the CPU too, slowly, when asked for.
    """

    module: str
    devices: tuple[str, ...] = ()
    preference: int = 0
    compiled: bool = False
    float64: bool = False
    bfloat16: bool = False
    interpreter: str = ""

    def computes_on(self, device_type: str) -> bool:
        """Whether it can compute on this kind of device at all, whatever is installed."""
        return not self.devices or device_type in self.devices or (device_type == "cpu" and self.is_interpreted())

    def is_interpreted(self) -> bool:
        """Whether the environment asks for its interpreter."""
        return bool(self.interpreter) and os.environ.get(self.interpreter, "").lower() in ("1", "true", "on", "yes")


ENGINES: Final[dict[str, Engine]] = {
    # float32 on the CPU.
    "kernel": Engine("dis_cli.scan.engines.cpu.kernel", devices=("cpu",), preference=1, compiled=True),
    # Plain PyTorch with hand-written backwards.
    "torch": Engine("dis_cli.scan.engines.torch_engine", float64=True),
    # The recurrence token by token, differentiated by autograd: slow, for comparison.
    "reference": Engine("dis_cli.scan.engines.reference", float64=True),
    # The packages mamba-ssm and causal-conv1d.
    "mamba_ssm": Engine("dis_cli.scan.engines.mamba_engine", devices=("cuda",), preference=2, compiled=True),
    # Compiled by Triton at its first use. No card has measured it against mamba_ssm.
    "triton": Engine(
        "dis_cli.scan.engines.triton.engine",
        devices=("cuda", "xpu"),
        preference=1,
        compiled=True,
        bfloat16=True,
        interpreter="TRITON_INTERPRET",
    ),
}

AUTO: Final = "auto"
# What "auto" takes where no engine that it tries works: it computes everywhere.
LAST_RESORT: Final = "torch"


def allowed() -> list[str]:
    """What may be asked for."""
    return [AUTO, *ENGINES]


def preferred(device_type: str) -> list[str]:
    """What "auto" tries on this kind of device, the fastest first."""
    found = [
        name
        for name, engine in ENGINES.items()
        if engine.preference and (not engine.devices or device_type in engine.devices)
    ]
    # Most often there is one. torch.compile can sort plain values only.
    return (
        found if len(found) < 2 else [name for _, name in sorted((-ENGINES[name].preference, name) for name in found)]
    )
