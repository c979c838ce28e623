"""The operations of a state space backbone: selective scan, causal convolution, and the norm before them.

Loaded on first use, since ``engines.table`` must work without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dis_cli.scan.bidirectional import bidirectional_scan
    from dis_cli.scan.contract import Direction
    from dis_cli.scan.engines.choose import choose_engine
    from dis_cli.scan.norm import add_rms_norm
    from dis_cli.scan.ops import causal_conv_silu, selective_scan

__all__ = ["Direction", "add_rms_norm", "bidirectional_scan", "causal_conv_silu", "choose_engine", "selective_scan"]

_MODULES = {
    "Direction": "contract",
    "add_rms_norm": "norm",
    "bidirectional_scan": "bidirectional",
    "causal_conv_silu": "ops",
    "choose_engine": "engines.choose",
    "selective_scan": "ops",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
