"""The optimizer: AdamW, whose weight decay pulls matrices only."""

from collections.abc import Mapping

from torch import nn
from torch.optim import AdamW

# Of two dimensions and more, and yet not decayed. ``A_log`` holds logarithms of rates: pulled to 0, all states would
# forget alike; Mamba's own code, too, asks to leave it and ``D`` alone. A position is added to a token, as a bias is.
UNDECAYED = frozenset({"A_log", "A_b_log", "pos_embed"})

FUSED_DEVICES = frozenset({"cpu", "cuda"})


def make_optimizer(model: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float) -> AdamW:
    """AdamW (arXiv 1711.05101) over all parameters in two groups, its update fused into one pass where torch can.

    Args:
        lr: Learning rate of the first step.
        betas: Decay rates of the first and second moment.
        weight_decay: Decoupled weight decay of the first group; that of the second is 0.
    """
    named = dict(model.named_parameters())
    groups = [
        {"params": [parameter for name, parameter in named.items() if is_decayed(name, parameter)]},
        {
            "params": [parameter for name, parameter in named.items() if not is_decayed(name, parameter)],
            "weight_decay": 0.0,
        },
    ]
    return AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=_fused(named))


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """True if weight decay pulls a parameter to 0: matrices and convolutions, the class table among them.

    Vectors are left alone: biases, weights of norms, and ``D``. At 0 they do not mean "nothing": a norm begins at 1 and
    so does ``D``, and the bias of ``dt_proj`` says how long a state remembers. The class table is a linear layer on
    one-hot vectors, and decayed like one.

    Args:
        name: As ``named_parameters`` gives it; only what comes after the last dot counts.
    """
    return parameter.ndim >= 2 and name.rpartition(".")[2] not in UNDECAYED


def _fused(named: Mapping[str, nn.Parameter]) -> bool:
    return all(parameter.device.type in FUSED_DEVICES for parameter in named.values())
