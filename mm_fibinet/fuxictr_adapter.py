"""What FuxiCTR keeps to itself, read in one place.

FuxiCTR's BaseModel holds the rules of training in private attributes and lets a subclass change its loss, and its
loop, by overriding methods. Whatever depends on these insides is here, so that a new FuxiCTR is one file to look at.
"""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import torch
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import get_regularizer
from fuxictr.utils import Monitor
from torch import Tensor, nn

from mm_fibinet.errors import UserError
from mm_fibinet.settings_rules import monitor_mode

LOSS_METHODS = ("add_loss", "compute_loss", "regularization_loss", "get_total_loss")
LOOP_METHODS = (
    "train_step", "train_epoch", "eval_step", "checkpoint_and_earlystop", "lr_decay", "evaluate_metrics",
)  # fmt: skip
ENTRY_METHODS = ("fit", "evaluate", "predict")
FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)  # a step of these is one pass
ACCUMULATING_STEPS = (
    "acdaeb1bc17a33816f67b153c7c091bcb98a12117a252c1a21d690dd7d1c92b4",
)  # digests of a train_step that does what accumulation_steps does here


@dataclass(frozen=True)
class TrainingRules:
    """What a model's constructor was told about its training.

    Attributes:
        monitor: the weighted sum of metrics that is judged.
        monitor_mode: "max" or "min".
        early_stop_patience: evaluations without a gain before training stops.
        eval_steps: steps between two evaluations; None or 0 for an epoch.
        save_best_only: keep the best weights, else the last.
        reduce_lr_on_plateau: lower the learning rate when an evaluation brings no gain.
    """

    monitor: Monitor
    monitor_mode: str
    early_stop_patience: int
    eval_steps: int | None
    save_best_only: bool
    reduce_lr_on_plateau: bool

    @property
    def monitored(self) -> list[str]:
        """The metrics that the monitor needs."""
        return self.monitor.get_metrics()


def training_rules(model: BaseModel) -> TrainingRules:
    """The rules that a model carries.

    Raises:
        UserError: the monitor and its mode contradict each other.
    """
    monitor, mode = model._monitor.kv_pairs, monitor_mode(model._monitor.kv_pairs)
    if model._monitor_mode != mode:
        raise UserError(
            f"monitor_mode is {model._monitor_mode!r}, expected {mode!r} for {' and '.join(monitor)}: with any other, "
            "the worst epoch would be kept"
        )
    return TrainingRules(
        model._monitor,
        model._monitor_mode,
        model._early_stop_patience,
        model._eval_steps,
        model._save_best_only,
        model._reduce_lr_on_plateau,
    )


class IdTable(nn.Embedding):
    """A table of ids' vectors that a model keeps outside of FuxiCTR's FeatureEmbedding.

    `embedding_regularizer` and `table_learning_rate` are of it as of those inside.
    """


def shows_progress(model: nn.Module) -> bool:
    """Whether progress bars are wanted (`verbose`)."""
    return bool(getattr(model, "_verbose", 0))


def penalties(model: BaseModel) -> list[tuple[int, float, list[Tensor]]]:
    """FuxiCTR's regularization_loss as (power, weight, parameters): tables and their projections, then the rest."""
    tables = {}
    for module in model.modules():
        if type(module) in (FeatureEmbeddingDict, IdTable):
            tables.update({id(p): p for p in module.parameters() if p.requires_grad})
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in tables]
    found = []
    for regularizer, parameters in (
        (model._embedding_regularizer, list(tables.values())),
        (model._net_regularizer, rest),
    ):
        for power, weight in get_regularizer(float(regularizer) if isinstance(regularizer, int) else regularizer):
            if weight and parameters:
                found.append((power, weight, parameters))
    return found


def refuse_untrained(model: BaseModel) -> None:
    """A `UserError` when the optimizer does not know a parameter: it would stay as it is, without a word."""
    if getattr(model, "optimizer", None) is None:
        raise UserError(
            f"{type(model).__name__}: there is no optimizer, expected self.compile(optimizer, loss, learning_rate) in "
            "its constructor, when all layers are there"
        )
    known = {id(parameter) for group in model.optimizer.param_groups for parameter in group["params"]}
    left_out = [name for name, value in model.named_parameters() if value.requires_grad and id(value) not in known]
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        raise UserError(
            f"{type(model).__name__}: the optimizer does not train {', '.join(left_out[:3])}{more}, made after compile "
            "was called. Call compile when all layers are there; set requires_grad to False for those that are "
            "to stay as they are"
        )


def train_all(model: BaseModel) -> None:
    """Let a compiled model's optimizer train all parameters, also those made after it, by a fused kernel if it has one.

    An optimizer that is not plainly FuxiCTR's, of one kind and a learning rate, is kept and given what it lacks.

    Raises:
        UserError: there are none.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return
    parameters, lr = [p for p in model.parameters() if p.requires_grad], optimizer.param_groups[0]["lr"]
    if not parameters:
        raise UserError(f"{type(model).__name__}: no parameter has requires_grad, expected some that are trained")
    is_plain = type(optimizer) in FUSED and optimizer.defaults == type(optimizer)(parameters, lr=lr).defaults
    if is_plain and len(optimizer.param_groups) == 1:
        model.optimizer = type(optimizer)(parameters, lr=lr, fused=True)
        return
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    added = [parameter for parameter in parameters if id(parameter) not in known]
    if added:
        optimizer.add_param_group({"params": added})


def initialise_own_tables(model: nn.Module) -> None:
    """Initialise tables of `share_embedding` features that share none, as their neighbours are.

    FuxiCTR passes over every feature of share_embedding, for its table is another's. It is its own where the layer
    shares none, as a linear part, or lacks the other feature: then it stayed as torch makes it, of deviation 1, and
    an id that training never sees would keep that noise.
    """
    for layer in [module for module in model.modules() if type(module) is FeatureEmbeddingDict]:
        shared: set[nn.Module] = set()
        for name, table in layer.embedding_layers.items():
            is_own = "share_embedding" in layer._feature_map.features[name] and table not in shared
            shared.add(table)
            if is_own and type(table) is nn.Embedding:
                with torch.no_grad():
                    layer.embedding_initializer(table.weight[1:] if table.padding_idx is not None else table.weight)


def overridden(model: nn.Module, names: tuple[str, ...], base: type = BaseModel) -> list[str]:
    """Those methods that the model, its class or a class between has of its own.

    Args:
        base: whose methods are not the model's own.
    """

    def function(owner: object, name: str) -> object:
        method = getattr(owner, name, None)
        return getattr(method, "__func__", method)

    return [name for name in names if function(model, name) is not function(base, name)]


def refuse_own_loop(model: nn.Module, names: tuple[str, ...] = LOOP_METHODS, base: type = BaseModel) -> None:
    """A `UserError` when a model overrides a step of FuxiCTR's loop, which would never be called.

    Args:
        names: the methods that must be those of `base`.
    """
    own = [name for name in overridden(model, names, base) if not (name == "train_step" and only_accumulates(model))]
    if own:
        raise UserError(
            f"{type(model).__name__} overrides {', '.join(own)}, which the training loop of mm_fibinet replaces and "
            "would never call: it clips, accumulates (accumulation_steps), saves and resumes by itself. Remove the "
            f"override; a loss of its own belongs into one of {', '.join(LOSS_METHODS)}"
        )


def only_accumulates(model: nn.Module) -> bool:
    """Whether a model's train_step is LongCTR's, as the challenge's repositories have it too.

    It divides the loss by accumulation_steps and calls the optimizer once in that many batches, as our loop does by the
    setting of that name, but for an epoch's last step: ours is of the batches that it has. Told by the statements of
    the method; comments and layout do not count.
    """
    return _digest_of(type(model).train_step) in ACCUMULATING_STEPS


def _digest_of(method: Callable) -> str:
    """SHA-256 of a function's statements; empty where its source cannot be had."""
    try:
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(method))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return ""
    if not isinstance(function, ast.FunctionDef):
        return ""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return hashlib.sha256("\n".join(map(ast.unparse, body)).encode()).hexdigest()
