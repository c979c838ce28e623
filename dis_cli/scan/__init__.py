"""The selective scan and the causal convolution: the two operations that make a state space backbone."""

from dis_cli.scan.ops import causal_conv_silu, selective_scan

__all__ = ["causal_conv_silu", "selective_scan"]
