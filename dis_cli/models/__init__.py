"""The DiS backbone: ``from dis_cli.models import DiS``.

Loaded on first use, since ``families`` and the closed forms must work without torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dis_cli.models.dis.backbone import DiS

__all__ = ["DiS"]


def __getattr__(name: str) -> Any:
    if name == "DiS":
        from dis_cli.models.dis.backbone import DiS

        return DiS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
