"""Rows of a table, and sums of them, whose backward pass on a GPU is not held up by the padding.

Both are torch's own on a CPU, and forward on a GPU too. Backward, torch's kernels sort the positions, add the
gradients of ten at a time in parallel, and then those sums for each row one after the other. In a batch of histories
half of the positions may be padding, all of row 0: one row's chain is then as long as all the others' together, at a
few nanoseconds' work a link and a hundred of waiting. Here the padded positions are counted to SPARE further rows in
turn, which are added up or left out afterwards. The sums are the same but for the order of their terms, and a repeated
pass gives the same bits, which atomic additions would not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SPARE = 4096  # rows for the padding: a chain of 524,288 positions is then 13 sums long
MEAN, SUM = 1, 0  # torch's numbers of an embedding_bag's modes


def look_up(table: Tensor, positions: Tensor) -> Tensor:
    """The rows at positions, as F.embedding(positions, table) gives them.

    Args:
        table: float [M, W]; row 0 may be asked for much more often than others.
        positions: integer [...], rows of `table`.

    Returns:
        float [..., W].
    """
    return _Rows.apply(table, positions) if _needs_it(table) else F.embedding(positions, table)


def pool_rows(table: Tensor, positions: Tensor, mode: str, padding_row: int = 0) -> Tensor:
    """The sum or the mean of the rows at positions, as F.embedding_bag gives it.

    Args:
        table: float [M, W].
        positions: integer [B, L], rows of `table`.
        mode: "sum" or "mean".
        padding_row: the row that does not count.

    Returns:
        float [B, W]; zeros where nothing counts.
    """
    if _needs_it(table):
        return _PooledRows.apply(table, positions, mode, padding_row)
    return F.embedding_bag(positions, table, mode=mode, padding_idx=padding_row)


def _needs_it(table: Tensor) -> bool:
    """Whether there will be a backward pass, elsewhere than on a CPU."""
    return table.device.type != "cpu" and table.requires_grad and torch.is_grad_enabled()


class _Rows(torch.autograd.Function):
    """look_up with the gradient of row 0 made of the spare rows'."""

    @staticmethod
    def forward(ctx, table: Tensor, positions: Tensor) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.rows = len(table)
        return F.embedding(positions, table)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """float [..., W] to the table's, [M, W]."""
        (positions,) = ctx.saved_tensors
        index = _spread(positions, ctx.rows, 0)
        gradient = gradient.reshape(len(index), gradient.shape[-1])
        sums = torch.ops.aten.embedding_dense_backward(gradient, index, ctx.rows + SPARE, -1, False)
        sums[0] = sums[ctx.rows :].sum(dim=0)
        return sums[: ctx.rows], None


class _PooledRows(torch.autograd.Function):
    """pool_rows; the spare rows' gradients are dropped."""

    @staticmethod
    def forward(ctx, table: Tensor, positions: Tensor, mode: str, padding_row: int) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.rows, ctx.padding_row, ctx.mode = len(table), padding_row, MEAN if mode == "mean" else SUM
        return F.embedding_bag(positions, table, mode=mode, padding_idx=padding_row)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """float [B, W] to the table's, [M, W]."""
        (positions,) = ctx.saved_tensors
        index = _spread(positions, ctx.rows, ctx.padding_row)
        length = positions.shape[1]
        bag = torch.arange(len(index), device=index.device, dtype=index.dtype).div(length, rounding_mode="floor")
        counted = (positions != ctx.padding_row).sum(dim=1, dtype=index.dtype)
        sums = torch.ops.aten._embedding_bag_dense_backward(
            gradient.contiguous(), index, bag, counted, counted, ctx.rows + SPARE, False, ctx.mode, None, -1
        )
        return sums[: ctx.rows], None, None, None


def _spread(positions: Tensor, rows: int, padding_row: int) -> Tensor:
    """Positions as a list, those of the padding row numbered from `rows` on, SPARE numbers in turn."""
    flat = positions.reshape(-1)
    spare = torch.arange(len(flat), device=flat.device, dtype=flat.dtype).remainder_(SPARE).add_(rows)
    return torch.where(flat == padding_row, spare, flat)
