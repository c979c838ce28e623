"""DiS: diffusion models with a state space backbone (arXiv 2402.05608)."""

__version__ = "0.1.0"
