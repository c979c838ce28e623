"""The training objective as the loop calls it: noise the images, ask the model, measure its error."""

from dataclasses import dataclass

from torch import Tensor, nn

from dis_cli.diffusion.batch import TrainingBatch
from dis_cli.diffusion.flow import ForwardProcess, told_timesteps
from dis_cli.diffusion.objective import LossWeight, Prediction, Variance, q_sample, training_losses
from dis_cli.runtime.precision import linear_precision


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Training target of a model and the weight of its error (``dis_cli.diffusion.objective``).

    Args:
        prediction: "epsilon", "v" or "x_0"; "velocity" or "x_0" for a rectified flow.
        variance: "learned_range" adds the variational bound to the loss.
        loss_weight: Weight of a timestep in the squared error.
        min_snr_gamma: The cap of "min_snr".
        velocity_clamp: Smallest sigma that the loss on the velocity divides by, for "x_0" of a rectified flow.
        is_conditional: Whether the model takes labels.
        precision: "fp32" or "bf16", for the linear layers. The loss is float32 whatever they compute in.
    """

    process: ForwardProcess
    prediction: Prediction
    variance: Variance
    loss_weight: LossWeight = "uniform"
    min_snr_gamma: float = 5.0
    velocity_clamp: float = 0.05
    is_conditional: bool = False
    precision: str = "fp32"

    def loss(self, model: nn.Module, batch: TrainingBatch) -> Tensor:
        """The mean loss of a batch, a scalar.

        Args:
            model: Takes (x_t, t, labels) and the batch's draws, as a backbone does.
            batch: On the model's device.
        """
        x_t = q_sample(self.process, batch.x_0, batch.t, batch.noise)
        with linear_precision(self.precision, x_t.device.type):
            output = model(
                x_t,
                told_timesteps(self.process, batch.t),
                batch.labels if self.is_conditional else None,
                label_drop_uniform=batch.label_drop_uniform,
                drop_path_uniform=batch.drop_path_uniform,
            )
        losses = training_losses(
            self.process,
            output.float(),
            batch.x_0,
            x_t,
            batch.noise,
            batch.t,
            prediction=self.prediction,
            variance=self.variance,
            loss_weight=self.loss_weight,
            min_snr_gamma=self.min_snr_gamma,
            velocity_clamp=self.velocity_clamp,
        )
        return losses["loss"].mean()
