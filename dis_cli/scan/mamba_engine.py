"""The CUDA scan and convolution of the packages mamba-ssm and causal-conv1d."""


def why_not() -> str | None:
    """Why these packages cannot be used; None when they can."""
    return "not written yet"
