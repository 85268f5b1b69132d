"""A run's model, whoever wrote it: which batches it reads, which feature map it gets, and what of FuxiCTR is mended.

Models of model_zoo say by themselves what they need. Any other FuxiCTR model is a class with a constructor like
`(feature_map, **settings)` and a `forward`: here it gets the feature map of the batches that it reads, what FuxiCTR's
own scripts would have passed it besides, and, before an hour of training, one batch to show that it fits.
"""

import contextlib
import copy
import inspect
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from fuxictr.pytorch.models import MultiTaskModel
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mm_fibinet import errors, fuxictr_adapter, losses, model_source
from mm_fibinet.dataloader import BATCH_FORMATS, MMCTRDataLoader
from mm_fibinet.errors import UserError
from mm_fibinet.flat import FlatFormat
from mm_fibinet.item_table import item_side_features
from mm_fibinet.setting_types import SEQUENCE_ENCODERS

OURS = ("indices", "triple")
SEQUENCE_SETTINGS = r".*sequence(_item)?_field"  # of DIN, BST, ...: what they attend to by themselves
LOSSES_OF_SCORES = ("add_loss", "compute_loss", "get_total_loss")  # a model's own may take scores without a second axis
EXPECTED = {  # what FuxiCTR's models ask their settings for without a default
    "verbose": 0, "model_root": "./checkpoints/", "metrics": ["AUC", "logloss"], "optimizer": "adam",
    "loss": "binary_crossentropy",
}  # fmt: skip


def batch_formats(model_class: type) -> tuple[str, ...]:
    """The forms of a batch that a model reads, the one it takes when nobody chooses first.

    A class may say so by an attribute `batch_format`. Else its get_labels tells: FuxiCTR's own looks the label up in a
    dictionary, that of a model for the challenge's triple in the first part.

    Raises:
        UserError: its attribute is none of BATCH_FORMATS.
    """
    if model_source.is_multimodal(model_class):
        return OURS
    declared = getattr(model_class, "batch_format", None)
    if declared is None:
        return ("triple",) if _reads_triple(model_class) else ("flat",)
    if declared not in BATCH_FORMATS:
        raise UserError(
            f"{model_class.__name__}.batch_format is {declared!r}, expected one of {', '.join(BATCH_FORMATS)}"
        )
    return (declared,)


def batch_format(model_class: type, params: dict) -> str:
    """The form of a run's batches.

    Args:
        params: of `load_params`.

    Raises:
        UserError: the settings ask for one that the model does not read.
    """
    formats, asked = batch_formats(model_class), params.get("batch_format")
    if asked is None or asked in formats:
        return asked or formats[0]
    raise UserError(
        f"batch_format is {asked}, but {model_class.__name__} reads {' or '.join(formats)}; leave batch_format out, or "
        f"say `batch_format = {asked!r}` in the class if it does read that"
    )


def make_model(model_class: type, feature_map: FeatureMap, params: dict) -> Any:
    """A run's model, on its device and compiled.

    Args:
        feature_map: of `build_feature_map`.
        params: of `load_params`.

    Raises:
        UserError: its constructor failed, it has nothing to train, or it is a model of several labels.
    """
    if issubclass(model_class, MultiTaskModel):
        raise UserError(
            f"{model_class.__name__} is a model of several tasks, which FuxiCTR trains on a label each; expected one "
            "of a single label"
        )
    ours = model_source.is_multimodal(model_class)
    feature_map = _pooled(feature_map) if ours else _feature_map_for(model_class, feature_map, params)
    try:
        model = model_class(feature_map, **_arguments(model_class, params))
    except (Exception, SystemExit) as error:
        advice = "check its settings and its code"
        if isinstance(error, KeyError) and not _takes_more(model_class):
            advice = (
                "it takes no **kwargs, expected that it does and hands them to super().__init__(feature_map, **kwargs)"
            )
        _explain(error, model_class, "its constructor failed", advice)
        raise
    if not model_source.is_multimodal(model_class):
        _refuse_unready(model)
        _mend_linear_parts(model)
        fuxictr_adapter.train_all(model)
    return model


def item_features(model: nn.Module, feature_map: FeatureMap, params: dict) -> dict[str, dict]:
    """What the item table must hold for a model: FuxiCTR feature specs by name, each of source `item`."""
    if model_source.is_multimodal(type(model)):
        return model.item_side_features()
    return item_side_features(feature_map.features, bool(params.get("history_levels")))


def try_out(model: nn.Module, data: MMCTRDataLoader) -> None:
    """Score the first rows of a split with a model that is not ours, so that what does not fit is said at the start.

    Random numbers that it draws are put back.

    Raises:
        UserError: its forward failed, or what it returned are no probabilities.
    """
    if model_source.is_own(type(model)):
        return
    _, batch = next(data.shard_batches(0, data.num_batches))
    name, rows = type(model).__name__, data.rows_in_batch(0)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            outputs = model.eval()(batch)
        except (Exception, SystemExit) as error:
            advice = f"a batch is {_described(batch)} (batch_format: {data.batch_format})"
            _explain(error, type(model), "its forward failed on the first batch", advice)
            raise
    predicted = outputs.get("y_pred") if isinstance(outputs, dict) else None
    shapes = [(rows, 1), (rows,)] if fuxictr_adapter.overridden(model, LOSSES_OF_SCORES) else [(rows, 1)]
    if not (isinstance(predicted, Tensor) and predicted.shape in shapes and predicted.is_floating_point()):
        found = "no tensor y_pred"
        if isinstance(predicted, Tensor):
            found = f"y_pred of shape {list(predicted.shape)} and type {str(predicted.dtype).removeprefix('torch.')}"
        raise UserError(
            f"{name}: forward returned {found} for a batch of {rows} rows, expected a dictionary whose y_pred is "
            f"[{rows}, 1] of floats"
        )
    low, high = predicted.float().aminmax()
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise UserError(
            f"{name}: forward's y_pred goes from {low:.3g} to {high:.3g}, expected probabilities from 0 to 1; let it "
            "end with self.output_activation"
        )


@contextlib.contextmanager
def explained(model: nn.Module, what: str) -> Iterator[None]:
    """Say in one line what a stranger's code raises at work; what comes from elsewhere is a bug, and stays one.

    Args:
        what: was tried, as "it failed in training".

    Raises:
        UserError: the exception passed through the class's own files.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if model_source.passed_through(error, type(model)):
            _explain(error, type(model), what, "check its code")
        raise


def _refuse_unready(model: nn.Module) -> None:
    """Refuse a model that its constructor has left half made."""
    name = type(model).__name__
    if "_modules" not in vars(model):
        raise UserError(f"{name}: its constructor does not call super().__init__(feature_map, **kwargs) first")
    unsized = [path for path, value in model.named_parameters() if is_lazy(value)]
    if unsized:
        raise UserError(
            f"{name}: {', '.join(unsized[:3])} have no size before the first batch (a Lazy layer), expected layers "
            "whose sizes its constructor gives"
        )


def _reads_triple(model_class: type) -> bool:
    """Whether a class's get_labels finds the label in the challenge's triple; asked without making a model."""
    model = SimpleNamespace(feature_map=SimpleNamespace(labels=["label"]), device=torch.device("cpu"))
    try:
        model_class.get_labels(model, ({"label": torch.zeros(1)}, {}, torch.zeros(1, 0)))  # type: ignore[attr-defined]
    except Exception:  # whatever a stranger's code says to a batch that it does not read
        return False
    return True


def _feature_map_for(model_class: type, feature_map: FeatureMap, params: dict) -> FeatureMap:
    """The feature map that a class gets: that of its batches, with what FuxiCTR's models look up in it besides."""
    flat = batch_format(model_class, params) == "flat"
    sequences = _names_in([value for key, value in params.items() if re.fullmatch(SEQUENCE_SETTINGS, key)])
    if flat and (params.get("item_info") or any(_flat_settings(params))):  # without items it refuses these settings
        feature_map = FlatFormat(feature_map, *_flat_settings(params)).feature_map(params["max_len"], sequences)
    else:
        feature_map = copy.deepcopy(feature_map)
    if flat:
        for name in sequences:
            if feature_map.features.get(name, {}).get("type") == "sequence":
                feature_map.features[name]["feature_encoder"] = None
    if feature_map.group_id:
        feature_map.features.setdefault(feature_map.group_id, {"type": "meta"})  # it is in every batch
    for spec in feature_map.features.values():
        spec.setdefault("source", "")
    width = inspect.signature(model_class).parameters.get("embedding_dim")
    feature_map.default_emb_dim = params.get("embedding_dim", width.default if width else None)
    return feature_map


def _pooled(feature_map: FeatureMap) -> FeatureMap:
    """The feature map for models whose fields are a vector each: a sequence without an encoder has the mean's."""
    feature_map = copy.deepcopy(feature_map)
    for spec in feature_map.features.values():
        if spec["type"] == "sequence" and spec.get("feature_encoder") is None:
            spec["feature_encoder"] = SEQUENCE_ENCODERS[0]
    return feature_map


def _flat_settings(params: dict) -> tuple:
    return tuple(params.get(name) for name in ("history_levels", "similarity_fields", "similarity_only"))


def _names_in(value: object) -> list[str]:
    """All texts in nested lists and mappings."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [name for part in inner for name in _names_in(part)]


def _arguments(model_class: type, params: dict) -> dict:
    """The settings that a constructor is called with: all of them, as FuxiCTR does, where it takes them."""
    settings = params
    if not model_source.is_multimodal(model_class):
        settings = {**EXPECTED, **params}
        settings["loss"] = losses.name_of(settings["loss"])  # the trainer knows of others
    if _takes_more(model_class):
        return settings
    parameters = inspect.signature(model_class).parameters
    return {name: value for name, value in settings.items() if name in parameters}


def _takes_more(model_class: type) -> bool:
    """Whether a constructor has **kwargs."""
    parameters = inspect.signature(model_class).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _explain(error: BaseException, model_class: type, what: str, advice: str) -> None:
    """Raise a stranger's exception as a `UserError`; ours and a want of memory stay what they are."""
    ours = isinstance(error, UserError | MemoryError) or model_source.is_own(model_class)
    if not ours and not errors.is_out_of_memory(error):
        place = model_source.place_of(error, model_class)
        raise UserError(f"{model_class.__name__}: {what}: {type(error).__name__}: {error}{place}; {advice}") from error


def _described(batch: object) -> str:
    """The names and shapes of a batch."""
    if isinstance(batch, Tensor):
        return str(list(batch.shape))
    if isinstance(batch, dict):
        return "{" + ", ".join(f"{name} {_described(values)}" for name, values in batch.items()) + "}"
    if isinstance(batch, tuple):
        return "(" + ", ".join(map(_described, batch)) + ")"
    return type(batch).__name__


def _mend_linear_parts(model: nn.Module) -> None:
    """Let FuxiCTR's linear part (LogisticRegression, FM) take what it cannot: embeddings, and shared tables.

    Its linear part is a FeatureEmbedding of width 1 that shares no tables. An embedding feature passes it as the raw
    [B, pretrain_dim], which does not stack with the others' [B, 1]: here it gets one weight a dimension, as in our
    LinearPart. And tables that nobody initialised are (see fuxictr_adapter.initialise_own_tables), for else scores
    begin with noise of deviation 1 a history item. The layer itself stays FuxiCTR's, so whichever model uses it is
    mended, and no other process or model sees anything of it.
    """
    for layer in [module for module in model.modules() if type(module) is FeatureEmbeddingDict]:
        features = layer._feature_map.features
        for name in layer.embedding_layers:
            spec = features[name]
            if spec["type"] == "embedding" and name not in layer.feature_encoders:
                weights = nn.Linear(spec["pretrain_dim"], 1, bias=False).to(model.device)
                nn.init.xavier_normal_(weights.weight)
                layer.embedding_layers[name] = weights
    fuxictr_adapter.initialise_own_tables(model)
