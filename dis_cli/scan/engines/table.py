"""The engines: one row each, the only place outside an engine's own files that names it. No torch.

An engine computes what a block needs between its linear layers. Another one is a folder beside ``cpu/`` and a row here:
its module, imported when it is asked for, has the members of ``dis_cli.scan.contract.EngineModule``.
"""

from dataclasses import dataclass
from typing import Final

_DEVICES: Final = {"cpu": "the CPU", "cuda": "CUDA"}


@dataclass(frozen=True)
class Engine:
    """One engine.

    Args:
        module: Where it is, as a dotted name.
        devices: torch's kinds of devices that it computes on; empty for all.
        preference: Its place in what "auto" tries on such a device, the highest first; 0 is never tried.
        compiled: Whether it is compiled code, which is not taken on trust: it has to compute something small first.
        float64: Whether it computes in float64 too.
    """

    module: str
    devices: tuple[str, ...] = ()
    preference: int = 0
    compiled: bool = False
    float64: bool = False

    def why_not_on(self, device_type: str) -> str | None:
        """Why it cannot compute on this kind of device, whatever is installed; None when it can."""
        if not self.devices or device_type in self.devices:
            return None
        devices = " and ".join(_DEVICES.get(device, device) for device in self.devices)
        return f"it computes on {devices} only, not on {device_type}"


ENGINES: Final[dict[str, Engine]] = {
    # float32 on the CPU.
    "kernel": Engine("dis_cli.scan.engines.cpu.kernel", devices=("cpu",), preference=1, compiled=True),
    # Plain PyTorch with hand-written backwards.
    "torch": Engine("dis_cli.scan.engines.torch_engine", float64=True),
    # The recurrence token by token, differentiated by autograd: slow, for comparison.
    "reference": Engine("dis_cli.scan.engines.reference", float64=True),
    # The packages mamba-ssm and causal-conv1d.
    "mamba_ssm": Engine("dis_cli.scan.engines.mamba_engine", devices=("cuda",), preference=1, compiled=True),
}

AUTO: Final = "auto"
# What "auto" takes where no engine that it tries works: it computes everywhere.
LAST_RESORT: Final = "torch"


def allowed() -> list[str]:
    """What may be asked for."""
    return [AUTO, *ENGINES]


def preferred(device_type: str) -> list[str]:
    """What "auto" tries on this kind of device, the fastest first."""
    # Tuples of plain values, which torch.compile can sort.
    places = [
        (-engine.preference, name)
        for name, engine in ENGINES.items()
        if engine.preference and engine.why_not_on(device_type) is None
    ]
    return [name for _, name in sorted(places)]
