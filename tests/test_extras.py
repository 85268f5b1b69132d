"""A command whose extra is missing ends in one line that says how to get it; the others do without."""

import importlib.metadata
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from mm_fibinet import extras
from mm_fibinet.commands.arguments import COMMANDS
from mm_fibinet.extras import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # of pytest

# What FuxiCTR and torch bring anyhow.
IN_EVERY_INSTALL = {"h5py", "scipy", "threadpoolctl"}
OF_OTHERS = {"transformers", "torchvision"}  # which come with sentence-transformers and open_clip


def without(modules, code, *arguments, cwd=ROOT):
    """Run code in a process where modules cannot be imported: (exit code, stdout, stderr)."""
    block = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules.update(dict.fromkeys({sorted(modules)!r}))"
    command = [sys.executable, "-c", f"{block}; {code}", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


EMBED, TUNE = (
    f"import {script}; from mm_fibinet.errors import run_cli; run_cli({script}.main)"
    for script in ("build_item_emb", "run_param_tuner")
)
MISSING = {module for modules in EXTRAS.values() for module in modules} - IN_EVERY_INSTALL


def test_loading_training_and_prediction_need_no_extra():
    names = ["train", "predict", "benchmark", "tune", "check", "list"]
    imports = "".join(f"import mm_fibinet.commands.{name}; " for name in names)
    code, _, err = without(MISSING, imports + "import model_zoo, mm_fibinet.demo.score")
    assert code == 0, err


@pytest.mark.parametrize("module", ["PIL", "sentence_transformers"])  # needed at once, and by one encoder
def test_embed_without_its_extra(tmp_path, module):
    from mm_fibinet.demo.data import generate

    generate(tmp_path / "in", size="tiny")
    files = tmp_path / "in" / "MMCTR_demo"
    code, out, err = without(
        [module], EMBED, "--item_info", files / "item_info.parquet",
        "--item_feature", tmp_path / "in" / "item_feature.parquet", "--images", tmp_path / "in" / "item_images",
        "--output", tmp_path / "out" / "item_info.parquet",
    )  # fmt: skip
    assert code == 2, err
    *_, said = err.splitlines()
    assert said.startswith(f"error: {module} is not installed; it comes with the extra [encoders]: pip install"), err
    assert "Traceback" not in err and not list(tmp_path.glob("out/*.parquet")) and not out


def test_demo_covers_need_pillow_and_the_rest_of_the_demo_does_not(tmp_path):
    run = "import runpy; runpy.run_module('mm_fibinet.demo.data', run_name='__main__')"
    code, _, err = without(["PIL"], run, "--size", "tiny", "--output", tmp_path / "demo")
    assert code == 2 and err.startswith("error: PIL is not installed") and len(err.splitlines()) == 1
    assert not (tmp_path / "demo").exists()
    code, out, err = without(
        ["PIL"], run, "--size", "tiny", "--output", tmp_path / "demo", "--no_images", "--random_embedding"
    )
    assert code == 0 and "60 items" in out, err


def test_optuna_that_is_missing_is_said(tmp_path, dataset):
    (tmp_path / "tuner.yaml").write_text(
        f"base_config: {dataset}\nbase_expid: FiBiNET_test\ndataset_id: TEST_DATA\n"
        "tuner_space: {embedding_dim: [4, 8]}\n"
    )
    code, _, err = without(
        ["optuna"], TUNE, "--config", tmp_path / "tuner.yaml", "--optuna", "2", "--out", tmp_path / "out"
    )
    assert code == 2 and "error: optuna is not installed; it comes with the extra [tuner]" in err, err
    assert "Traceback" not in err and not (tmp_path / "out").exists()


def test_a_module_of_no_extra_is_a_bug_with_its_traceback():
    code = "from mm_fibinet.errors import run_cli; run_cli(lambda: __import__('no_such_module'))"
    exit_code, _, err = without([], code)
    assert exit_code == 1 and "Traceback" in err and "ModuleNotFoundError" in err
    assert extras.advice("no_such_module") is None and extras.advice(None) is None


def test_every_module_comes_with_the_extra_that_is_named():
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert EXTRAS.keys() == stated.keys() - {"dev"}
    found = importlib.metadata.packages_distributions()
    for extra, modules in EXTRAS.items():
        brought = {line.split(">")[0].split("=")[0].lower().replace("_", "-") for line in stated[extra]}
        for module in set(modules) - OF_OTHERS & found.keys():
            assert {name.lower().replace("_", "-") for name in found[module]} & brought, module
    assert stated["dev"][0] == f"mm-fibinet[{','.join(sorted(EXTRAS))}]"


def test_the_documentation_names_every_extra_and_command():
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert named == {*EXTRAS, "dev"}
    assert set(re.findall(r"`mm-fibinet (\w+)`", text)) == COMMANDS.keys()
    [listed] = re.findall(r"`mm-fibinet ((?:\w+ \| )+\w+)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert listed.split(" | ") == list(COMMANDS)
