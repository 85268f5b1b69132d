"""The page of settings: written from the schema and the docstrings when the site is built, so that it is never old."""

import re

import model_zoo
from mm_fibinet import setting_docs, setting_types
from mm_fibinet.settings_schema import ACCEPTED, ALIASES, INSTEAD

MARKER = "<!-- settings -->"
# What so many settings expect that it stands on the page once, by a name: {name: what is expected}.
KINDS = {
    "an activation": setting_types.expected(setting_types.Activations),
    "an output activation": setting_types.expected(setting_types.OutputActivation),
    "a size": setting_types.expected(setting_types.Size),
    "a width": setting_types.expected(setting_types.Width),
    "widths": setting_types.expected(setting_types.HiddenUnits),
    "a dropout": setting_types.expected(setting_types.Share),
    "a regularizer": setting_types.expected(setting_types.Regularizer),
}
NULL = ", or null"


def on_page_markdown(markdown: str, *, page, **_) -> str:
    """Put the tables where the page has its marker."""
    return markdown.replace(MARKER, settings_markdown()) if page.file.src_uri == "settings.md" else markdown


def settings_markdown() -> str:
    """All settings as markdown."""
    models = list(dict.fromkeys(getattr(model_zoo, name) for name in model_zoo.__all__))
    models.sort(key=lambda model: model.__name__.lower())
    of_models = setting_docs.of_models(models)
    shared = [group for group in of_models if group.cls not in models]
    own = [group for group in of_models if group.cls in models]
    parts = ["## Kinds of values", "", "| kind | is |", "|---|---|"]
    parts += [f"| {kind} | {_cell(expected.removesuffix(NULL))} |" for kind, expected in KINDS.items()]
    parts += ["", "*or null* behind a kind says that `null` will do, too."]
    for group in [*setting_docs.of_runs(), *setting_docs.of_data()]:
        parts += ["", f"## {group.title}", "", *_table(group)]
    parts += [
        "",
        "## Models",
        "",
        "What several models take stands first, by the class that has it; then each model's own.",
    ]
    for group in shared:
        inherit = ", ".join(model.__name__ for model in models if issubclass(model, group.cls))
        title = "every model" if all(issubclass(model, group.cls) for model in models) else inherit
        parts += ["", f"### {group.title}", "", f"Of {title}. {_cell(group.summary)}", "", *_table(group)]
    for group in own:
        bases = " and ".join(base.title for base in reversed(shared) if base.cls in group.cls.__mro__)
        parts += [
            "",
            f"### {group.title}",
            "",
            f"{_cell(group.summary)} Takes what {bases} take, too.",
            "",
            *_table(group),
        ]
    return "\n".join([*parts, *_names_of_fuxictr(), ""])


def _names_of_fuxictr() -> list[str]:
    """FuxiCTR's names that are accepted, called otherwise or refused here."""
    parts = [
        "",
        "## Names of FuxiCTR",
        "",
        "Accepted, since they change nothing here:",
        "",
        "| name | with | because |",
    ]
    parts.append("|---|---|---|")
    for name, accepted in ACCEPTED.items():
        values = " or ".join(f"`{value}`" for value in accepted.values) or "any plain value"
        parts.append(f"| `{name}` | {values} | {_cell(accepted.reason)} |")
    parts += ["", "Other names of a setting:", "", "| name | is |", "|---|---|"]
    parts += [f"| `{other}` | `{name}` |" for other, name in ALIASES.items()]
    parts += ["", "Refused, and what to do instead:", "", "| name | instead |", "|---|---|"]
    return [*parts, *(f"| `{name}` | {_cell(text)} |" for name, text in INSTEAD.items())]


def _table(group: setting_docs.Group) -> list[str]:
    if not group.settings:
        return ["No settings of its own."]
    lines = ["| setting | default | expected | what it does |", "|---|---|---|---|"]
    for setting in group.settings:
        default = setting.default if setting.default in (setting_docs.REQUIRED, "") else f"`{setting.default}`"
        default = f"*{default}*" if default == setting_docs.REQUIRED else default
        lines.append(f"| `{setting.name}` | {default} | {_kind(setting.expected)} | {_cell(setting.does)} |")
    return lines


def _kind(expected: str) -> str:
    for kind, text in KINDS.items():
        for null in ("", NULL):
            if expected == text.removesuffix(NULL) + null:
                return f"[{kind}](#kinds-of-values){null.removeprefix(',')}"
    return _cell(expected)


def _cell(text: str) -> str:
    """Text for a cell: what would be markup, but for code, as itself."""
    parts = re.split(r"(`[^`]*`)", text)
    plain = [part if part.startswith("`") else re.sub(r"([*_<>\[\]{}])", r"\\\1", part) for part in parts]
    return "".join(plain).replace("|", "\\|")
