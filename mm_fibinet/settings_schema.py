"""The schema of all settings: of a run, of a data set's entry, of its features, and of what constructors take.

An experiment is one mapping by the time it is checked here: FuxiCTR merges `Base`, the experiment and its data set's
entry. `validate` holds it to a pydantic model that is built for the experiment's model class: the fields of
`settings_fields`, and an argument's field for each constructor of the model, the loader and the trainer. A name that is
none of these is refused, with those like it. FuxiCTR's names that change nothing here are one list, `ACCEPTED`, which
says why.
"""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError, create_model

from mm_fibinet import setting_types as types
from mm_fibinet.errors import UserError
from mm_fibinet.model_source import is_multimodal
from mm_fibinet.names import did_you_mean, expected_one_of
from mm_fibinet.settings_fields import ENTRIES, FEATURES, Experiment, Strict
from mm_fibinet.yaml_reader import shown

OF_FLAT = ("similarity_fields", "similarity_only")  # the loader reads them for batch_format: flat alone
# Arguments of constructors that a script gives, not a config.
NOT_SETTINGS = {
    *("feature_map", "data_path", "split", "rank", "world_size", "model", "model_id", "gpu"),
    *("checkpoint", "checkpoints", "on_evaluation"),
}


@dataclass(frozen=True)
class Accepted:
    """A name of FuxiCTR that changes nothing here.

    Attributes:
        reason: why it changes nothing.
        values: with which values that is so; empty for all plain ones.
    """

    reason: str
    values: tuple = ()


# In experiments, data sets' entries and features alike.
ACCEPTED = {
    "data_format": Accepted("what the files are is told by their names", ("parquet", "npz")),
    "rebuild_dataset": Accepted("ids are contiguous: there is no vocabulary to build", (False, True)),
    "min_categr_count": Accepted("no id is rare enough to be dropped", (1,)),
    "dtype": Accepted("columns have the types of their files", ("int", "float", "str", "list", "bool")),
    "remap": Accepted("ids are never mapped to others", (False, True)),
    "feature_config": Accepted("FuxiCTR 2 does not read it either", (None,)),
    "pickle_feature_encoder": Accepted("there is no encoder to pickle", (False, True)),
    "debug_mode": Accepted("it makes FuxiCTR's tuner add random numbers to experiment IDs", (False, True)),
    "num_workers": Accepted("batches need no worker processes"),
    "streaming": Accepted("a split is read once, whatever its size", (False, True)),
    "data_block_size": Accepted("a split is read once, whatever its size"),
    "version": Accepted("the framework of FuxiCTR's model; here it is PyTorch", ("pytorch", "torch")),
}
# Other names of a setting: of QIN's and MMCTRers' authors.
ALIASES = {"factor": "lr_decay_factor", "model_change": "model"}
# FuxiCTR's names that are refused, and what to do instead.
INSTEAD = {
    "pretrained_emb": "make the vectors a column of item_info, of type embedding",
    "freeze_emb": "make the vectors a column of item_info, of type embedding (they stay as they are)",
    "pretrain_usage": "make the vectors a column of item_info, of type embedding",
    "preprocess": "prepare the column when you write the parquet files",
    "splitter": "store lists in the parquet files",
    "category_processor": "make ids of the column when you write the parquet files",
    "num_buckets": "make ids of the column when you write the parquet files",
    "valid_size": "write valid.parquet and name it as valid_data",
    "test_size": "write test.parquet and name it as test_data",
    "regularizer": "set embedding_regularizer and net_regularizer",
    "gpu": "choose the device with --gpu",
    "model_id": "it is the experiment's ID",
    "din_target_field": "the target is item_id; leave this out",
    "din_sequence_field": "the history is item_seq; leave this out",
}


def constructor_arguments(*classes: type) -> dict[str, inspect.Parameter]:
    """The settings that the constructors of these classes and their parents take; the last one's default counts."""
    found: dict[str, inspect.Parameter] = {}
    for cls in classes:
        for parent in reversed(cls.__mro__):
            if "__init__" in vars(parent) and parent is not object:
                found.update(list(inspect.signature(vars(parent)["__init__"]).parameters.items())[1:])
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: found[name] for name in found if name not in NOT_SETTINGS and found[name].kind in named}


@functools.cache
def schema_of(model_class: type) -> type[Experiment]:
    """The experiment's schema with the arguments of this model, of the loader and of the trainer.

    Returns:
        a subclass of Experiment; `arguments` are the constructors' defaults by name.
    """
    # they bring torch, which a script's --help does not need
    from mm_fibinet import any_model, dataloader, precision, training

    own = constructor_arguments(model_class)
    arguments = constructor_arguments(training.Trainer, dataloader.MMCTRDataLoader, model_class)
    if "flat" not in any_model.batch_formats(model_class):
        arguments = {name: arguments[name] for name in arguments if name in own or name not in OF_FLAT}
    stranger = {} if is_multimodal(model_class) else own
    choices = {
        "precision": precision.PRECISIONS,
        "lr_schedule": training.LR_SCHEDULES,
        "table_optimizer": training.TABLE_OPTIMIZERS,
        "batch_format": dataloader.BATCH_FORMATS,
        "storage": dataloader.STORAGES,
    }
    fields: dict[str, Any] = {
        f"setting_{name}": (
            types.setting_type(name, parameter, choices, name in stranger),
            Field(default=None, alias=name),
        )
        for name, parameter in arguments.items()
        if name not in Experiment.model_fields
    }
    schema = create_model(f"{model_class.__name__}Experiment", __base__=Experiment, **fields)
    schema.arguments = {
        name: parameter.default
        for name, parameter in arguments.items()
        if parameter.default is not inspect.Parameter.empty
    }
    return schema


def field_names(schema: type[Strict]) -> dict[str, str]:
    """{name in a config: what the schema expects of it}."""
    return {
        field.alias or name: field.description or types.expected_of(field.metadata)
        for name, field in schema.model_fields.items()
    }


def validate(params: dict, schema: type[Strict], origin) -> dict:
    """Hold an experiment, or a data set's entry alone, to its schema.

    Args:
        params: the merged settings.
        schema: of `schema_of`, or DatasetEntry.
        origin: a function from a setting's name to where it was set, for the error.

    Returns:
        the settings, other names of a setting resolved, numbers that count as real ones as floats.

    Raises:
        UserError: a name that nobody reads, or a value that does not fit.
    """
    names = field_names(schema)
    params = _without_aliases(params, names, origin)
    read = {}
    for name, value in params.items():
        if name in names:
            read[name] = _without_accepted(name, value, origin)
        elif name in ACCEPTED:
            require_accepted(name, value, origin(name))
        else:
            raise UserError(f"{origin(name)}: {name[:80]}: {unknown(name, names, params.get('model'))}")
    try:
        checked = schema.model_validate(read)
    except ValidationError as error:
        raise UserError(_explain(error, params, names, origin)) from error
    floats = {name: value for name, value in checked.model_dump(by_alias=True).items() if type(value) is float}
    return {name: floats.get(name, value) for name, value in params.items()}


def unknown(name: str, names, model: str | None = None) -> str:
    """What is wrong with a name that nobody reads, or not with this model."""
    if name in INSTEAD:
        return f"FuxiCTR reads this, here nothing does; {INSTEAD[name]}"
    if meant := did_you_mean(name, names):
        return f"unknown key, {meant}"
    listed_by = f"mm-fibinet list --settings {model}" if model else ""
    return f"unknown key{f' with model {model}' if model else ''}, {expected_one_of('', names, listed_by)}"


def _without_aliases(params: dict, names: dict[str, str], origin) -> dict:
    """Other names of settings become the settings' own; null is as good as absent."""
    params = dict(params)
    for other, name in ALIASES.items():
        if other in names or other not in params:
            continue
        value = params.pop(other)
        if value is None or name == "model":
            continue  # `load_params` has looked the model up already
        if params.get(name, value) != value:
            raise UserError(
                f"{origin(other)}: {other} is {shown(value)} and {name}, its other name, is {shown(params[name])}; "
                "expected one of them"
            )
        params[name] = value
    return params


def _without_accepted(name: str, value: object, origin) -> object:
    """The entries of a list of features without what changes nothing."""
    if name not in ("feature_cols", "label_col") or not isinstance(value, list | dict):
        return value
    if isinstance(value, dict):
        return _without_accepted(name, [value], origin)
    entries, what = [], "label" if name == "label_col" else "feature"
    for entry in value:
        if isinstance(entry, dict):
            for key in set(entry) & set(ACCEPTED):
                require_accepted(key, entry[key], f"{origin(name)}: {_entry_name(entry, what)}")
            entry = {key: inner for key, inner in entry.items() if key not in ACCEPTED}
        entries.append(entry)
    return entries


def require_accepted(name: str, value: object, where: str) -> None:
    """A UserError when one of ACCEPTED has a value with which it would change something."""
    accepted = ACCEPTED[name]
    fits = not isinstance(value, dict | list) if not accepted.values else value in accepted.values
    if not fits:
        expected = " or ".join(map(str, accepted.values)) or "a plain value"
        raise UserError(f"{where}: {name} is {shown(value)}, expected {expected} ({accepted.reason})")


def _entry_name(entry: dict, what: str = "feature") -> str:
    return f"{what} {entry['name']}" if isinstance(entry.get("name"), str) else f"the {what} {shown(entry, 80)}"


def _explain(error: ValidationError, params: dict, names: dict[str, str], origin) -> str:
    """The first of pydantic's errors as one sentence."""
    problem: Any = error.errors(include_url=False)[0]
    key, *inside = problem["loc"]
    where = origin(key)
    if problem["type"] == "missing" and not inside:
        return f"{where}: {key} is not set, expected {names[key]}"
    value = params[key]
    entries = [value] if isinstance(value, dict) else value
    if key in ("feature_cols", *ENTRIES) and inside and isinstance(inside[0], int) and isinstance(entries, list):
        return f"{where}: {_explain_entry(key, entries[inside[0]], inside[1:], problem)}"
    if inside and isinstance(inside[0], int) and isinstance(value, list):  # else it names one of several types
        return f"{where}: {key} has {shown(value[inside[0]])}, expected {names[key]}"
    return f"{where}: {key} is {shown(value)}, expected {names[key]}"


def _explain_entry(key: str, entry: object, inside: list, problem: Any) -> str:
    """What is wrong within feature_cols, feature_specs or label_col."""
    kind = entry.get("type") if isinstance(entry, dict) else None
    schema = ENTRIES.get(key) or FEATURES.get(str(kind))
    if schema is None or not isinstance(entry, dict):
        expected = f"a name and a type out of {', '.join(FEATURES)}" if key == "feature_cols" else "a mapping"
        return f"{key} has {shown(entry)}, expected {expected}"
    names, what = field_names(schema), "label" if key == "label_col" else "feature"
    if problem["type"] == "extra_forbidden":
        return f"{_entry_name(entry, what)}: {inside[-1]}: {unknown(inside[-1], names)}"
    if problem["type"] == "missing":
        return f"{key} has {shown(entry)}, expected {inside[-1]}, {names[inside[-1]]}"
    field = next(part for part in inside if part in names)
    return f"{_entry_name(entry, what)}: {field} is {shown(entry[field])}, expected {names[field]}"
