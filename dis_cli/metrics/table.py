"""The metrics that a set of images can be scored with."""

from typing import Literal

MetricName = Literal["fid", "sfid", "inception_score", "kid", "precision", "recall", "density", "coverage"]
