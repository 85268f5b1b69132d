"""What the models share: how they are made, the challenge's inputs in either form, and items embedded once.

A model's constructor makes its layers, and that is all: initialisation, device, optimizer and loss follow when it has
returned (`ModelType`). What a model needs to know of the items it says itself (`item_side_features`): the item table
is made from that.

A batch comes as the challenge's triple `(batch_dict, item_dict, mask)`, as an `IndexBatch` of our loader, or, for a
model that reads no history, as FuxiCTR's plain dictionary. `MultimodalModel.read_batch` turns each into the same
`Inputs`. With an IndexBatch the item side is embedded once per distinct item and positions gather the result: a batch
of 8192 x 65 positions has 532,000 occurrences of at most 91,718 items.

Training runs in mm_fibinet.training, scoring in mm_fibinet.scoring; `fit`, `evaluate` and `predict` keep FuxiCTR's
signatures.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from fuxictr.pytorch.layers import MaskedAveragePooling, MaskedSumPooling
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import get_loss
from torch import Tensor, nn

from mm_fibinet import losses, scoring
from mm_fibinet.checkpoint import load_weights, save_weights
from mm_fibinet.dataloader import IndexBatch
from mm_fibinet.errors import UserError
from mm_fibinet.fuxictr_adapter import FUSED, initialise_own_tables
from mm_fibinet.gather import take_rows
from mm_fibinet.item_table import LEVELS
from mm_fibinet.setting_types import SEQUENCE_ENCODERS
from mm_fibinet.table_optimizer import LazyTable
from mm_fibinet.training import Trainer

from .lookup import pool_rows

KWARG_DEFAULTS = {"verbose": 0, "model_root": "./checkpoints/", "metrics": ["AUC", "logloss"]}
INITIALIZERS = ("partial(nn.init.normal_, std=1e-4)",)  # FuxiCTR evaluates what it is given; this is its default


@dataclass
class Inputs:
    """A batch, ready for embedding.

    Attributes:
        user: {feature: [B] or [B, W]} that belong to the row, not to an item.
        items: {feature: [M] or [M, W]} of M items.
        positions: integer [B, L + 1], rows of `items`; history first, target last.
        mask: [B, L], non-zero = a real history item.
        padding_row: the row of `items` that padded positions point at; None when they have rows of their own.
        similarities: float [B, size] of each similarity field (see FieldModel); empty without them.
        modalities: float [B, width] of each column that is fused (see ModalityFusion); empty without them.
    """

    user: dict[str, Tensor]
    items: dict[str, Tensor]
    positions: Tensor
    mask: Tensor
    padding_row: int | None
    similarities: list[Tensor] = field(default_factory=list)
    modalities: list[Tensor] = field(default_factory=list)

    @cached_property
    def target(self) -> Tensor:
        """integer [B], the target's row."""
        return self.positions[:, -1]

    @cached_property
    def history(self) -> Tensor:
        """integer [B, L], the history's rows."""
        return self.positions[:, :-1]

    def target_columns(self) -> dict[str, Tensor]:
        """{feature: [B] or [B, W]}: the row's own features and those of its target item."""
        of_item = {name: values for name, values in self.items.items() if name not in self.user}
        return {name: take_rows(values, self.target) for name, values in of_item.items()} | self.user


class ModelType(type):
    """Completes a model when its outermost constructor has returned: weights, device, optimizer and loss.

    FuxiCTR's models do so by hand at the end of their constructors, in calls that every contributor has to know. A step
    that a constructor takes itself, as FuxiCTR's do, is not taken again.
    """

    def __call__(cls, *args, **kwargs):
        """The model, ready to train; learning_rate, optimizer and loss are those its constructor was given."""
        model = super().__call__(*args, **kwargs)
        if not model.weights_are_set:
            model.reset_parameters()
        model.model_to_device()
        if not hasattr(model, "optimizer"):
            given = {**model.compile_settings, **_arguments(cls, args, kwargs)}
            loss = losses.resolve(given["loss"], given["pos_weight"], given["focal_gamma"])
            model.compile(given["optimizer"], loss, given["learning_rate"])
        return model

    @property
    def __signature__(cls) -> inspect.Signature:
        """The constructor's: `inspect` would show that of `__call__`."""
        _, *parameters = inspect.signature(inspect.getattr_static(cls, "__init__")).parameters.values()
        return inspect.Signature(parameters)


def _arguments(cls: type, args: tuple, kwargs: dict) -> dict[str, object]:
    """The arguments of a constructor's call by name, its defaults and what went into its **kwargs among them."""
    bound = inspect.signature(cls).bind(*args, **kwargs)
    bound.apply_defaults()
    settings = {}
    for name, value in bound.arguments.items():
        collects = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        settings.update(value if collects else {name: value})
    return settings


class MultimodalModel(BaseModel, metaclass=ModelType):
    """A FuxiCTR BaseModel that reads the challenge's batches.

    A subclass makes its layers in its constructor and has a `compute_logit`; see ModelType for the rest.

    Args:
        feature_map: FuxiCTR's FeatureMap; features of source `item` describe items.
        model_id: names the checkpoint; the class's name unless given.
        learning_rate, optimizer, loss: of training, as FuxiCTR's `compile` takes them; the loss may be weights of
            several, as {"bce": 0.8, "pairwise": 0.2}.
        pos_weight, focal_gamma: of these (see mm_fibinet.losses).
        history_levels: the history's items carry likes_level and views_level too, embedded by the row's own tables.
        kwargs: what FuxiCTR's BaseModel takes; KWARG_DEFAULTS fill what is missing. They are
        embedding_regularizer: L2 or L1 of the embedding tables, as its gradient; the loss that is shown is without it.
        net_regularizer: the same of all other weights.
        eval_steps: steps between two evaluations; null for one an epoch.
        early_stop_patience: training ends when so many evaluations in a row were no better.
        reduce_lr_on_plateau: an evaluation that was no better multiplies the learning rate by lr_decay_factor.
        save_best_only: False keeps the last evaluation's weights, better or not.
        task, monitor, monitor_mode: of every run.

    Attributes:
        item_features: features of source `item`, in the feature map's order.
        level_features: the levels that items carry besides, with history_levels; else empty.
        user_features: the row's own features (user, context, the target's levels), in the feature map's order.
        compared_features: item features that are read but not embedded (see FieldModel); else empty.
        reads_alone: settings that the class reads whatever stands beside them (see mm_fibinet.settings_unread).

    Raises:
        UserError: the feature map has no features, has no levels though history_levels is True, or holds text that
            FuxiCTR would run as code.
    """

    optimizer: torch.optim.Optimizer  # from `compile` on
    compute_logit: Callable[..., Tensor]  # a model's own: the batch and its `logit_inputs` to float [B, 1]
    compared_features: tuple[str, ...] | list[str] = ()
    weights_are_set = False

    reads_alone: tuple[str, ...] = ()

    def __init__(
        self,
        feature_map,
        model_id=None,
        learning_rate=1e-3,
        optimizer="adam",
        loss="binary_crossentropy",
        pos_weight=1.0,
        focal_gamma=2.0,
        history_levels=False,
        **kwargs,
    ):
        _require_plain_specs(feature_map, kwargs)
        super().__init__(feature_map, model_id=model_id or type(self).__name__, **{**KWARG_DEFAULTS, **kwargs})
        self.compile_settings = {"learning_rate": learning_rate, "optimizer": optimizer, "loss": loss}
        self.compile_settings.update(pos_weight=pos_weight, focal_gamma=focal_gamma)
        features = {name: spec for name, spec in feature_map.features.items() if spec["type"] != "meta"}
        self.item_features = [name for name, spec in features.items() if spec.get("source") == "item"]
        self.user_features = [name for name in features if name not in self.item_features]
        self.level_features = []
        if history_levels:
            if not any(name in features for name in LEVELS):
                raise UserError(
                    f"history_levels is True for {type(self).__name__}, but the feature map has neither "
                    f"{' nor '.join(LEVELS)}, it has {', '.join(features)}; set history_levels: False, or add them to "
                    "feature_cols and use_features"
                )
            self.level_features = [name for name in LEVELS if name in self.user_features]

    @property
    def vector_features(self) -> list[str]:
        """The features of an item's vector in its order, the feature map's; here and nowhere else it is decided."""
        of_items = {*self.item_features, *self.level_features}
        return [name for name in self.feature_map.features if name in of_items]

    def idle_settings(self) -> list[str]:
        """What is set and finds nothing to do in these data, a sentence each: a run says so before it begins."""
        return []

    def item_side_features(self) -> dict[str, dict]:
        """What the item table must hold for this model: FuxiCTR feature specs by name, each of source `item`."""
        kept = {"source": "item", "keep_int8": True}  # rows of it get their scale when they are taken
        embedded = {name: {**self.feature_map.features[name], **kept} for name in self.vector_features}
        compared = {name: {**self.feature_map.features[name], "compared_only": True} for name in self.compared_features}
        return {**embedded, **compared}

    def reset_parameters(self):
        """FuxiCTR's: Xavier for linear layers, `init_weights` for those that have it; and all tables (see there)."""
        super().reset_parameters()
        initialise_own_tables(self)
        self.weights_are_set = True

    def model_to_device(self):
        """FuxiCTR's; the state of an optimizer that was made before follows the weights."""
        super().model_to_device()
        if hasattr(self, "optimizer"):
            self.optimizer.load_state_dict(self.optimizer.state_dict())

    def compile(self, optimizer, loss, lr):
        """FuxiCTR's, with the fused kernel of the optimizer where there is one: a step is then one pass.

        Raises:
            UserError: torch has no such optimizer, or the loss is text that FuxiCTR would run as code.
        """
        if isinstance(loss, str) and not loss.isidentifier():
            raise UserError(f"loss is {loss!r}, expected the name of a loss, for example binary_crossentropy")
        self.optimizer = _optimizer_class(optimizer)(self.parameters(), lr=lr)
        self.loss_fn = loss if isinstance(loss, losses.MixedLoss) else get_loss(loss)
        if type(self.optimizer) in FUSED:
            self.optimizer = type(self.optimizer)(self.parameters(), lr=lr, fused=True)

    def read_batch(self, inputs) -> Inputs:
        """Bring a batch of any of the three forms to the model's device, as `Inputs`."""
        if isinstance(inputs, IndexBatch):
            return self._read_indices(inputs)
        if isinstance(inputs, dict):
            return self._read_dictionary(inputs)
        batch_dict, item_dict, mask = inputs
        mask = mask.to(self.device, non_blocking=True)
        items = {
            name: values.to(self.device, non_blocking=True) for name, values in self._item_columns(item_dict).items()
        }
        batch, length = mask.shape
        positions = torch.arange(batch * (length + 1), device=self.device).view(batch, length + 1)
        return Inputs(self._user_columns(batch_dict), items, positions, mask, None)

    def forward(self, inputs) -> dict[str, Tensor]:
        """Click probabilities, of the model's `compute_logit`.

        A model whose loss needs more of a batch returns it from a `forward` of its own.

        Args:
            inputs: an IndexBatch, the challenge's triple, or a dictionary of the target's features (no history).

        Returns:
            {"y_pred": float [B, 1]}, the mean of "heads": float [B, H], which are there if there are several.
        """
        batch = self.read_batch(inputs)
        logit = self.logit(batch, *self.logit_inputs(batch))
        scores = self.output_activation(logit.float())
        if scores.shape[1] == 1:
            return {"y_pred": scores}
        return {"y_pred": scores.mean(dim=1, keepdim=True), "heads": scores}

    def logit(self, batch: Inputs, *inputs: Tensor) -> Tensor:
        """The model's `compute_logit`, and what a setting adds to that of every model: float [B, 1], or [B, H]."""
        return self.compute_logit(batch, *inputs)

    def logit_inputs(self, batch: Inputs) -> tuple[Tensor, ...]:
        """What `compute_logit` reads beside the batch."""
        return ()

    def embed(self, layer: nn.Module, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Embed columns by FuxiCTR's layer; pooled sequences in one pass, without their [N, W, D] in between.

        Args:
            layer: FuxiCTR's FeatureEmbedding.
            columns: {feature: [N] or [N, W]}.

        Returns:
            {feature: float [N, D]}.
        """
        inner = layer.embedding_layer
        embedded = {}
        for name, values in columns.items():
            encoder = inner.feature_encoders[name] if name in inner.feature_encoders else None  # noqa: SIM401
            table = inner.embedding_layers[name]
            if type(encoder) in POOLINGS and getattr(table, "padding_idx", None) == 0:
                sum_rows = table.sum_rows if isinstance(table, LazyTable) else None
                embedded[name] = pool_sequence(values, table.weight, POOLINGS[type(encoder)], sum_rows)
            else:
                embedded.update(inner({name: values}))
        return embedded

    def get_labels(self, inputs) -> Tensor:
        """float [B, 1]; a UserError when the split has no labels, as a test split."""
        batch_dict = inputs if isinstance(inputs, dict) else inputs[0]
        if self.feature_map.labels[0] not in batch_dict:
            raise UserError(
                f"the data have no column {self.feature_map.labels[0]}, which training and evaluation need; call "
                "predict for their scores"
            )
        return batch_dict[self.feature_map.labels[0]].to(self.device, non_blocking=True).float().view(-1, 1)

    def get_group_id(self, inputs) -> Tensor:
        """integer [B]."""
        batch_dict = inputs if isinstance(inputs, dict) else inputs[0]
        return batch_dict[self.feature_map.group_id]

    def fit(self, data_generator, epochs=1, validation_data=None, **kwargs):
        """FuxiCTR's signature; the loop is mm_fibinet.training's."""
        Trainer(self, checkpoint=self.checkpoint, **kwargs).fit(data_generator, validation_data, epochs=epochs)

    def evaluate(self, data_generator, metrics=None):
        """FuxiCTR's signature: {metric: value} over all batches."""
        return scoring.evaluate(self, data_generator, metrics or self.validation_metrics)

    def predict(self, data_generator):
        """FuxiCTR's signature: float64 array [N] of click probabilities, in the loader's order."""
        return scoring.predict(self, data_generator)

    def load_weights(self, checkpoint):
        """Load a state dict file, without running what it may hold; a UserError when it is not this model's."""
        load_weights(self, checkpoint)

    def save_weights(self, checkpoint):
        """Save the state dict, whole or not at all."""
        save_weights(self, checkpoint)

    def _read_indices(self, inputs: IndexBatch) -> Inputs:
        table, index = inputs.item_table, inputs.item_index
        mask = index[:, :-1] > 0
        user = self._user_columns(inputs.batch_dict)
        if index.device.type == "cpu":
            distinct, positions = distinct_items(index, table.num_items)
            return Inputs(user, self._item_columns(table.rows(distinct)), positions, mask, 0)
        if index.numel() >= table.num_items:
            return Inputs(user, self._item_columns(table.all_rows()), index, mask, 0)
        rows = self._item_columns(table.rows(index))  # finding the distinct ones would make the GPU wait
        return Inputs(user, rows, torch.arange(index.numel(), device=index.device).view(index.shape), mask, None)

    def _read_dictionary(self, inputs: dict[str, Tensor]) -> Inputs:
        columns = {name: values.to(self.device) for name, values in inputs.items()}
        items = self._item_columns(columns)
        batch = len(next(iter(columns.values())))
        positions = torch.arange(batch, device=self.device).view(batch, 1)
        mask = torch.zeros(batch, 0, device=self.device)
        return Inputs(self._user_columns(columns), items, positions, mask, None)

    def _user_columns(self, batch_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: batch_dict[name].to(self.device, non_blocking=True) for name in self.user_features}

    def _item_columns(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        names = [*self.item_features, *self.level_features, *self.compared_features]
        missing = [name for name in names if name not in columns]
        if missing:
            raise UserError(
                f"{type(self).__name__}: the batch's items lack {', '.join(missing)}; make the item table of the "
                "model's item_side_features()"
            )
        return {name: columns[name] for name in names}


def _optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """An optimizer of torch by FuxiCTR's name; its `get_optimizer` would take a Ctrl-C for an unknown name."""
    found = getattr(torch.optim, "Adam" if name.lower() == "adam" else name, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise UserError(f"optimizer is {name!r}, expected the name of one in torch.optim, for example adam")
    return found


def _require_plain_specs(feature_map, settings: dict) -> None:
    """Refuse a feature map without features, and all but known names where FuxiCTR's embedding layer runs text."""
    features = feature_map.features
    if all(spec["type"] == "meta" for spec in features.values()):
        raise UserError(f"the feature map has no features to score by, only {', '.join(features) or 'nothing'} as meta")
    for name, spec in features.items():
        allowed = SEQUENCE_ENCODERS if spec["type"] == "sequence" else (None,)
        if (spec.get("feature_encoder") or None) not in allowed:
            expected = " or ".join(map(str, allowed))
            raise UserError(f"feature {name}: feature_encoder is {spec.get('feature_encoder')!r}, expected {expected}")
    for where, initializer in [
        *((f"feature {name}: ", spec.get("embedding_initializer")) for name, spec in features.items()),
        ("", settings.get("embedding_initializer")),
    ]:
        if isinstance(initializer, str) and initializer not in INITIALIZERS:
            raise UserError(f"{where}embedding_initializer is {initializer!r}, expected {' or '.join(INITIALIZERS)}")


def with_equal_dims(feature_map, embedding_dim: int):
    """A copy whose fields all take the model's embedding_dim, for interactions that need equal widths.

    The width of an `embedding` feature is that of the challenge's models in the same data set, and is left aside here.

    Raises:
        UserError: a field of another type asks for a width of its own.
    """
    feature_map = copy.deepcopy(feature_map)
    for name, spec in feature_map.features.items():
        width = spec.pop("embedding_dim", None)
        if width not in (None, embedding_dim) and spec["type"] != "embedding":
            raise UserError(
                f"feature {name}: embedding_dim is {width}, but the fields of this model have one width, "
                f"{embedding_dim}; leave it out, or take a model like DIN"
            )
    return feature_map


def with_regularizer(regularizer, settings: dict) -> dict:
    """A constructor's settings with FuxiCTR's `regularizer` of LR and FM, which stands for those of all weights.

    Raises:
        UserError: another one is given beside it.
    """
    if regularizer is None:
        return settings
    both = dict.fromkeys(("embedding_regularizer", "net_regularizer"), regularizer)
    for name in both:
        if settings.get(name) not in (None, 0, regularizer):
            raise UserError(f"regularizer is {regularizer!r} and {name} is {settings[name]!r}, expected one of the two")
    return {**settings, **both}


POOLINGS = {MaskedAveragePooling: "mean", MaskedSumPooling: "sum"}


def pool_sequence(ids: Tensor, weight: Tensor, mode: str, sum_rows: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Embed and pool id lists as FuxiCTR's masked pooling does, without the [N, W, D] in between.

    FuxiCTR tells padding by its vector: only a row of `weight` that sums to zero is left out of the mean. Weights it
    trained have zeros at the padding id; for others the padding row counts, and does so here.

    Args:
        ids: integer [N, W], 0 = padding.
        weight: float [V, D]; row 0 gets no gradient.
        mode: "mean" or "sum".
        sum_rows: sums the rows of `ids`, padding left out; None for an embedding_bag.

    Returns:
        float [N, D].
    """
    padding_row = weight[0].detach()
    padded = (ids == 0).sum(dim=1, keepdim=True).to(weight.dtype)
    summed = sum_rows(ids) if sum_rows else pool_rows(weight, ids, "sum")
    summed = summed + padded * padding_row
    if mode == "sum":
        return summed
    counted = ids.shape[1] - padded + padded * (padding_row.sum() != 0)
    return summed / (counted + 1e-12)


@torch.compiler.disable
def distinct_items(index: Tensor, num_items: int) -> tuple[Tensor, Tensor]:
    """The distinct items of a batch, the padding item always the first of them.

    In numpy, in one thread: a quarter of the time that torch takes with two, and no thread to wait for.

    Args:
        index: integer [B, L + 1], each below num_items, on the CPU.

    Returns:
        (int64 [M] item ids in ascending order, int64 [B, L + 1] rows of that list).
    """
    items = index.numpy().astype(np.int64)
    seen = np.zeros(num_items, dtype=bool)
    seen[0] = True
    seen[items] = True
    distinct = np.flatnonzero(seen)
    row_of = np.empty(num_items, dtype=np.int64)
    row_of[distinct] = np.arange(len(distinct))
    return torch.from_numpy(distinct), torch.from_numpy(row_of[items])
