"""The state of training: all that is carried from one step to the next, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dis_cli.runtime.process_group import ProcessGroup
from dis_cli.training.ema import Ema
from dis_cli.training.parallel import assign, whole

Tensors = Mapping[str, Mapping[str, Tensor]]


@dataclass
class TrainingState:
    """Weights, their averages, the optimizer, and how many steps were taken.

    Attributes:
        model: The model in training, or this rank's part of it.
        ema: The average of its weights that is sampled from.
        optimizer: AdamW over all parameters.
        more_emas: Averages with other decays.
        module: Module called in training: ``model``, or one that averages its gradients over all ranks.
        num_skipped: Number of them that left the weights as they were, because the gradient was not finite.
        images: Samples drawn so far: the place in the data, whatever the batches were.
    """

    model: nn.Module
    ema: Ema
    optimizer: torch.optim.AdamW
    more_emas: tuple[Ema, ...] = ()
    module: nn.Module | None = None
    step: int = 0
    num_skipped: int = 0
    images: int = 0

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All state as named tensors, for a checkpoint; parts of tensors where they are dealt out to ranks.

        Groups "model", "ema", "ema_more_0" and so on, and "optimizer", whose names are ``kind/parameter``.
        """
        groups = {"model": {name: parameter.detach() for name, parameter in self.model.named_parameters()}}
        groups |= {name: dict(ema.average) for name, ema in self._emas().items()}
        groups["optimizer"] = {
            f"{kind}/{name}": value
            for name, parameter in self.model.named_parameters()
            for kind, value in self.optimizer.state[parameter].items()
        }
        return groups

    def load(self, tensors: Tensors | None, group: ProcessGroup) -> None:
        """Continue from the tensors of a checkpoint.

        Args:
            tensors: Result of ``tensors``, whole; None on ranks other than the leader, which get them from it.
            group: All ranks, which have to call this together.

        Raises:
            ValueError: A tensor is missing, or has another shape.
        """
        shapes = group.from_leader(
            lambda: {
                name: {key: (value.dtype, value.shape) for key, value in values.items()}
                for name, values in (tensors or {}).items()
            }
        )

        parameters = dict(self.model.named_parameters())
        for name, wanted in {"model": parameters, **{name: ema.average for name, ema in self._emas().items()}}.items():
            found = {key: shape for key, (_, shape) in shapes.get(name, {}).items()}
            if found != {key: tensor.shape for key, tensor in wanted.items()}:
                raise ValueError(f"group {name!r} does not hold one tensor of its shape for every parameter")

        def received(name: str, key: str) -> Tensor:
            dtype, shape = shapes[name][key]
            return torch.empty(shape, dtype=dtype) if tensors is None else tensors[name][key]

        with torch.no_grad():
            for name, parameter in parameters.items():
                assign(parameter, received("model", name))
            for group_name, ema in self._emas().items():
                for name, average in ema.average.items():
                    assign(average, received(group_name, name))
            for key in shapes["optimizer"]:
                kind, name = key.split("/", 1)
                values = received("optimizer", key)
                parameter = parameters[name]
                # Moments are shaped, and dealt out, like their parameter; the number of steps is a scalar.
                target = torch.empty_like(parameter) if values.ndim else torch.empty((), device=parameter.device)
                assign(target, values)
                self.optimizer.state[parameter][kind] = target

    def whole_average(self, decay: float | None = None) -> dict[str, Tensor]:
        """All of an average of the weights; all ranks have to ask together.

        Args:
            decay: Which; None is the one that is sampled from, and 0 the weights themselves.

        Raises:
            ValueError: There is none with this decay.
        """
        if decay == 0:
            return {name: whole(parameter.detach()) for name, parameter in self.model.named_parameters()}
        emas = [ema for ema in self._emas().values() if decay is None or ema.decay == decay]
        if not emas:
            raise ValueError(f"there is no average with decay {decay}")
        return {name: whole(tensor) for name, tensor in emas[0].average.items()}

    def _emas(self) -> dict[str, Ema]:
        return {"ema": self.ema} | {f"ema_more_{index}": ema for index, ema in enumerate(self.more_emas)}
