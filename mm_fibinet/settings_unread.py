"""Settings that are read only beside another: whoever changes one of these alone changes nothing.

A config may hold them, and an experiment that takes over another's settings does. A change that someone asks for, by
--set or in a tuner's space, is refused: it would come back as a result that looks like one.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from mm_fibinet.errors import UserError
from mm_fibinet.model_source import is_multimodal
from mm_fibinet.settings import comparable
from mm_fibinet.settings_schema import ALIASES, field_names, schema_of
from mm_fibinet.yaml_reader import shown


class Beside(NamedTuple):
    """Another setting, and with which of its values one is read beside it.

    Attributes:
        key: the other setting.
        fits: whether it is read beside this value.
        advice: what to set.
    """

    key: str
    fits: Callable[[object], bool]
    advice: str


def _given(key: str) -> Beside:
    return Beside(key, bool, key)


def _one_of(key: str, *values: object) -> Beside:
    return Beside(key, lambda value: value in values, f"{key}={values[0]}")


_UNITS = _given("hidden_units"), _given("dnn_hidden_units")
_MLPS = *_UNITS, _one_of("model_structure", "parallel", "stacked", "stacked_parallel")
_PATIENT = Beside("early_stop_patience", lambda value: isinstance(value, int) and value > 1, "early_stop_patience=2")
_PLATEAU = _one_of("lr_schedule", "plateau"), _PATIENT  # without patience the first plateau is the end
_ATTENTION = _one_of("history_pooling", "target_attention")
_FUSION = (_given("low_rank_fusion"),)
_MIXTURE = (_one_of("use_low_rank_mixture", True),)
_GATES = (_one_of("use_fs", True),)
# {setting: what it is read beside}: all of these that the model has, as they are named there.
READ_BESIDE: dict[str, tuple[Beside, ...]] = {
    "lr_decay_factor": (*_PLATEAU, _one_of("reduce_lr_on_plateau", True)),
    "reduce_lr_on_plateau": _PLATEAU,
    "interest_dropout": (_given("cross_attention_layers"),),
    "content_search_len": (_given("content_search"),),
    "attention_hidden_units": (_ATTENTION,),
    "attention_dropout": (_ATTENTION, _given("attention_hidden_units")),
    "attention_hidden_activations": (_given("attention_hidden_units"),),
    "low_rank_fusion_dim": _FUSION,
    "low_rank_fusion_ranks": _FUSION,
    "low_rank_fusion_heads": _FUSION,
    "low_rank_fusion_dropout": _FUSION,
    "excitation_activation": (_one_of("senet_plus", False),),
    "num_groups": (_one_of("senet_plus", True),),
    "bilinear_output_dim": (_one_of("bilinear_plus", True),),
    "hidden_activations": (_given("hidden_units"),),
    "dnn_activations": _MLPS,
    "net_dropout": _MLPS,
    "batch_norm": _MLPS,
    "stacked_dnn_hidden_units": (_one_of("model_structure", "stacked", "stacked_parallel"),),
    "parallel_dnn_hidden_units": (_one_of("model_structure", "parallel", "stacked_parallel"),),
    "low_rank": _MIXTURE,
    "num_experts": _MIXTURE,
    "fs_hidden_units": _GATES,
    "fs1_context": _GATES,
    "fs2_context": _GATES,
}


def unread(params: Mapping[str, object], changes: Mapping[str, Iterable[object]], model_class: type) -> dict[str, str]:
    """The changes that nothing reads, whichever of the values are taken together: {setting: why}.

    Args:
        params: of `load_params`, with or without the changes.
        changes: {setting: the values that it may get}. One that may only get its default changes nothing anyhow, and
            is left out.
        model_class: the model's; its `reads_alone` are settings that it reads whatever stands beside them.
    """
    schema = schema_of(model_class)
    names, defaults = field_names(schema), schema.arguments
    named = {_own_name(key, names): key for key in changes}

    def possible(key: str) -> list:
        now = params.get(key)
        return list(changes[named[key]]) if key in named else [defaults.get(key) if now is None else now]

    found = {}
    for name in READ_BESIDE.keys() & named.keys() & names.keys():
        unchanged = all(comparable(name, value) == comparable(name, defaults.get(name)) for value in possible(name))
        if unchanged or name in getattr(model_class, "reads_alone", ()) or not _is_ours(model_class, name):
            continue
        beside = [other for other in READ_BESIDE[name] if other.key in names]
        missing = next((other for other in beside if not any(map(other.fits, possible(other.key)))), None)
        if missing is not None:
            now = " or ".join("not set" if value in (None, (), []) else shown(value) for value in possible(missing.key))
            found[named[name]] = f"{missing.key} is {now}; set {missing.advice} as well, or leave {named[name]} out"
    return dict(sorted(found.items()))


def refuse_unread(params: Mapping[str, object], model_class: type, changes: Mapping[str, object], where: str) -> None:
    """A UserError for a change that changes nothing, because nothing reads the setting as the others are.

    Args:
        params: of `load_params`, the changes included.
        model_class: the model's.
        changes: {setting: its new value}.
        where: as the error names the place that they come from.
    """
    for key, why in unread(params, {key: [value] for key, value in changes.items()}, model_class).items():
        raise refusal(where, key, changes[key], why)


def refusal(where: str, key: str, value: object, why: str) -> UserError:
    """The error of a setting that is changed in vain; `why` is of `unread`."""
    return UserError(f"{where}: {key} is {shown(value)}, which nothing reads: {why}")


def _own_name(key: str, names: Mapping[str, str]) -> str:
    """A setting's own name; another name of it is one unless the model has an argument that is called so."""
    return key if key in names else ALIASES.get(key, key)


def _is_ours(model_class: type, name: str) -> bool:
    """Whether an argument is of our models, of FuxiCTR's base class or of the loop, and not of someone else's class."""
    for cls in model_class.__mro__:
        if "__init__" in vars(cls) and name in inspect.signature(vars(cls)["__init__"]).parameters:
            package = cls.__module__.partition(".")[0]
            return package == "fuxictr" or (package == "model_zoo" and is_multimodal(cls))
    return True
