"""RankMixer: tokens that exchange their parts, each with a network of its own (CIKM 2025, arXiv 2507.15551).

Attention would compare features that live in different spaces; here a token is cut into as many heads as there are
tokens, and new tokens are made of the same head of all: an exchange without weights. What is learned is one
feed-forward network a token. The paper's dense form; its sparse mixture of experts is for a billion parameters.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Inputs
from .fields import FieldModel
from .layers import require_divisor, require_numbers_to_norm
from .token_linear import TokenLinear


class RankMixer(FieldModel):
    """Mixing blocks over tokens of user, target and history fields, then the mean of the tokens.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        num_tokens: T; the fields side by side are cut into so many parts of one width, the last one filled with zeros.
        token_dim: D of a token, a multiple of T.
        num_layers: of mixing blocks.
        ffn_ratio: a token's hidden layer is so many times as wide as the token.
        net_dropout: in the feed-forward networks.
        kwargs: what FieldModel takes.

    Raises:
        UserError: num_tokens does not divide token_dim, or token_dim is 1.
    """

    def __init__(self, feature_map, num_tokens=8, token_dim=64, num_layers=2, ffn_ratio=4, net_dropout=0.0, **kwargs):
        super().__init__(feature_map, **kwargs)
        require_divisor("num_tokens", num_tokens, token_dim=token_dim)
        require_numbers_to_norm("token_dim", token_dim)
        self.num_tokens = num_tokens
        self.part_dim = -(-self.num_fields * self.embedding_dim // num_tokens)
        self.tokenizer = TokenLinear(num_tokens, self.part_dim, token_dim)
        self.blocks = nn.Sequential(
            *(RankMixerBlock(num_tokens, token_dim, ffn_ratio, net_dropout) for _ in range(num_layers))
        )
        self.fc = nn.Linear(token_dim, 1)

    def compute_logit(self, batch: Inputs, fields: Tensor) -> Tensor:
        """A linear layer reads the mean of the tokens after all blocks."""
        features = fields.flatten(1)
        features = F.pad(features, (0, self.num_tokens * self.part_dim - features.shape[1]))
        tokens = self.tokenizer(features.unflatten(1, (self.num_tokens, -1)))
        return self.fc(self.blocks(tokens).mean(dim=1))


class RankMixerBlock(nn.Module):
    """S = LN(mix(X) + X), then LN(FFN(S) + S), each token with a network of its own (section 3.1).

    Args:
        num_tokens: T.
        dim: D.
        ratio: hidden units over D.
        dropout: on the hidden layer.
    """

    def __init__(self, num_tokens: int, dim: int, ratio: int, dropout: float):
        super().__init__()
        self.mixing_norm, self.ffn_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ffn = nn.Sequential(
            TokenLinear(num_tokens, dim, ratio * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            TokenLinear(num_tokens, ratio * dim, dim),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """float [B, T, D] to the same shape."""
        mixed = self.mixing_norm(mix_tokens(tokens) + tokens)
        return self.ffn_norm(self.ffn(mixed) + mixed)


def mix_tokens(tokens: Tensor) -> Tensor:
    """Token h of the output is head h of every token, side by side (section 3.3.1, with as many heads as tokens).

    Args:
        tokens: float [B, T, D], D a multiple of T.
    """
    heads = tokens.unflatten(2, (tokens.shape[1], -1))  # [B, T, H, D / H]
    return heads.transpose(1, 2).flatten(2)
