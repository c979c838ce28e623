"""The layers that DiT and U-ViT share: attention and MLP, under their published parameter names."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

MLP_RATIO = 4


class Attention(nn.Module):
    """Self-attention over all tokens.

    Args:
        num_heads: Divides ``width``.
        qkv_bias: Whether queries, keys and values have a bias.
    """

    def __init__(self, width: int, num_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        batch, length, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, four times as wide inside.

    Args:
        approximate: "none" for the exact GELU, "tanh" for its approximation.
    """

    def __init__(self, width: int, *, approximate: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.act = nn.GELU(approximate)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, tokens: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        return self.fc2(self.act(self.fc1(tokens)))
