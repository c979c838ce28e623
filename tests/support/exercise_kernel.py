"""A program: the kernel at its edges, for tools that watch memory. Its arguments name what it does.

``sizes`` compares all functions, with each instruction set, with the reference; ``threads`` runs them on several
threads; ``overflow`` is an error, to see whether it is noticed.
"""

import dataclasses
import sys
from typing import Any

import torch
from support.compare import (
    CONV_SIZES,
    SCAN_SIZES,
    assert_same,
    check_conv,
    check_scan,
    conv_inputs,
    results,
    scan_inputs,
)
from support.engines import KERNEL, Case, using
from support.mixers import MIXER_SIZES, everything

from dis_cli.scan import add_rms_norm, selective_scan
from dis_cli.scan.engines.cpu import kernel


def norms(case: Case) -> None:
    for channels in (1, 7, 8, 17, 69):
        hidden, residual = torch.randn(2, 2, 17, channels)
        tensors = {"hidden": hidden, "residual": residual, "weight": torch.randn(channels)}

        def both(engine: str, **named: Any) -> torch.Tensor:
            return torch.cat(add_rms_norm(**named, epsilon=1e-5, engine=engine))

        expected = results(both, {name: tensor.double() for name, tensor in tensors.items()}, engine="torch")
        assert_same(results(both, tensors, engine=case.engine), expected, case.dtype)


def sizes(case: Case) -> None:
    for size in SCAN_SIZES:
        for reverse in (False, True):
            check_scan(scan_inputs(*size), case, reverse=reverse)
    check_scan(scan_inputs(2, 35, 9, 3) | dict.fromkeys(("D", "z", "delta_bias")), case)
    for size in CONV_SIZES:
        for reverse in (False, True):
            check_conv(conv_inputs(*size), case, reverse=reverse)
    for length in (0, 33):
        inputs = {name: tensor.float() for name, tensor in scan_inputs(0 if length else 2, length, 9, 3).items()}
        results(selective_scan, inputs, engine=case.engine)
    # Copies that are made for a call.
    inputs = conv_inputs(2, 35, 9, 4)
    inputs["x"] = inputs["x"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["weight"] = inputs["weight"].t().contiguous().t()
    check_conv(inputs, case, lambda out: out.sum().expand_as(out))
    norms(case)
    for whole_mixer in (True, False):
        with using(dataclasses.replace(case, whole_mixer=whole_mixer)):
            for size in MIXER_SIZES:
                assert_same(
                    everything(size, case.engine, case.dtype), everything(size, "reference", torch.float64), case.dtype
                )


def threads(case: Case) -> None:
    torch.set_num_threads(3)
    check_scan(scan_inputs(33, 20, 300, 5), case)
    check_conv(conv_inputs(33, 35, 300, 4), case)
    size = (19, 34, 24, 16, 4, 2)
    with using(dataclasses.replace(case, whole_mixer=True)):
        assert_same(everything(size, case.engine, case.dtype), everything(size, "reference", torch.float64), case.dtype)


def overflow(case: Case) -> None:
    kernel.ends_shape = lambda *_: (1,)
    check_scan(scan_inputs(1, 33, 1, 2), case)


def main(*names: str) -> None:
    for case in KERNEL:
        if case.isa in kernel.isas():
            with using(case):
                for name in names:
                    globals()[name](case)
            sys.stdout.write(f"{case.isa}\n")


if __name__ == "__main__":
    assert kernel.why_not() is None, kernel.why_not()
    main(*sys.argv[1:])
