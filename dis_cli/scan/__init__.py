"""The selective scan and the causal convolution: the two operations that make a state space backbone."""

from dis_cli.scan.bidirectional import bidirectional_scan
from dis_cli.scan.contract import Direction
from dis_cli.scan.engines import choose_engine
from dis_cli.scan.ops import causal_conv_silu, selective_scan

__all__ = ["Direction", "bidirectional_scan", "causal_conv_silu", "choose_engine", "selective_scan"]
