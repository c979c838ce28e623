"""Parity of every engine on the device, and the time of a scan, a mixer and a block by engine."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from cards import Card, product_bound, scan_bound
from plan import AbsentError, Part
from timing import milliseconds
from torch import Tensor, nn

from dis_cli.models.dis.backbone import Block
from dis_cli.models.dis.mixer import Mixer
from dis_cli.scan import add_rms_norm, causal_conv_silu, selective_scan
from dis_cli.scan.contract import ScanInputs
from dis_cli.scan.engines.choose import engine_module, failing, unavailable
from dis_cli.scan.engines.table import ENGINES

TAPS, RANK_OF_WIDTH = 4, 16
PARITY_LIMIT = 1e-5
# The recurrence token by token is the measure of the others, not a contender.
MEASURE = "reference"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Machine:
    """What is measured on.

    Args:
        device: The GPU, or the CPU where only the path is tried.
        card: Its data sheet; None where it is not known.
        dry: Whether everything is tiny.
    """

    device: torch.device
    card: Card | None
    dry: bool

    @property
    def seconds(self) -> float:
        """How long contenders take turns; where everything is tiny, as few turns as there may be."""
        return 0.0 if self.dry else 1.5

    @property
    def states(self) -> int:
        """Of a scan, per channel."""
        return 2 if self.dry else 16

    @property
    def engines(self) -> list[str]:
        """The engines that compute on this kind of device, if they are installed; the one to prove first.

        The others are there to compare with, and the reference to compare all with.
        """
        found = [name for name, row in ENGINES.items() if row.computes_on(self.device.type) and name != MEASURE]
        return sorted(found, key=lambda name: name != "triton")


@cache
def why_not(engine: str, device: torch.device) -> str | None:
    """Why an engine cannot compute here; None when it can. The first call computes something tiny."""
    return unavailable(engine, device.type) or failing(engine, device)


def require(engine: str, device: torch.device) -> None:
    """Leave a part out whose engine is not here.

    Raises:
        AbsentError: It is not, or does not compute.
    """
    reason = why_not(engine, device)
    if reason is not None:
        raise AbsentError(f"{engine} is absent: {reason}")


# --- parity


def parity_parts(machine: Machine) -> Iterator[Part]:
    """Results and all gradients of each engine against the float64 reference, and whether they come out alike twice."""
    for engine in machine.engines:
        # Triton's kernels are compiled here.
        seconds = 60 if engine == "triton" else 15
        yield Part("parity", engine, seconds, partial(_parity, engine, machine))


@dataclass(frozen=True)
class _Case:
    inputs: dict[str, Tensor]
    compute: Callable[[dict[str, Tensor], str], tuple[Tensor, ...]]


def _parity(engine: str, machine: Machine) -> dict[str, object]:
    require(engine, machine.device)
    found: dict[str, object] = {}
    worst, same = 0.0, True
    for name, case in _cases(dry=machine.dry).items():
        errors, is_same = _errors(case, engine, torch.float32, machine.device)
        found[name] = {key: float(f"{error:.2e}") for key, error in errors.items()} | {"same_bits": is_same}
        worst, same = max([worst, *errors.values()], key=_nan_first), same and is_same
    rounded = _errors(next(iter(_cases(dry=machine.dry).values())), engine, torch.bfloat16, machine.device)[0]
    return {
        "worst": float(f"{worst:.2e}"),
        "within_limit": worst <= PARITY_LIMIT,
        "limit": PARITY_LIMIT,
        "same_bits_twice": same,
        "worst_bf16": float(f"{max(rounded.values(), key=_nan_first):.2e}"),
        "relative_errors": found,
    }


def _nan_first(value: float) -> float:
    return value if value == value else float("inf")


def _errors(case: _Case, engine: str, dtype: torch.dtype, device: torch.device) -> tuple[dict[str, float], bool]:
    """The error of each result and gradient, over the largest value expected in it; whether a second run is equal."""
    # The reference gets the rounded numbers, so that what is seen is the engine's own error.
    inputs = {name: tensor.to(dtype) for name, tensor in case.inputs.items()}
    expected = _results(case, inputs, torch.float64, device, MEASURE)
    got, again = (_results(case, inputs, dtype, device, engine) for _ in range(2))
    errors = {
        name: float((got[name].double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
        for name, wanted in expected.items()
    }
    return errors, all(torch.equal(got[name], again[name]) for name in got)


def _results(
    case: _Case, values: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device, engine: str
) -> dict[str, Tensor]:
    inputs = {name: tensor.to(device, dtype, copy=True).requires_grad_() for name, tensor in values.items()}
    outs = case.compute(inputs, engine)
    # The same gradients for every dtype: rounded to the coarsest.
    grads = [_random(90 + index, *out.shape).bfloat16().to(device, out.dtype) for index, out in enumerate(outs)]
    found = torch.autograd.grad(outs, list(inputs.values()), grads)
    results = {f"out{index or ''}": out.detach() for index, out in enumerate(outs)}
    return results | {f"grad_{name}": grad for name, grad in zip(inputs, found, strict=True)}


def _cases(*, dry: bool) -> dict[str, _Case]:
    # Batch, tokens, channels, states: ragged channels, few and many states, one token, a model's length.
    shapes = [(1, 9, 40, 2)]
    if not dry:
        shapes = [(2, 258, 736, 16), (2, 1, 64, 16), (3, 7, 100, 5), (1, 40, 64, 64), (1, 513, 72, 16)]
    cases: dict[str, _Case] = {}
    for shape in shapes:
        for reverse in (False, True):
            way = "back" if reverse else "forth"
            cases[f"scan {_joined(shape)} {way}"] = _scan_case(*shape, reverse=reverse)
            cases[f"convolution {_joined(shape[:3])} {way}"] = _conv_case(*shape[:3], reverse=reverse)
    bare = shapes[0]
    cases[f"scan {_joined(bare)} without skip, gate, bias, softplus"] = _scan_case(*bare, reverse=False, bare=True)
    cases[f"norm {_joined(bare[:3])}"] = _norm_case(*bare[:3])
    mixer = (1, 3, 16, 2) if dry else (2, 258, 368, 16)
    cases[f"mixer {_joined(mixer)}"] = _mixer_case(*mixer)
    return cases


def _joined(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _scan_case(b: int, length: int, d: int, n: int, *, reverse: bool, bare: bool = False) -> _Case:
    inputs = {"u": _random(1, b, length, d), "delta": _random(2, b, length, d), "A": -torch.exp(0.7 * _random(3, d, n))}
    inputs |= {"B": _random(4, b, length, n), "C": _random(5, b, length, n)}
    if bare:
        # Without softplus a time step has to be positive by itself.
        inputs["delta"] = 0.1 * inputs["delta"].abs()
    else:
        inputs |= {"D": _random(6, d), "z": _random(7, b, length, d), "delta_bias": _random(8, d) - 3}

    def compute(own: dict[str, Tensor], engine: str) -> tuple[Tensor]:
        return (selective_scan(**own, delta_softplus=not bare, reverse=reverse, engine=engine),)

    return _Case(inputs, compute)


def _conv_case(b: int, length: int, d: int, *, reverse: bool) -> _Case:
    inputs = {"x": _random(1, b, length, d), "weight": _random(2, d, TAPS), "bias": _random(3, d)}
    return _Case(inputs, lambda own, engine: (causal_conv_silu(**own, reverse=reverse, engine=engine),))


def _norm_case(b: int, length: int, d: int) -> _Case:
    inputs = {"hidden": _random(1, b, length, d), "residual": _random(2, b, length, d), "weight": _random(3, d)}
    return _Case(inputs, lambda own, engine: add_rms_norm(**own, epsilon=1e-5, engine=engine))


def _mixer_case(batch: int, length: int, width: int, states: int) -> _Case:
    torch.manual_seed(0)
    mixer = Mixer(width, states, TAPS)
    mixer.reset_parameters()
    weights = {name: parameter.detach() for name, parameter in mixer.named_parameters()}

    def compute(own: dict[str, Tensor], engine: str) -> tuple[Tensor]:
        mixer.engine = engine
        return (torch.func.functional_call(mixer, {name: own[name] for name in weights}, own["tokens"]),)

    return _Case({"tokens": _random(1, batch, length, width)} | weights, compute)


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- times


def timed_parts(machine: Machine) -> Iterator[Part]:
    """A scan, a mixer and a block at the shapes of three models, every engine in turn; float32 at the largest."""
    sizes = {"XL/2": (64, 258, 1152), "L/2": (64, 258, 1024), "S/2": (64, 258, 368)}
    sizes = {"tiny": (1, 3, 16)} if machine.dry else sizes
    for section, measure in (("scan", _time_scan), ("mixer", _time_mixer), ("block", _time_block)):
        for name, (batch, length, width) in sizes.items():
            for precision in DTYPES if name == "XL/2" else ("bf16",):
                title = f"{name} {precision}, {batch} x {length} tokens"
                yield Part(section, title, 8, partial(measure, machine, precision, batch, length, width))


def _present(machine: Machine) -> list[str]:
    return [engine for engine in machine.engines if why_not(engine, machine.device) is None]


def _time_scan(machine: Machine, precision: str, batch: int, length: int, width: int) -> dict[str, object]:
    """One direction of one layer, as a mixer calls it: with skip, gate, bias and softplus."""
    channels, states, dtype = 2 * width, machine.states, DTYPES[precision]
    shapes = {"u": (batch, length, channels), "delta": (batch, length, channels), "A": (channels, states)}
    shapes |= {"B": (batch, length, states), "C": (batch, length, states), "D": (channels,)}
    shapes |= {"z": (batch, length, channels), "delta_bias": (channels,)}
    tensors = {name: torch.randn(shape, device=machine.device) for name, shape in shapes.items()}
    tensors["A"], tensors["delta_bias"] = -torch.exp(tensors["A"]), tensors["delta_bias"] - 3
    tensors |= {name: tensors[name].to(dtype) for name in ("u", "delta", "z")}
    grad = torch.randn(batch, length, channels, device=machine.device).to(dtype)
    contenders: dict[str, Callable[[], object]] = {}
    for engine in _present(machine):
        if precision == "bf16" and not _reads_bf16(engine):
            continue
        for way, call in _scan_calls(engine, tensors, grad).items():
            contenders[f"{engine} {way}"] = call
    rows = milliseconds(contenders, machine.device, machine.seconds)
    for name, row in rows.items():
        bound = None if machine.card is None else scan_bound(name.split()[-1], precision, machine.card)
        _add_rate(row, batch * length * channels, bound)
    return dict(rows)


def _reads_bf16(engine: str) -> bool:
    """Whether a mixer in bfloat16 hands the engine sequences in bfloat16, and not copies in float32."""
    return not hasattr(engine_module(engine), "scan_forward") or getattr(ENGINES[engine], "bfloat16", False)


def _scan_calls(engine: str, tensors: dict[str, Tensor], grad: Tensor) -> dict[str, Callable[[], object]]:
    module = engine_module(engine)
    if hasattr(module, "scan_forward"):
        inputs = ScanInputs(**tensors, delta_softplus=True, reverse=True)
        kept: list[Tensor] = []

        def backward() -> object:
            # Made here, so that an engine that fails in its forward is one contender that fails.
            if not kept:
                kept.append(module.scan_forward(inputs)[1])
            return module.scan_backward(grad, kept[0], inputs)

        return {"forward": lambda: module.scan_forward(inputs), "backward": backward}
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}

    def forward() -> Tensor:
        return module.selective_scan(**leaves, delta_softplus=True, reverse=True)

    return {"forward": _without_graph(forward), "backward": _backward_of(forward, list(leaves.values()), grad)}


def _without_graph(run: Callable[[], object]) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return run()

    return call


def _backward_of(forward: Callable[[], Tensor], leaves: list[Tensor], grad: Tensor) -> Callable[[], object]:
    """The backward alone, of a graph that is made at the first call and kept."""
    graph: list[Tensor] = []

    def call() -> object:
        if not graph:
            graph.append(forward())
        return torch.autograd.grad(graph[0], leaves, grad.to(graph[0].dtype), retain_graph=True)

    return call


def _time_mixer(machine: Machine, precision: str, batch: int, length: int, width: int) -> dict[str, object]:
    """Both directions with all their projections; the bound is that of the two scans and of the matrix products."""

    def make(engine: str) -> nn.Module:
        mixer = Mixer(width, machine.states, TAPS, engine=engine)
        mixer.reset_parameters()
        return mixer

    rows = _time_layer(machine, precision, (batch, length, width), make)
    inner, rank = 2 * width, -(-width // RANK_OF_WIDTH)
    macs = 3 * width * inner + 2 * inner * (rank + 2 * machine.states) + 2 * rank * inner
    for name, row in rows.items():
        bound = None
        if machine.card is not None:
            way = name.split()[-1]
            # A backward has two products for each of a forward's.
            products = product_bound(macs * (2 if way == "backward" else 1), precision, machine.card) / (2 * inner)
            bound = scan_bound(way, precision, machine.card) + products
        _add_rate(row, 2 * batch * length * inner, bound)
    return dict(rows)


def _time_block(machine: Machine, precision: str, batch: int, length: int, width: int) -> dict[str, object]:
    """A block with its long skip: linear layer, residual sum, norm, mixer."""

    class FirstResult(nn.Module):
        def __init__(self, block: Block) -> None:
            super().__init__()
            self.block = block

        def forward(self, tokens: Tensor) -> Tensor:
            return self.block(tokens, tokens, tokens)[0]

    def make(engine: str) -> nn.Module:
        block = Block(width, skip=True, d_state=machine.states, d_conv=TAPS, expand=2, engine=engine)
        block.mixer.reset_parameters()
        return FirstResult(block)

    return dict(_time_layer(machine, precision, (batch, length, width), make))


def _time_layer(
    machine: Machine, precision: str, shape: tuple[int, int, int], make: Callable[[str], nn.Module]
) -> dict[str, dict[str, object]]:
    tokens = torch.randn(shape, device=machine.device, requires_grad=True)
    grad = torch.randn(shape, device=machine.device)
    contenders: dict[str, Callable[[], object]] = {}
    for engine in _present(machine):
        torch.manual_seed(0)
        layer = make(engine).to(machine.device)

        def forward(layer: nn.Module = layer) -> Tensor:
            with torch.autocast(machine.device.type, torch.bfloat16, enabled=precision == "bf16"):
                return layer(tokens)

        leaves = [tokens, *layer.parameters()]
        contenders[f"{engine} forward"] = _without_graph(forward)
        contenders[f"{engine} backward"] = _backward_of(forward, leaves, grad)
    return milliseconds(contenders, machine.device, machine.seconds)


def _add_rate(row: dict[str, object], pairs: int, bound: float | None) -> None:
    """Add the picoseconds of a (token, channel) pair of one direction, and the share of the bound that it reaches."""
    if "ms" not in row:
        return
    picoseconds = float(str(row["ms"])) * 1e9 / pairs
    row["ps_per_pair"] = round(picoseconds, 2)
    if bound is not None:
        row["bound_ps"], row["share_of_bound"] = round(bound, 2), round(bound / picoseconds, 3)
