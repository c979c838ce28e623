"""A program: is a compiled DiS equal to an eager one? Arguments: backend, depth, mode, engines.

The mode is "eval", "train" (drop path and dropped labels, their draws given), "checkpointed" (the same, with gradient
checkpointing in the compiled model only), or "ablated" (as "train", and nothing as published). In a process of its own,
since torch's compiler cannot look into the checks of annotations that tests install.
"""

import copy
import sys

import torch
from support.compare import output_weights
from support.naive_dis import ABLATED
from support.oracle import assert_matches
from torch import Tensor

from dis_cli.models import DiS


def gradients(model: DiS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Samples enough for a mixer to run as one call of the kernel.
    x = torch.randn(4, 2, 4, 4, generator=generator).requires_grad_()
    draws = {
        "label_drop_uniform": torch.rand(4, generator=generator),
        "drop_path_uniform": torch.rand(model.num_drop_path, 4, generator=generator),
    }
    out = model(x, torch.arange(4) * 100, torch.arange(4) % 3, **draws)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(out, [x, *parameters], output_weights(out.detach()))
    return {"out": out.detach(), "x": found[0], **dict(zip(names, found[1:], strict=True))}


def main(backend: str, depth: str, mode: str, *engines: str) -> None:
    for engine in engines:
        torch.manual_seed(0)
        settings = {"num_classes": 3, "d_state": 4, "engine": engine, "drop_path": 0.4, "label_drop": 0.3}
        model = DiS(4, 2, 2, 16, int(depth), **settings, **(ABLATED if mode == "ablated" else {}))
        model.train(mode != "eval")
        eager = gradients(model)
        compiled_model = copy.deepcopy(model)
        compiled_model.gradient_checkpointing = mode == "checkpointed"
        compiled_model.compile(backend=backend, fullgraph=True)
        assert list(compiled_model.state_dict()) == list(model.state_dict())
        compiled = gradients(compiled_model)
        for name, tensor in eager.items():
            assert_matches(compiled[name], tensor, torch.float32, f"{engine}: {name}")
        assert len(eager) > 20
        sys.stdout.write(f"{engine}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
