"""The kernel's argument structures for ctypes: field by field those of ``csrc/args.h``."""

import ctypes
from typing import Any, ClassVar

_PARAMETERS = ("conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "A_log", "D")
# That of csrc/args.h.
ABI = 1


class SequenceArgs(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        ("data", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
    ]


class ScanArgs(ctypes.Structure):
    """``ScanArgs`` of csrc/args.h."""

    _fields_: ClassVar[Any] = [
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels", "states", "threads")),
        *((name, ctypes.c_int64) for name in ("reverse", "softplus", "A_is_log", "accumulate_out", "accumulate_z")),
        *((name, SequenceArgs) for name in ("u", "delta", "B", "C", "z")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "delta_bias", "ends")),
        *((name, SequenceArgs) for name in ("out", "grad_out", "grad_u", "grad_delta", "grad_B", "grad_C", "grad_z")),
        *((name, ctypes.c_void_p) for name in ("grad_A", "grad_D", "grad_bias")),
    ]


class ConvArgs(ctypes.Structure):
    """``ConvArgs`` of csrc/args.h."""

    _fields_: ClassVar[Any] = [
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels", "taps", "threads")),
        *((name, ctypes.c_int64) for name in ("reverse", "accumulate_x")),
        *((name, SequenceArgs) for name in ("x", "out")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        *((name, SequenceArgs) for name in ("grad_out", "grad_x")),
        *((name, ctypes.c_void_p) for name in ("grad_weight", "grad_bias")),
    ]


class DirectionArgs(ctypes.Structure):
    """``DirectionArgs`` of csrc/args.h."""

    _fields_: ClassVar[Any] = [
        *((name, ctypes.c_void_p) for name in (*_PARAMETERS, "ends")),
        ("projected", SequenceArgs),
        *((f"grad_{name}", ctypes.c_void_p) for name in _PARAMETERS),
    ]


class MixerArgs(ctypes.Structure):
    """``MixerArgs`` of csrc/args.h."""

    _fields_: ClassVar[Any] = [
        *(
            (name, ctypes.c_int64)
            for name in ("batch", "length", "channels", "states", "taps", "rank", "threads", "count")
        ),
        *((name, SequenceArgs) for name in ("xz", "out", "grad_out", "grad_xz")),
        ("directions", DirectionArgs * 2),
    ]


class NormArgs(ctypes.Structure):
    """``NormArgs`` of csrc/args.h."""

    _fields_: ClassVar[Any] = [
        *((name, ctypes.c_int64) for name in ("rows", "channels", "threads")),
        *((name, ctypes.c_void_p) for name in ("hidden", "residual", "weight", "total", "normed", "scale")),
        *((name, ctypes.c_void_p) for name in ("grad_normed", "grad_total", "grad_hidden", "grad_weight")),
        ("epsilon", ctypes.c_float),
    ]


def abi() -> int:
    """What ``dis_abi`` of a library returns that was built from the sources beside this file."""
    return ABI << 32 | sum(map(ctypes.sizeof, (ScanArgs, ConvArgs, MixerArgs, NormArgs)))
