"""Names that no feature can have: FuxiCTR keeps tables in torch's ModuleDict, by the features' names."""

from mm_fibinet.errors import UserError

# What a ModuleDict has itself, for those who have not loaded torch, which takes seconds.
TAKEN = frozenset((
    "T_destination", "add_module", "apply", "bfloat16", "buffers", "call_super_init", "children", "clear", "compile",
    "cpu", "cuda", "double", "dump_patches", "eval", "extra_repr", "float", "forward", "get_buffer", "get_extra_state",
    "get_parameter", "get_submodule", "half", "ipu", "items", "keys", "load_state_dict", "modules", "mtia",
    "named_buffers", "named_children", "named_modules", "named_parameters", "parameters", "pop",
    "register_backward_hook", "register_buffer", "register_forward_hook", "register_forward_pre_hook",
    "register_full_backward_hook", "register_full_backward_pre_hook", "register_load_state_dict_post_hook",
    "register_load_state_dict_pre_hook", "register_module", "register_parameter", "register_state_dict_post_hook",
    "register_state_dict_pre_hook", "requires_grad_", "set_extra_state", "set_submodule", "share_memory", "state_dict",
    "to", "to_empty", "train", "training", "type", "update", "values", "xpu", "zero_grad",
))  # fmt: skip


def refuse_module_name(name: str, where: str, taken: bool) -> None:
    """Refuse a feature's name that torch has for something else, or would cut.

    Args:
        name: of the feature.
        where: for the message.
        taken: whether torch has it.
    """
    if taken or "." in name:
        why = "for torch has something of that name" if taken else "for torch's names have no dot"
        raise UserError(f"{where}: a feature cannot be called {name!r}, {why}; rename the column")
