"""Large embedding tables trained in the rows that a step touches, by Adam (`lazy`) or Adagrad (`rowwise_adagrad`).

A table of a million users has a gradient in a few thousand rows a step, and dense Adam walks over all of it: gradient,
two moments and weights, 1.8 GB a step for 64 columns. Here the gradient of a large table is made, exchanged and applied
as the rows that the batch touched, and nothing of the table's height is allocated but what the optimizer keeps of it.

`table_optimizer: lazy` is another optimizer than Adam, and the difference is this. A row that a step does not touch,
one whose gradient is zero, keeps its weights and moments: under dense Adam its moments decay, its weights go on moving
by what is left of them, and the L2 penalty pulls it towards zero. A touched row is updated as Adam updates it, penalty
included, with the bias correction of the run's number of steps, not of the row's own: so do torch's SparseAdam
(docs.pytorch.org/docs/stable/generated/torch.optim.SparseAdam.html) and TensorFlow's LazyAdam
(tensorflow.org/addons/api_docs/python/tfa/optimizers/LazyAdam). Where a step touches every row, both are the same.

`table_optimizer: rowwise_adagrad` keeps one number a row in place of two moments a weight, which tables of tens of
millions of rows need (`RowwiseAdagrad`). The rest of the model is trained by Adam in both.

No operation here asks a GPU for a number, such as how many distinct rows there are: repeats of a row stay, with a
gradient of zero, and what a row moves by is added. With several processes one number is asked for, how many rows each
rank has.
"""

import logging
from typing import NamedTuple

import torch
import torch.nn.functional as F
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from torch import Tensor, nn

from mm_fibinet import distributed
from mm_fibinet.errors import UserError
from mm_fibinet.fuxictr_adapter import IdTable

MIN_ROWS = 100_000  # a pass over a smaller table costs about what the touched rows of a batch of 8,192 do, or less
CHAIN = 1024  # gradients of one row that a GPU adds up at once: see `_sums_in_parts`


class TouchedRows(NamedTuple):
    """The gradient of a table where it is not zero.

    Attributes:
        rows: int64 [N], of the table; a row may come again.
        gradients: float [N, D].
    """

    rows: Tensor
    gradients: Tensor

    @classmethod
    def of(cls, parameter: Tensor) -> "TouchedRows":
        """Views of a parameter's sparse gradient."""
        return cls(parameter.grad._indices()[0], parameter.grad._values())

    def as_sparse(self, shape: torch.Size) -> Tensor:
        """The gradient as torch's sparse tensor of a table's shape."""
        return torch.sparse_coo_tensor(self.rows.unsqueeze(0), self.gradients, shape, check_invariants=False)

    def merged(self) -> "TouchedRows":
        """The same with the whole gradient of a row where the row comes first, and zeros where it comes again.

        Every process that is given the same rows makes the same bits of them, on a GPU too.
        """
        if not len(self.rows):
            return self
        rows, order = self.rows.sort(stable=True)
        return TouchedRows(rows, _sums_of_rows(self.gradients.index_select(0, order), rows))

    def touched(self) -> Tensor:
        """bool [N, 1]: whether the gradient is other than zero."""
        return (self.gradients != 0).any(dim=1, keepdim=True)

    def apart(self, height: int) -> Tensor:
        """int64 [N]: merged rows, where a row comes again the next one of the table in turn.

        What is added there is zero, and a GPU adds to one row one after the other.
        """
        turns = torch.arange(len(self.rows), device=self.rows.device).remainder_(height)
        return torch.where(_come_again(self.rows), turns, self.rows)


def _sums_of_rows(gradients: Tensor, rows: Tensor) -> Tensor:
    """The sum of each row's gradients where the row comes first, and zeros where it comes again.

    Args:
        gradients: float [N, D].
        rows: int64 [N], sorted.

    Returns:
        float [N, D].
    """
    if rows.device.type == "cpu":
        return _summed(gradients, _firsts(rows))
    return _sums_in_parts(gradients, rows, CHAIN)


def _sums_in_parts(gradients: Tensor, rows: Tensor, chain: int) -> Tensor:
    """`_sums_of_rows` by `chain` gradients of a row at a time, and then those sums.

    torch's kernel for a GPU adds ten gradients of a row at a time in parallel, and those sums one after the other: of
    a row that half of a batch has, as padding is, one long chain, which everything else waits for.
    """
    first = _firsts(rows)
    positions = torch.arange(len(rows), device=rows.device)
    return _summed(_summed(gradients, positions - (positions - first) % chain), first)


def _summed(gradients: Tensor, index: Tensor) -> Tensor:
    """At each position the sum of the gradients whose index it is, in one order: float [N, D], int64 [N] sorted."""
    return torch.ops.aten.embedding_dense_backward(gradients, index, len(index), -1, False)


def _firsts(rows: Tensor) -> Tensor:
    """Of sorted rows, where each comes first: int64 [N] to int64 [N]."""
    return torch.arange(len(rows), device=rows.device).masked_fill(_come_again(rows), 0).cummax(0).values


def _come_again(rows: Tensor) -> Tensor:
    """Of sorted rows, whether a row is the one before it: int64 [N] to bool [N]."""
    again = torch.zeros_like(rows, dtype=torch.bool)
    again[1:] = rows[1:] == rows[:-1]
    return again


class LazyTable(nn.Embedding):
    """An embedding table whose gradient is sparse, made without the wait for a GPU that nn.Embedding's has.

    Args:
        table: what it stands in for; the weights are shared.
    """

    def __init__(self, table: nn.Embedding):
        super().__init__(*table.weight.shape, padding_idx=table.padding_idx, sparse=True, device="meta")
        self.weight = table.weight

    @torch.compiler.disable  # it cannot trace sparse gradients
    def forward(self, ids: Tensor) -> Tensor:
        """Integer [...] to float [..., D]."""
        return _Lookup.apply(self.weight, ids, self.padding_idx, False)

    @torch.compiler.disable
    def sum_rows(self, ids: Tensor) -> Tensor:
        """Integer [N, W], padded, to the sums of their rows, float [N, D]."""
        return _Lookup.apply(self.weight, ids, self.padding_idx, True)


class _Lookup(torch.autograd.Function):
    """Rows of a table; the padding row's gradient is set to zero, for leaving it out needs its number."""

    @staticmethod
    def forward(ctx, weight: Tensor, ids: Tensor, padding_idx: int | None, summed: bool) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding_idx, ctx.summed = weight.shape, padding_idx, summed
        return F.embedding_bag(ids, weight, mode="sum", padding_idx=padding_idx) if summed else F.embedding(ids, weight)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients float [..., D], or [N, D] of sums, to the table's, sparse [rows, D]."""
        (ids,) = ctx.saved_tensors
        rows = ids.reshape(-1).long()
        if ctx.summed:
            gradient = gradient.unsqueeze(1).expand(*ids.shape, -1)
        gradients = gradient.reshape(len(rows), ctx.shape[1])
        if ctx.padding_idx is not None:
            gradients = gradients.masked_fill((rows == ctx.padding_idx).unsqueeze(1), 0.0)
        return TouchedRows(rows, gradients).as_sparse(ctx.shape), None, None, None


class LazyTables:
    """The tables of a model whose touched rows are trained, between the backward pass and the optimizer's step.

    Args:
        model: a FuxiCTR model; its tables of at least `MIN_ROWS` rows become `LazyTable`, here and for good. Pretrained
            and projected embeddings stay as they are.
        wanted: False for no tables at all (`table_optimizer: dense`).

    Attributes:
        parameters: {name: the table's weights}.

    Raises:
        UserError: none are wanted, but the model was trained lazily before.
    """

    def __init__(self, model: nn.Module, wanted: bool = True):
        self.parameters: dict[str, Tensor] = {}
        if not wanted:
            if any(type(module) is LazyTable for module in model.modules()):
                raise UserError(
                    f"{type(model).__name__} was trained with table_optimizer: {_used(model)} before; go on with it, "
                    "or make the model anew"
                )
            return
        tables: dict[nn.Module, LazyTable] = {}  # one that features share stays one
        for module in model.modules():
            if type(module) is FeatureEmbeddingDict:
                for name, table in module.embedding_layers.items():
                    if type(table) is nn.Embedding and table.num_embeddings >= MIN_ROWS and table.weight.requires_grad:
                        module.embedding_layers[name] = tables.setdefault(table, LazyTable(table))
        weights = {table.weight for table in model.modules() if type(table) is LazyTable}
        self.parameters.update({name: weight for name, weight in model.named_parameters() if weight in weights})
        logging.info("Tables trained in their touched rows: %s", ", ".join(self.parameters) or f"none has {MIN_ROWS:,}")

    def collect(self) -> None:
        """After backward: each gradient becomes that of all ranks, each row's in one place (see `merged`).

        Raises:
            UserError: a loss reads a whole table, so that its gradient has every row.
        """
        touched = [self._touched(name, parameter) for name, parameter in self.parameters.items()]
        gathered = iter(distributed.gather_rows([part for pair in touched for part in pair]))
        for parameter, rows, gradients in zip(self.parameters.values(), gathered, gathered, strict=True):
            merged = TouchedRows(rows, gradients / distributed.current().size).merged()  # the mean, as DDP's of others
            parameter.grad = merged.as_sparse(parameter.shape)

    def clippable(self) -> list[Tensor]:
        """Tensors whose `grad` are the gradients of the touched rows, for clip_grad_norm_, which takes no sparse ones.

        The gradients of all other rows are zero, so the norm is that of the whole tables.
        """
        stand_ins = []
        for parameter in self.parameters.values():
            gradients = TouchedRows.of(parameter).gradients
            stand_in = gradients.detach()
            stand_in.grad = gradients
            stand_ins.append(stand_in)
        return stand_ins

    @staticmethod
    def _touched(name: str, parameter: Tensor) -> TouchedRows:
        if parameter.grad is None:  # no feature of this table was read
            rows = torch.empty(0, dtype=torch.int64, device=parameter.device)
            return TouchedRows(rows, parameter.new_empty(0, parameter.shape[1]))
        if not parameter.grad.is_sparse:
            raise UserError(
                f"{name} has a gradient in every row, which table_optimizer: {' and '.join(ROW_OPTIMIZERS)} are there "
                "to avoid: the model's own loss, or its regularization_loss, reads the whole table; set "
                "table_optimizer: dense"
            )
        return TouchedRows.of(parameter)


class LazyAdam(torch.optim.Adam):
    """Adam; parameters with a sparse gradient of merged rows are updated in these rows alone.

    The state is that of Adam under the same names, so checkpoints are too.

    Args:
        adam: whose parameters and settings it takes over.

    Raises:
        UserError: the optimizer is another one.
    """

    name = "lazy"  # of `table_optimizer`

    def __init__(self, adam: torch.optim.Optimizer):
        if type(adam) is not torch.optim.Adam or any(
            group[name] for group in adam.param_groups for name in ("weight_decay", "amsgrad", "maximize")
        ):
            raise UserError(
                f"table_optimizer is {self.name} and the optimizer {type(adam).__name__}, expected a plain Adam: it "
                "trains the touched rows of large tables, and Adam all else; set optimizer: adam, or table_optimizer: "
                "dense"
            )
        super().__init__([dict(group) for group in adam.param_groups], **adam.defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """One step of the tables' touched rows and of everything else; the tables' gradients are used up."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._step_rows(parameter, group)
                    parameter.grad = None  # Adam passes over those without a gradient
        return super().step(closure)

    def _step_rows(self, parameter: Tensor, group: dict) -> None:
        """Kingma and Ba 2015, algorithm 1, of the touched rows; t counts the steps of the run."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        rows, gradients = found = TouchedRows.of(parameter)
        taken = self._taken(state)
        touched = found.touched() & taken
        beta1, beta2 = group["betas"]
        places = found.apart(len(parameter))

        def move(values: Tensor, by: Tensor) -> None:
            # `by` is zero at repeats of a row: adding moves the row once, and in no order that could change its bits
            values.index_add_(0, places, torch.where(touched, by, 0.0))

        steps = state["step"].double()  # 1 - 0.999 has four digits in float32
        first, second = (state[name].index_select(0, rows) for name in ("exp_avg", "exp_avg_sq"))
        by_first, by_second = (gradients - first) * (1 - beta1), (gradients.square() - second) * (1 - beta2)
        move(state["exp_avg"], by_first)
        move(state["exp_avg_sq"], by_second)
        corrected = (first + by_first) / (1 - beta1**steps)
        scale = ((second + by_second) / (1 - beta2**steps)).sqrt() + group["eps"]
        move(parameter, corrected / scale * -group["lr"])

    def _taken(self, state: dict) -> Tensor:
        """Count a parameter's step; bool, a scalar: False where it is to be skipped.

        Skipping what overflowed is left to fused kernels, and to this, by a GradScaler.
        """
        overflow = getattr(self, "found_inf", None)
        taken = torch.ones_like(state["step"], dtype=torch.bool) if overflow is None else (overflow == 0).reshape(())
        state["step"] += taken
        return taken


class RowwiseAdagrad(LazyAdam):
    """Adam; parameters with a sparse gradient of merged rows get Adagrad with one sum a row, in these rows alone.

    The sum is that of the mean squares of the row's gradients, from 0 on; a row moves by -lr * gradient / (sqrt(sum) +
    eps). That is FBGEMM's EXACT_ROWWISE_ADAGRAD, torchrec's choice, with Adam's eps, 1e-8, which is FBGEMM's too; the
    L2 penalty is part of the gradient, as in its WeightDecayMode.L2 (github.com/pytorch/FBGEMM, rowwise_adagrad of
    fbgemm_gpu/codegen/genscript/optimizers.py). A row whose gradient is zero stays as it is.

    Args:
        adam: as LazyAdam's.
    """

    name = "rowwise_adagrad"

    def _step_rows(self, parameter: Tensor, group: dict) -> None:
        """One step of the touched rows."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["sum"] = parameter.new_zeros(len(parameter), 1)
        rows, gradients = found = TouchedRows.of(parameter)
        places = found.apart(len(parameter))
        gradients = torch.where(self._taken(state), gradients, 0.0)
        squares = gradients.square().mean(dim=1, keepdim=True)
        sums = state["sum"].index_select(0, rows) + squares
        state["sum"].index_add_(0, places, squares)  # of a repeat of a row, zero, as its movement is
        parameter.index_add_(0, places, gradients / (sums.sqrt() + group["eps"]) * -group["lr"])


ROW_OPTIMIZERS = {kind.name: kind for kind in (LazyAdam, RowwiseAdagrad)}
TABLE_OPTIMIZERS = ("dense", *ROW_OPTIMIZERS)


def set_table_rate(model: nn.Module, rate: float) -> None:
    """Give the embedding tables of a compiled model, small and large, a learning rate of their own.

    Args:
        model: a FuxiCTR model; its optimizer keeps the tables in groups of their own from then on, behind the others.
        rate: that learning rate.

    Raises:
        UserError: the model has no tables.
    """
    tables = {
        table.weight
        for module in model.modules()
        if type(module) in (FeatureEmbeddingDict, IdTable)
        for table in (module.embedding_layers.values() if type(module) is FeatureEmbeddingDict else [module])
        if isinstance(table, nn.Embedding) and table.weight.requires_grad
    }
    if not tables:
        raise UserError(
            f"table_learning_rate is {rate}, but {type(model).__name__} has no embedding tables of these features; "
            "leave it out"
        )
    for group in list(model.optimizer.param_groups):
        mine = [parameter for parameter in group["params"] if parameter in tables]
        if len(mine) == len(group["params"]):
            group["lr"] = rate
        elif mine:
            group["params"] = [parameter for parameter in group["params"] if parameter not in tables]
            model.optimizer.add_param_group({**group, "params": mine, "lr": rate})


def _used(model: nn.Module) -> str:
    """The `table_optimizer` that a model was trained with, if not dense."""
    return getattr(model.optimizer, "name", LazyAdam.name)
