"""A program: is a compiled DiS equal to an eager one? Arguments: backend, depth, engines.

In a process of its own, since torch's compiler cannot look into the checks of annotations that tests install.
"""

import sys
from typing import Any

import torch
from support.compare import output_weights
from support.oracle import assert_matches
from torch import Tensor

from dis_cli.models import DiS


def gradients(model: Any, network: DiS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Samples enough for a mixer to run as one call of the kernel.
    x = torch.randn(4, 2, 4, 4, generator=generator).requires_grad_()
    out = model(x, torch.arange(4) * 100, torch.arange(4) % 3)
    names, parameters = zip(*network.named_parameters(), strict=True)
    found = torch.autograd.grad(out, [x, *parameters], output_weights(out.detach()))
    return {"out": out.detach(), "x": found[0], **dict(zip(names, found[1:], strict=True))}


def main(backend: str, depth: str, *engines: str) -> None:
    for engine in engines:
        torch.manual_seed(0)
        model = DiS(4, 2, 2, 16, int(depth), num_classes=3, d_state=4, engine=engine).eval()
        eager = gradients(model, model)
        compiled = gradients(torch.compile(model, backend=backend, fullgraph=True), model)
        for name, tensor in eager.items():
            assert_matches(compiled[name], tensor, torch.float32, f"{engine}: {name}")
        assert len(eager) > 20
        sys.stdout.write(f"{engine}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
