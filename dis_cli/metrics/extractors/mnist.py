"""The bundled classifier of MNIST at 32x32."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dis_cli.metrics.extractors.classifier import WEIGHTS, DigitClassifier

MNIST_WEIGHTS = WEIGHTS / "mnist.safetensors"


class MnistNetwork(nn.Module):
    """A small convolutional classifier of 32x32 grey digits, 89,546 parameters and 2.6 million multiplications."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 4 * 4, 64)
        self.output = nn.Linear(64, 10)

    def forward(self, x: Float[Tensor, "b 1 32 32"]) -> tuple[Float[Tensor, "b 64"], Float[Tensor, "b 10"]]:
        """The activations of the last hidden layer, and the logits of the ten classes.

        Args:
            x: Images in [-1, 1].
        """
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = F.max_pool2d(F.gelu(convolution(x)), 2)
        features = F.gelu(self.hidden(x.flatten(1)))
        return features, self.output(features)


class MnistFeatures(DigitClassifier):
    """The classifier for scores of MNIST; ``tests/rebuild/mnist_classifier.py`` rebuilds its weights.

    It was trained on 8,004 images by Y. LeCun and C. Cortes, CC BY-SA 3.0, padded from 28x28 to 32x32 with black.
    """

    name = "mnist-cnn-64"
    label = "mnist"
    side = 32
    network = MnistNetwork
    weights = MNIST_WEIGHTS
