"""The page of settings: all that the schema takes is on it, with its default and a sentence on what it does."""

import importlib.util
import re

import pytest
import yaml
from conftest import ROOT

import model_zoo
from mm_fibinet import setting_docs
from mm_fibinet.__main__ import main
from mm_fibinet.errors import UserError
from mm_fibinet.settings_fields import FEATURES, DatasetEntry, RunSettings
from mm_fibinet.settings_schema import ACCEPTED, ALIASES, INSTEAD, constructor_arguments, field_names, schema_of

MODELS = {name: getattr(model_zoo, name) for name in model_zoo.__all__ if name != "QIN_variety_v9"}


@pytest.fixture(scope="module")
def page():
    """{heading: {setting: cells of its row}} of the page's tables."""
    found = importlib.util.spec_from_file_location("settings_page", ROOT / "docs" / "hooks" / "settings_page.py")
    hook = importlib.util.module_from_spec(found)
    found.loader.exec_module(hook)
    sections = re.split(r"^##+ (.+)\n", hook.settings_markdown(), flags=re.MULTILINE)
    return {
        heading: {cells[0].strip("`"): cells for cells in rows_of(text)}
        for heading, text in zip(sections[1::2], sections[2::2], strict=True)
    }


def rows_of(text):
    for line in re.findall(r"^\| (`.*) \|$", text, re.MULTILINE):
        yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]


def default_of(cells):
    """A row's default, read as YAML; the word for what must be set, None for what need not be there."""
    if not cells[1].startswith("`"):
        return cells[1].strip("*") or None
    return yaml.safe_load(cells[1].strip("`"))


def same(shown, default):
    """Whether a default that was read as YAML is that of the code; YAML reads 1e-05 as a text."""
    if isinstance(default, float) and isinstance(shown, str):
        shown = float(shown)
    return shown == (list(default) if isinstance(default, tuple) else default)


@pytest.mark.parametrize("name", MODELS)
def test_every_setting_of_a_model_is_on_the_page_with_its_default(name, page):
    model = MODELS[name]
    own = [cls.__name__ for cls in model.__mro__ if cls.__name__ in page]
    of_model, of_schema = constructor_arguments(model), schema_of(model)
    for setting in field_names(of_schema):
        sections = [*own, "The run", "The training loop", "The loader", "The data set's entry"]
        section = next((section for section in sections if setting in page[section]), None)
        assert section, f"{setting} is in none of {', '.join(sections)}"
        field = of_schema.model_fields.get(setting)
        if setting in of_model and (section in own or field is None):
            default = of_model[setting].default
        elif field is not None:
            default = "required" if field.is_required() else field.default
        else:
            default = of_schema.arguments[setting]
        if setting == "label_col":
            default = [{"name": default[0].name}]
        cells = page[section][setting]
        assert same(default_of(cells), default), f"{section}: {setting}: {cells[1]}"
        assert cells[2] and cells[3], f"{section}: {setting} does not say what it does"


def test_data_and_fuxictrs_names_are_on_the_page(page):
    assert page["The run"].keys() == RunSettings.model_fields.keys()
    assert page["The data set's entry"].keys() == DatasetEntry.model_fields.keys()
    for kind, cls in FEATURES.items():
        assert page[f"A feature of type {kind}"].keys() == cls.model_fields.keys()
    assert page["Names of FuxiCTR"].keys() == {*ACCEPTED, *ALIASES, *INSTEAD}


def test_a_docstring_is_taken_apart():
    class Said:
        """Something.

        Args:
            one, two: of both; a colon: stays,
                and so does a second line.
            three (int): in brackets.

        Attributes:
            four: is kept.

        Raises:
            UserError: never.
        """

    text = "of both; a colon: stays, and so does a second line."
    assert setting_docs.described(Said) == {"one": text, "two": text, "three": "in brackets.", "four": "is kept."}


@pytest.mark.documented("docs/settings.md", "Settings")
def test_a_terminal_shows_the_same(documented, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    [done] = documented.run_all(capsys=capsys)
    out = done.out
    assert "  bilinear_type (field_interaction): one of field_all, field_each, field_interaction\n" in out
    assert "  learning_rate (0.001): a number above 0\n" in out and "  scale (left out): a number above 0\n" in out


def test_settings_of_a_class_of_fuxictrs_are_its_own(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["mm-fibinet", "list", "--settings", "model_zoo.LongCTR:SIM"])
    assert not main()
    out = capsys.readouterr().out
    assert "\nSIM\n" in out and "  short_seq_len (50): a whole number from 1 to" in out
    assert "  early_stop_patience (2): " in out


@pytest.mark.parametrize(("name", "near"), [("FiBinet", r"did you mean FiBiNET\? "), ("", "")])
def test_an_unknown_model_is_refused(name, near, monkeypatch):
    monkeypatch.setattr("sys.argv", ["mm-fibinet", "list", "--settings", name])
    with pytest.raises(UserError, match=f"--settings: model '{name}' is unknown, {near}expected one of AutoInt"):
        main()
