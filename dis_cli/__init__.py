"""DiS: diffusion models with a state space backbone (arXiv 2402.05608).

    import dis_cli

    model = dis_cli.load_model("runs/dis-xs-digits")
    images = dis_cli.sample_images(model, n=16, classes=3)

Both are loaded on first use, so that importing this package imports no torch.
"""

from typing import TYPE_CHECKING, Any

from dis_cli.version import __version__

if TYPE_CHECKING:
    from dis_cli.api import TrainedDiS, load_model, sample_images
    from dis_cli.errors import DisError

__all__ = ["DisError", "TrainedDiS", "__version__", "load_model", "sample_images"]


def __getattr__(name: str) -> Any:
    if name == "DisError":
        from dis_cli.errors import DisError

        return DisError
    if name in ("TrainedDiS", "load_model", "sample_images"):
        from dis_cli import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
