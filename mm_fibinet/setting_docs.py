"""What each setting does, by name, default and range: read from the schema and from docstrings, and nowhere else.

A setting is a field of a class of `settings_fields`, or an argument of a constructor: the trainer's, the loader's, a
model's. Its range is what the schema expects, its default the code's, and what it does stands in the class's docstring,
under `Attributes` or `Args`. The site's page of settings and `mm-fibinet list --settings` show the same.
"""

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mm_fibinet import settings_fields as fields
from mm_fibinet.model_source import is_multimodal
from mm_fibinet.settings_schema import constructor_arguments, field_names, schema_of

ENTRY = re.compile(r"(\w+(?:, \w+)*)(?: \([^)]*\))?: (.+)")  # FuxiCTR puts a type in brackets
REQUIRED = "required"
LEFT_OUT = ""  # the default of what is not there unless it is set


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: in a config, and of --set.
        default: as YAML writes it; REQUIRED, or LEFT_OUT.
        expected: what the schema expects of a value.
        does: what it does.
    """

    name: str
    default: str
    expected: str
    does: str


@dataclass(frozen=True)
class Group:
    """Settings that stand together.

    Attributes:
        title: what they are of.
        cls: the class that has them.
        settings: in the class's order.
    """

    title: str
    cls: type
    settings: tuple[Setting, ...]

    @property
    def summary(self) -> str:
        """The first sentences of the class's docstring."""
        return " ".join(inspect.cleandoc(self.cls.__doc__ or "").split("\n\n")[0].split())


def of_runs() -> list[Group]:
    """The settings of every run: the run's own, the loop's and the loader's."""
    from mm_fibinet import dataloader, training  # they bring torch

    known = set(fields.Experiment.model_fields)
    loop, loader = training.Trainer, dataloader.MMCTRDataLoader
    return [
        Group("The run", fields.RunSettings, tuple(_of_fields(fields.RunSettings))),
        Group("The training loop", loop, tuple(_of_constructor(loop, schema_of(loop), known))),
        Group("The loader", loader, tuple(_of_constructor(loader, schema_of(loader), known))),
    ]


def of_data() -> list[Group]:
    """The settings of a data set's entry, of its features by type, and of what an experiment changes in them."""
    entries: dict[str, type[fields.Strict]] = {
        "The data set's entry": fields.DatasetEntry,
        **{f"A feature of type {kind}": cls for kind, cls in fields.FEATURES.items()},
        "label_col": fields.Label,
        "feature_specs": fields.FeatureSpec,
    }
    return [Group(title, cls, tuple(_of_fields(cls))) for title, cls in entries.items()]


def of_models(models: Iterable[type]) -> list[Group]:
    """The settings of models: those that several share, by the class that has them, then each model's own.

    Args:
        models: classes of MultimodalModel; of another, a user's or FuxiCTR's, all settings are its own.
    """
    shared: dict[type, Group] = {}
    own = []
    for model in models:
        known = set(fields.Experiment.model_fields)
        parents = [cls for cls in reversed(model.__mro__[1:]) if _has_settings(cls)] if is_multimodal(model) else []
        for cls in parents:
            shared.setdefault(cls, Group(cls.__name__, cls, tuple(_of_constructor(cls, schema_of(model), known))))
            known |= {setting.name for setting in shared[cls].settings}
        own.append(Group(model.__name__, model, tuple(_of_constructor(model, schema_of(model), set(), not parents))))
    return [*shared.values(), *own]


def _has_settings(cls: type) -> bool:
    """Whether a class has a constructor and describes what it takes; FuxiCTR's own are described by MultimodalModel."""
    return "__init__" in vars(cls) and bool(described(cls)) and not cls.__module__.startswith(("fuxictr", "torch"))


def described(cls: type) -> dict[str, str]:
    """{name: what it does} of a class's own docstring: the sections Args and Attributes, lists of names taken apart."""
    found = {}
    for section in re.findall(r"^(?:Args|Attributes):\n((?:[ ].*\n?|\n)*)", inspect.cleandoc(cls.__doc__ or ""), re.M):
        for entry in re.split(r"\n(?=    \S)", f"\n{section.rstrip()}"):
            match = ENTRY.fullmatch(" ".join(entry.split()))
            if match:
                found.update(dict.fromkeys(match[1].split(", "), match[2]))
    return found


def _of_fields(schema: type[fields.Strict]) -> Iterator[Setting]:
    """The fields of a class and its parents, the parents' first."""
    does = {name: text for cls in reversed(schema.__mro__) for name, text in described(cls).items()}
    expected = field_names(schema)
    for name, field in schema.model_fields.items():
        default = REQUIRED if field.is_required() else _written(field.get_default(call_default_factory=True))
        if default == "null" and not expected[name].endswith("or null"):
            default = LEFT_OUT
        yield Setting(name, default, expected[name], does.get(name, ""))


def _of_constructor(
    cls: type, schema: type[fields.Strict], known: set[str], inherited: bool = False
) -> Iterator[Setting]:
    """The arguments of a class's constructor, and those of its **kwargs that its docstring describes.

    Args:
        cls: the class.
        schema: of a model of this class.
        known: names that are left out.
        inherited: whether all arguments of its parents count as its own.
    """
    said, expected = described(cls), field_names(schema)
    does = {name: text for parent in reversed(cls.__mro__) for name, text in described(parent).items()}
    explicit = constructor_arguments(cls) if inherited else inspect.signature(vars(cls)["__init__"]).parameters
    for name, parameter in constructor_arguments(cls).items():
        if name in known or name not in expected or not (name in explicit or name in said):
            continue
        required = parameter.default is inspect.Parameter.empty
        yield Setting(name, REQUIRED if required else _written(parameter.default), expected[name], does.get(name, ""))


def _written(value: Any) -> str:
    """A default as YAML has it."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, fields.Strict):
        return _written(value.model_dump())
    return '""' if value == "" else "null" if value is None else str(value)
