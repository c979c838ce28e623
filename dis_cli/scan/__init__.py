"""The operations of a state space backbone: selective scan, causal convolution, and the norm before them."""

from dis_cli.scan.bidirectional import bidirectional_scan
from dis_cli.scan.contract import Direction
from dis_cli.scan.engines.choose import choose_engine
from dis_cli.scan.norm import add_rms_norm
from dis_cli.scan.ops import causal_conv_silu, selective_scan

__all__ = ["Direction", "add_rms_norm", "bidirectional_scan", "causal_conv_silu", "choose_engine", "selective_scan"]
