"""The types of settings: what a value may be, and how an error says so.

A setting of a model, the loader or the trainer is an argument of its constructor, and its type follows from the
default there. Where the default says too little, the name says more: `RULES` knows dropouts, regularizers, sizes and
activations, so that a model that keeps to the field's names has its settings checked without a list of its own. A
constructor may also name its choices with a `Literal` annotation.

Whatever FuxiCTR would look up or evaluate by a text (an activation, an initializer, a loss, an optimizer, a metric, a
feature encoder) is one of a list here.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field
from pydantic_core import core_schema

MAX_SIZE = 2**31 - 1  # of what is counted: rows, steps, ids
MAX_WIDTH = 2**16  # of what makes a matrix: units, dimensions, heads, layers
MAX_PATH = 4000
MAX_NAME = 200  # bytes of a name that files are named for

LOSSES = ("binary_crossentropy", "binary_cross_entropy", "bce")  # FuxiCTR's names of one
LOSS_TERMS = ("bce", "focal", "pairwise")  # of mm_fibinet.losses
SEQUENCE_ENCODERS = ("layers.MaskedAveragePooling()", "layers.MaskedSumPooling()")
NUMBER = r"\d*\.?\d+(?:[eE][-+]?\d+)?|\d+\."
REGULARIZER = re.compile(rf"l[12]\((?:{NUMBER})\)|l1_l2\((?:{NUMBER}), ?(?:{NUMBER})\)")
INITIALIZER = re.compile(
    r"(torch\.)?nn\.init\.(xavier|kaiming)_(normal|uniform)_"
    rf"|partial\(nn\.init\.normal_, (mean=-?(?:{NUMBER}), )?std=(?:{NUMBER})\)"
)
PLAIN_TEXT = re.compile(r"[\w .,:/+-]*")  # nothing that could be a call
WITH_UNITS = ("PReLU", "Dice")  # need to know how many inputs they have
ACTIVATIONS = (
    *("ReLU", "Sigmoid", "Tanh", "Softmax", *WITH_UNITS, "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid"),
    *("Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid", "Mish", "ReLU6", "RReLU", "SELU", "SiLU"),
    *("Softplus", "Softshrink", "Softsign", "Tanhshrink"),
)
ANY_CASE = ("ReLU", "Sigmoid", "Tanh", "Softmax", *WITH_UNITS)  # FuxiCTR reads these in any case


@dataclass(frozen=True)
class Check:
    """What a value must pass beside its type, and how an error says so; whole numbers then count as real ones.

    Attributes:
        passes: a function of the value.
        description: what was expected.
    """

    passes: Callable[[Any], bool]
    description: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Pydantic's hook for what stands in `Annotated`."""
        return core_schema.no_info_after_validator_function(self._validate, handler(source))

    def _validate(self, value: Any) -> Any:
        if not self.passes(value):
            raise ValueError(self.description)
        return float(value) if type(value) is int else value


def one_of(names: Iterable[str], none: str = "") -> Check:
    """One of these texts; `none` is how an error writes the empty one."""
    names = tuple(names)
    return Check(lambda value: value in names, one_of_text(name or none for name in names))


def one_of_text(names: Iterable[object]) -> str:
    """How an error names a choice."""
    return f"one of {', '.join(map(str, names))}"


def expected(kind: Any) -> str:
    """What an error says of a type that was expected."""
    return expected_of(kind.__metadata__)


def expected_of(metadata: Iterable[Any]) -> str:
    """The same of what stands in `Annotated` behind the type."""
    return next((part.description for part in metadata if getattr(part, "description", None)), "another value")


def optional(kind: Any) -> Any:
    """The type, or null."""
    if expected(kind).endswith("or null"):
        return kind
    return Annotated[kind | None, Field(description=f"{expected(kind)}, or null")]


def _is_activation(value: Any, names: tuple[str, ...] = ACTIVATIONS) -> bool:
    return isinstance(value, str) and (
        value in names or value.lower() in [name.lower() for name in names if name in ANY_CASE]
    )


def _is_hidden_activation(value: Any) -> bool:
    if isinstance(value, list):
        return all(item is None or _is_activation(item) for item in value)
    return value is None or _is_activation(value)


def _is_regularizer(value: Any) -> bool:
    if isinstance(value, str):
        return bool(REGULARIZER.fullmatch(value))
    return value is None or (type(value) in (int, float) and value >= 0)


class KeepingCheck(Check):
    """A Check that leaves whole numbers whole."""

    def _validate(self, value: Any) -> Any:
        super()._validate(value)
        return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, (*value.keys(), *value.values())))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return not isinstance(value, str) or bool(PLAIN_TEXT.fullmatch(value))


def _is_path(value: Any) -> bool:
    """Whether it may name a file; one whose name is no UTF-8 has halves of characters, which pydantic's str refuses."""
    return isinstance(value, str) and 0 < len(value) <= MAX_PATH and "\0" not in value


Flag = Annotated[bool, Field(description="True or False")]
Text = Annotated[str, Field(max_length=1000, description="a text")]
Path = Annotated[Any, KeepingCheck(_is_path, "a path")]
Number = Annotated[float, Field(description="a number")]
Positive = Annotated[float, Field(gt=0, description="a number above 0")]
FromZero = Annotated[float, Field(ge=0, description="a number from 0")]
Share = Annotated[float, Field(ge=0, lt=1, description="a number from 0 to below 1")]
Size = Annotated[int, Field(ge=1, le=MAX_SIZE, description=f"a whole number from 1 to {MAX_SIZE}")]
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH, description=f"a whole number from 1 to {MAX_WIDTH}")]
SomeLayers = Annotated[int, Field(ge=0, le=MAX_WIDTH, description=f"a whole number from 0 to {MAX_WIDTH}")]
Seed = Annotated[int, Field(ge=0, lt=2**32, description=f"a whole number from 0 to {2**32 - 1}")]
Column = Annotated[
    str,
    Field(min_length=1, max_length=MAX_NAME, pattern=r"^[^\x00-\x1f\x7f]+$", description="the name of a column"),
]
Columns = Annotated[list[Column], Field(max_length=10_000, description="a list of names of features")]
Regularizer = Annotated[Any, Check(_is_regularizer, 'a number from 0, "l1(x)", "l2(x)", "l1_l2(x,y)", or null')]
UNITS = f"whole numbers from 1 to {MAX_WIDTH}"
HiddenUnits = Annotated[list[Width], Field(max_length=100, description=f"a list of {UNITS}")]
SomeUnits = Annotated[list[Width], Field(min_length=1, max_length=100, description=f"a list of {UNITS}, at least one")]
Activations = Annotated[
    Any, Check(_is_hidden_activation, f"{one_of_text(ACTIVATIONS)}, a list of them (one a layer), or null")
]
WITHOUT_UNITS = tuple(name for name in ACTIVATIONS if name not in WITH_UNITS)
OutputActivation = Annotated[
    Any,
    Check(
        lambda value: value is None or _is_activation(value, WITHOUT_UNITS), f"{one_of_text(WITHOUT_UNITS)}, or null"
    ),
]
Excitation = Annotated[
    Any, Check(lambda value: _is_activation(value, ("ReLU", "Sigmoid")), one_of_text(("ReLU", "Sigmoid")))
]
Initializer = Annotated[
    Any,
    Check(
        lambda value: value is None or (isinstance(value, str) and bool(INITIALIZER.fullmatch(value))),
        'a name like "nn.init.xavier_normal_", or "partial(nn.init.normal_, std=1e-4)"',
    ),
]

AnyNumber = Annotated[int | float, Field(description="a number")]
AnyPlain = Annotated[Any, KeepingCheck(_is_plain, "numbers or plain texts (no brackets or quotes), or lists of them")]

# (pattern of the name, types of the default it holds for, type of the setting); the first that fits.
RULES: tuple[tuple[str, tuple[type, ...], Any], ...] = (
    (r".*dropout|.*dropout_rates?", (float, int), Share),
    (r"ema_decay", (float, int), Share),
    (r"(adversarial|extractor)_weight", (float, int), FromZero),  # of a loss, which would become as large as can be
    (r"learning_rate|max_gradient_norm", (float, int), Positive),
    (r"table_learning_rate", (type(None),), Positive),
    (r"lr_decay_factor", (float, int), Annotated[float, Field(gt=0, le=1, description="a number above 0, at most 1")]),
    (r".*regularizer", (float, int, str, type(None)), Regularizer),
    (r"(dcn|mlp1|mlp2|cin)_hidden_units", (tuple, list), SomeUnits),
    (r".*hidden_units", (tuple, list, type(None)), HiddenUnits),
    (r"excitation_activation", (str,), Excitation),
    (r".*output_activation", (str, type(None)), OutputActivation),
    (r".*activations?", (str, list, tuple, type(None)), Activations),
    (r".*initializer", (str, type(None)), Initializer),
    (r"(.*_)?(dim|width)|dim_.*", (int,), Width),
    (r"cross_attention_layers", (int,), SomeLayers),
    (r"num_.*|.*_layers|first_k_cols|.*_ranks|.*_heads|.*_ratio|max_distance|low_rank", (int,), Width),
    (r"checkpoint_every|eval_steps", (int, type(None)), Size),
    (r".*_steps|.*_patience|.*_len|.*_size", (int,), Size),
    (
        r"similarity_only|simtier|sa_ta|bucket_attention|low_rank_fusion|.*_context|.*_features|.*_fields",
        (tuple, list, type(None)),
        Columns,
    ),
    (r"content_search", (type(None),), Column),
    (r"code_feature", (str,), Column),
)


def setting_type(
    name: str, parameter: inspect.Parameter, choices: dict[str, tuple[str, ...]], stranger: bool = False
) -> Any:
    """The type of a constructor's argument.

    Args:
        name: its name.
        parameter: its default and annotation.
        choices: {name: texts}, of settings that take one of a list.
        stranger: whether the class is no MultimodalModel: what its settings mean is not known, and text that FuxiCTR
            might run as code is refused.
    """
    default = None if parameter.default is inspect.Parameter.empty else parameter.default
    kind: Any
    if name in choices:
        kind = Annotated[str, one_of(choices[name])]
    elif named := _literals(parameter.annotation):
        kind = Annotated[Literal[named], Field(description=one_of_text(named))]
    else:
        rules = (kind for pattern, types, kind in RULES if type(default) in types and re.fullmatch(pattern, name))
        kind = next(rules, None) or (_loose_type_of(default) if stranger else _type_of(default))
    return optional(kind) if default is None and get_origin(kind) is Annotated else kind


def _literals(annotation: Any) -> tuple[str, ...]:
    """The choices of `Literal[...]` or `Literal[...] | None`; empty for another annotation."""
    kinds = [annotation, *get_args(annotation)] if annotation is not inspect.Parameter.empty else []
    return next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())


def _type_of(default: Any) -> Any:
    """The type that a default is of."""
    if isinstance(default, bool):
        return Flag
    if isinstance(default, int):
        return Annotated[int, Field(ge=-MAX_SIZE, le=MAX_SIZE, description="a whole number")]
    if isinstance(default, float):
        return Number
    if isinstance(default, str):
        return Text
    if isinstance(default, tuple | list):
        inner: Any = _type_of(default[0]) if default else Any
        description = f"a list like {list(default)}" if default else "a list"
        return Annotated[list[inner], Field(description=description)]
    return Any


def _loose_type_of(default: Any) -> Any:
    """The type of a stranger's argument: `alpha=1` may be 0.5, and a list of fields one field."""
    if isinstance(default, bool):
        return Flag
    return AnyNumber if isinstance(default, int | float) else AnyPlain
