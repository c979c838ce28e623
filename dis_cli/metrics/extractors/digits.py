"""The bundled classifier of scikit-learn's 8x8 digits."""

import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dis_cli.metrics.extractors.classifier import WEIGHTS, DigitClassifier, as_grey

DIGIT_WEIGHTS = WEIGHTS / "digits.safetensors"


class DigitNetwork(nn.Module):
    """A small convolutional classifier of 8x8 grey digits, 47,978 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 48, 3, padding=1)
        self.conv3 = nn.Conv2d(48, 48, 3, padding=1)
        self.hidden = nn.Linear(48 * 2 * 2, 64)
        self.output = nn.Linear(64, 10)

    def forward(self, x: Float[Tensor, "b 1 8 8"]) -> tuple[Float[Tensor, "b 64"], Float[Tensor, "b 10"]]:
        """The activations of the last hidden layer, and the logits of the ten classes.

        Args:
            x: Images in [-1, 1].
        """
        x = F.gelu(self.conv1(x))
        x = F.max_pool2d(F.gelu(self.conv2(x)), 2)
        x = F.max_pool2d(F.gelu(self.conv3(x)), 2)
        features = F.gelu(self.hidden(x.flatten(1)))
        return features, self.output(features)


class DigitFeatures(DigitClassifier):
    """The classifier for scores of the digits preset; ``tests/rebuild/digits_classifier.py`` rebuilds its weights."""

    name = "digits-cnn-64"
    label = "digits"
    side = 8
    network = DigitNetwork
    weights = DIGIT_WEIGHTS


def as_digits(images: UInt8[Tensor, "n h w c"]) -> UInt8[Tensor, "n 8 8 1"]:
    """Images of any size and colour as small grey ones, by averaging; 8x8 grey ones stay as they are."""
    return as_grey(images, DigitFeatures.side)
