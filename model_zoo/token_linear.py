"""A linear layer a token, as RankMixer and OneTrans have them: tokens of different features share no weights."""

import torch
from torch import Tensor, nn


class TokenLinear(nn.Module):
    """A linear layer a token, all of them one batched product.

    Args:
        num_tokens: T.
        input_dim: D.
        output_dim: D'.
    """

    def __init__(self, num_tokens: int, input_dim: int, output_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tokens, input_dim, output_dim))
        self.bias = nn.Parameter(torch.zeros(num_tokens, output_dim))
        for weight in self.weight.data:
            nn.init.xavier_normal_(weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """float [B, T, D] to float [B, T, D']."""
        return torch.baddbmm(self.bias.unsqueeze(1), tokens.transpose(0, 1), self.weight).transpose(0, 1)
