"""Settings that are read only beside another: whoever changes one of these alone changes nothing.

A config may hold them, an experiment that takes over another's settings does; a change that someone asks for, by --set
or in a tuner's space, would come back as a result that looks like one.
"""

from collections.abc import Iterable, Mapping

from mm_fibinet.errors import UserError
from mm_fibinet.settings_schema import ALIASES, schema_of
from mm_fibinet.yaml_reader import shown

ANY = "any"  # all but nothing: not null, 0, False or empty
# {setting: (what it is read beside, with which value or which ones)}
READ_BESIDE: dict[str, tuple[str, object]] = {
    "lr_decay_factor": ("lr_schedule", "plateau"),
    "reduce_lr_on_plateau": ("lr_schedule", "plateau"),
    "interest_dropout": ("cross_attention_layers", ANY),
    "content_search_len": ("content_search", ANY),
    "attention_hidden_units": ("history_pooling", "target_attention"),
    "attention_dropout": ("history_pooling", "target_attention"),
    "low_rank_fusion_dim": ("low_rank_fusion", ANY),
    "low_rank_fusion_ranks": ("low_rank_fusion", ANY),
    "low_rank_fusion_heads": ("low_rank_fusion", ANY),
    "low_rank_fusion_dropout": ("low_rank_fusion", ANY),
    "excitation_activation": ("senet_plus", False),
    "num_groups": ("senet_plus", True),
    "bilinear_output_dim": ("bilinear_plus", True),
    "hidden_activations": ("hidden_units", ANY),
    "dnn_activations": ("dnn_hidden_units", ANY),
    "stacked_dnn_hidden_units": ("model_structure", ("stacked", "stacked_parallel")),
    "parallel_dnn_hidden_units": ("model_structure", ("parallel", "stacked_parallel")),
    "low_rank": ("use_low_rank_mixture", True),
    "num_experts": ("use_low_rank_mixture", True),
    "fs_hidden_units": ("use_fs", True),
    "fs1_context": ("use_fs", True),
    "fs2_context": ("use_fs", True),
}


def unread(params: Mapping[str, object], changed: Iterable[str], model_class: type) -> dict[str, str]:
    """The changed settings that are not read as long as another is what it is: {setting: why}.

    Args:
        params: of `load_params`, the changes included.
        changed: names of settings, all that are changed together: where what a setting is read beside is among them,
            whoever changes it has seen to that.
        model_class: the model's; its `asked_by_default` are settings that it makes for itself.
    """
    values = {**schema_of(model_class).arguments, **params}
    given = {*changed, *getattr(model_class, "asked_by_default", ())}
    found = {}
    for name in (name for name in READ_BESIDE if name in set(changed)):
        key, needed = READ_BESIDE[name]
        if key not in values or key in given:  # a model without the other has this one for something else
            continue
        value, fitting = values[key], needed if isinstance(needed, tuple) else (needed,)
        if needed == ANY and not value:
            found[name] = f"{key} is not set; set it as well, or leave {name} out"
        elif needed != ANY and value not in fitting:
            found[name] = f"{key} is {shown(value)}; set {key}={fitting[0]} as well, or leave {name} out"
    return found


def refuse_unread(params: Mapping[str, object], model_class: type, *changes: tuple[str, Mapping[str, object]]) -> None:
    """A UserError for a change that changes nothing, because nothing reads the setting as the others are.

    Args:
        params: of `load_params`, the changes included.
        model_class: the model's.
        changes: (where they come from, settings) each, as for `settings.resolve`; a setting that is set to its default
            may be unread.
    """
    defaults = schema_of(model_class).arguments
    given = {ALIASES.get(key, key): (where, key, value) for where, asked in changes for key, value in asked.items()}
    for name, why in unread(params, given, model_class).items():
        where, key, value = given[name]
        if not _same(value, defaults.get(name)):
            raise UserError(f"{where}: {key} is {shown(value)}, which nothing reads: {why}")


def _same(value: object, default: object) -> bool:
    both = [list(given) if isinstance(given, tuple) else given for given in (value, default)]
    return both[0] == both[1]
