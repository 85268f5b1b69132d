"""FiBiNET++'s interactions where all rows have one history, whose fields are then the same numbers in every row.

Of a pair with such a field, <v W, h>, the product W h is computed once and not a candidate; as a candidate's own fields
are then only multiplied by matrices, these and the linear layer behind them become one matrix. What is left to do for
each candidate are the pairs of its own fields. The sums are those of BilinearPlus, in another order.
"""

import torch
from torch import Tensor, nn

from .plus_layers import BilinearPlus


class PairsWithOneHistory(nn.Module):
    """A BilinearPlus with a W a pair, of fields some of which all rows have alike.

    Args:
        layer: the trained one, of bilinear_type "field_interaction".
        num_fields: F.
        shared: which fields are the same in all rows.
    """

    def __init__(self, layer: BilinearPlus, num_fields: int, shared: range):
        super().__init__()
        self.shared = shared
        pairs = [(i, j) for i in range(num_fields) for j in range(i + 1, num_fields)]
        number = {pair: place for place, pair in enumerate(pairs)}
        own = [i for i in range(num_fields) if i not in shared]
        of_own = [number[pair] for pair in pairs if pair[0] in own and pair[1] in own]
        of_shared = [number[pair] for pair in pairs if pair[0] in shared and pair[1] in shared]
        mixed = [[number[min(i, h), max(i, h)] for h in shared] for i in own]
        first = torch.tensor([[i < h for h in shared] for i in own]).unsqueeze(-1).unsqueeze(-1)
        weights, low_rank = layer.bilinear_W.detach(), layer.low_rank.weight.detach().T  # [P, D, D], [P, M]
        of_mixed = weights[torch.tensor(mixed)]
        self.register_buffer("own_weights", weights[of_own])
        self.register_buffer("shared_weights", weights[of_shared])
        self.register_buffer("mixed_weights", torch.where(first, of_mixed, of_mixed.transpose(-1, -2)))
        self.register_buffer("own_low_rank", low_rank[of_own])
        self.register_buffer("shared_low_rank", low_rank[of_shared])
        self.register_buffer("mixed_low_rank", low_rank[torch.tensor(mixed)])
        self.register_buffer("bias", layer.low_rank.bias.detach())

    def forward(self, fields: Tensor) -> Tensor:
        """float [C, F, D] to float [C, M]."""
        start, stop = self.shared.start, self.shared.stop
        own, shared = torch.cat([fields[:, :start], fields[:, stop:]], dim=1), fields[:1, start:stop]
        asked = self.mixed_weights @ shared.unsqueeze(-1)  # [own, shared, D, 1]
        matrix = asked.squeeze(-1).transpose(1, 2) @ self.mixed_low_rank  # [own, D, M]
        found = own.flatten(1) @ matrix.flatten(0, 1) + self.bias
        if len(self.own_weights):
            found = found + BilinearPlus.products_by_field(own, self.own_weights) @ self.own_low_rank
        if len(self.shared_weights):
            found = found + BilinearPlus.products_by_field(shared, self.shared_weights) @ self.shared_low_rank
        return found
