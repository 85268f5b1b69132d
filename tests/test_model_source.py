"""A model's class by its name: model_zoo's, of a module, of FuxiCTR's wheel, of a checkout; and what it is made of."""

import hashlib
import subprocess
import sys

import pytest
from conftest import ROOT, run_script

import model_zoo
from mm_fibinet import model_source, settings
from mm_fibinet.errors import UserError

LONGCTR = ("DCNv2", "DIEN", "DIN", "ETA", "FinalMLP", "MIRRN", "SDIM", "SIM", "TWIN", "TransAct")


def found(name):
    return settings.find_model(model_zoo, name, "experiment X")


def test_a_plain_name_is_model_zoos(working_folder):
    (working_folder / "DIN.py").write_text("raise SystemExit('imported')")
    assert found("DIN") is model_zoo.DIN


def test_a_module_of_the_working_folder(working_folder):
    mine = found("my_models:Mine")
    assert (mine.__module__, mine.__name__) == ("my_models", "Mine")
    assert not model_source.is_own(mine) and not model_source.is_multimodal(mine)


def test_a_module_in_a_package_of_the_working_folder(working_folder):
    (working_folder / "mine" / "deep").mkdir(parents=True)
    (working_folder / "mine" / "deep" / "nets.py").write_text(
        "from my_models import Mine\n\nclass Other(Mine):\n    pass\n"
    )
    assert found("mine.deep.nets:Other").__name__ == "Other"


@pytest.mark.parametrize(
    ("name", "written", "message"),
    [
        ("nowhere:Mine", "", r"experiment X: model nowhere:Mine: there is no module nowhere, neither in .* nor among"),
        ("my_models.deep:Mine", "", "there is no module my_models.deep, neither in"),
        ("my_models:Mime", "", r"there is no class Mime in .*my_models.py, did you mean Mine\?"),
        ("my_models:Zzz", "", "there is no class Zzz in .*my_models.py, which has Broken, .*Logits, Mine"),
        ("my_models:NoModel", "", "NoModel in .*my_models.py is no model, expected a class of FuxiCTR's BaseModel"),
        ("my_models:BaseModel", "", "BaseModel in .*my_models.py is no model"),
        ("my_models:scale", "", "scale in .*my_models.py is no model"),
        ("bad:Mine", "class Mine(:\n", r"importing its module failed: SyntaxError: .*bad.py, line 1\)"),
        (
            "bad:Mine",
            "\nx = 1 / 0\n",
            r"importing its module failed: ZeroDivisionError: division by zero \(.*bad.py, line 2",
        ),
        ("bad:Mine", "raise SystemExit(3)", "importing its module failed: SystemExit: 3"),
        (
            "bad:Mine",
            "import no_such_package_of_anyone",
            "its module imports no_such_package_of_anyone, which is not inst",
        ),
        ("os:system(1)", "", r"expected package.module:Class, for example my_models:MyModel"),
        ("__import__('os'):X", "", "expected package.module:Class"),
        ("bad:Mine", "from my_models import Mine as M", "there is no class Mine in .*bad.py, which has M$"),
        ("os:system", "", "system in .*os.py is no model"),
        (
            "MaskNet",
            "",
            r"model '?MaskNet'? is unknown, expected one of AutoInt, .*; package.module:Class .* --models_from",
        ),
        (None, "", r"model \w+ is unknown"),
    ],
)
def test_what_cannot_be_found_is_said_in_one_sentence(working_folder, name, written, message):
    (working_folder / "bad.py").write_text(written)
    with pytest.raises(UserError, match=message) as refused:
        found(name)
    assert "\n" not in str(refused.value)


def test_longctr_is_reachable_beside_our_model_zoo_and_loads_nothing_but_itself():
    """In a process of its own: there ours is the first model_zoo on the path, and hides FuxiCTR's."""
    code = (
        "import sys, model_zoo\nfrom mm_fibinet import settings\nbefore = set(sys.modules)\n"
        "assert not hasattr(model_zoo, 'LongCTR') and len(model_zoo.__path__) == 1\n"
        f"for name in {LONGCTR}:\n"
        "    for module in ('model_zoo.LongCTR', f'model_zoo.LongCTR.{name}'):\n"
        "        found = settings.find_model(model_zoo, f'{module}:{name}')\n"
        "        assert found.__module__ == f'model_zoo.LongCTR.{name}.{name}', found\n"
        "assert settings.find_model(model_zoo, 'DIN').__module__ == 'model_zoo.din'\n"
        "loaded = {name for name in set(sys.modules) - before if not name.startswith('model_zoo.LongCTR')}\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_module_that_another_hides_is_named(working_folder):
    (working_folder / "random.py").write_text("from my_models import Mine")
    hidden = rf"no class Mine in .*random.py, .*; it hides {working_folder / 'random.py'}, whose name must be another"
    with pytest.raises(UserError, match=hidden):
        found("random:Mine")


def test_help_imports_no_module_of_the_users(working_folder, dataset):
    (working_folder / "my_models.py").write_text("open('imported', 'w')")
    for arguments in (["--help"], ["--expid", "X", "--no-such-option"]):
        subprocess.run([sys.executable, ROOT / "run_expid.py", *arguments], cwd=working_folder, capture_output=True)
    assert not (working_folder / "imported").exists()


FILES = {
    "Tiny/src/Tiny.py": "from fuxictr.pytorch.models import BaseModel\n\nclass Tiny(BaseModel):\n    pass\n\n"
    "class Tinier(Tiny):\n    pass\n\nclass Layer:\n    pass\n",
    "Tiny/src/__init__.py": "from .Tiny import *\n",
    "Two_tf/src/Two.py": "import tensorflow as tf\nfrom fuxictr.tensorflow.models import BaseModel\n\n"
    "class Two(BaseModel):\n    pass\n",
    "Two_torch/src/Two.py": "from fuxictr.pytorch.models import BaseModel\n\nclass Two(BaseModel):\n    pass\n",
    "Same/src/A.py": "from fuxictr.pytorch.models import BaseModel\n\nclass Same(BaseModel):\n    pass\n",
    "Same/src/B.py": "from fuxictr.pytorch.models import BaseModel\n\nclass Same(BaseModel):\n    pass\n",
    "DIN/src/DIN.py": "from fuxictr.pytorch.models import BaseModel\n\nclass DIN(BaseModel):\n    pass\n",
    "Bad/src/Bad.py": "class Bad(:\n",
    "__init__.py": "raise SystemExit('all of model_zoo was imported')\n",
}


@pytest.fixture
def checkout(tmp_path):
    """A working_folder like a checkout of FuxiCTR; its modules are gone afterwards."""
    for name, content in FILES.items():
        path = tmp_path / "FuxiCTR" / "model_zoo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    before, paths = set(sys.modules), list(model_zoo.__path__)
    yield tmp_path / "FuxiCTR"
    model_zoo.__path__ = paths
    for name in set(sys.modules) - before:
        if name.startswith("model_zoo."):
            del sys.modules[name]


def test_a_checkouts_classes_are_models_by_name(checkout):
    models = model_source.with_checkout(model_zoo, checkout)
    assert list(models.checkout.classes) == ["DIN", "Same", "Tinier", "Tiny", "Two"]
    assert settings.find_model(models, "Tinier").__module__ == "model_zoo.Tiny.src.Tiny"
    assert settings.find_model(models, "Two").__module__ == "model_zoo.Two_torch.src.Two"
    assert settings.find_model(models, "DIN") is model_zoo.DIN  # a plain name goes on meaning ours
    assert settings.find_model(models, "model_zoo.DIN.src.DIN:DIN").__module__ == "model_zoo.DIN.src.DIN"
    assert settings.find_model(models, "DIN") is model_zoo.DIN
    assert settings.find_model(models, "model_zoo.LongCTR:SIM").__name__ == "SIM"
    with pytest.raises(
        UserError, match=r"Same is in 2 files of .*, expected model_zoo.Same.src.A:Same or model_zoo.Same"
    ):
        settings.find_model(models, "Same")
    with pytest.raises(
        UserError, match=r"model .?Tine.? is unknown, did you mean Tinier or Tiny\? expected one of AutoInt, .*Tiny"
    ):
        settings.find_model(models, "Tine")
    with pytest.raises(UserError, match=r"model .?Tiny.? is unknown"):
        settings.find_model(model_zoo, "Tiny")


def test_a_checkouts_files_that_no_class_is_taken_from_are_named(checkout):
    """A slip of the pen, and a folder that no module can be imported from: the class is not just unknown."""
    source = checkout / "model_zoo" / "Mask-Net" / "src"
    source.mkdir(parents=True)
    (source / "MaskNet.py").write_text(FILES["DIN/src/DIN.py"].replace("DIN", "MaskNet"))
    models = model_source.with_checkout(model_zoo, checkout)
    for name, said in {
        "MaskNet": r"--models_from names; .*/MaskNet.py cannot be imported: Mask-Net is no name of .*; .*/Bad.py c",
        "Bad": r"--models_from names; .*/Bad.py cannot be parsed \(invalid syntax \(.*, line 1\)\); .*/MaskNet.py c",
    }.items():
        with pytest.raises(UserError, match=said):
            settings.find_model(models, name)
    (checkout / "model_zoo" / "Mask-Net").rename(checkout / "model_zoo" / "MaskNet")
    assert settings.find_model(model_source.with_checkout(model_zoo, checkout), "MaskNet")


def test_what_is_no_checkout(tmp_path):
    with pytest.raises(
        UserError, match=r"--models_from .*: no model_zoo/\*/src/\*.py there, expected a checkout of Fuxi"
    ):
        model_source.with_checkout(model_zoo, tmp_path)


def test_list_and_check_know_the_checkouts_models(checkout, dataset, tmp_path, capsys):
    code, out, _ = run_script(
        "mm_fibinet.__main__", "list", "--config", dataset, "--models_from", checkout, capsys=capsys
    )
    assert code == 0 and out.splitlines()[-1] == f"models of {checkout}: DIN, Same, Tinier, Tiny, Two"
    config = tmp_path / "config"
    config.mkdir()
    (config / "dataset_config.yaml").write_text((dataset / "dataset_config.yaml").read_text())
    (config / "model_config.yaml").write_text("X: {model: Tiny, dataset_id: TEST_DATA}\n")
    arguments = ("mm_fibinet.__main__", "check", "--config", config, "--expid", "X")
    code, _, err = run_script(*arguments, capsys=capsys)
    assert code == 2 and "experiment X: model 'Tiny' is unknown" in err
    assert run_script(*arguments, "--models_from", checkout, capsys=capsys)[0] == 0


def test_source_files_are_the_users_and_what_they_import(working_folder):
    files = model_source.source_files(found("my_models:Mine"))
    assert files == [working_folder / "helpers.py", working_folder / "my_models.py"]
    entry = model_source.code_entry(model_zoo, found("my_models:Mine"))["model_code"]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert entry["sha256"] == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert entry["class"] == "my_models:Mine" and entry["path"] == str(working_folder / "my_models.py")
    assert model_source.code_entry(model_zoo, model_zoo.DIN) == {}


def test_source_files_are_told_by_every_import_there_is(working_folder):
    """Of a constant, inside a function, relative, of a package's parts; what imports them need not have run."""
    package = {
        "__init__.py": "",
        "model.py": "from my_models import Mine\nfrom .sizes import WIDTH\nfrom . import parts\n\nclass Deep(Mine):\n"
        "    def forward(self, inputs):\n        import late.layers\n        return super().forward(inputs)\n",
        "sizes.py": "WIDTH = 8\n",
        "parts.py": "import json\nimport numpy\n",
        "unused.py": "",
    }
    late = {"__init__.py": "", "layers.py": "from . import broken\nimport not_installed\n", "broken.py": "def (\n"}
    for folder, files in {"pkg": package, "late": late}.items():
        (working_folder / folder).mkdir()
        for name, text in files.items():
            (working_folder / folder / name).write_text(text)
    wanted = ["helpers.py", *(f"late/{name}" for name in late), "my_models.py"]
    wanted += [f"pkg/{name}" for name in package if name != "unused.py"]
    found_files = model_source.source_files(found("pkg.model:Deep"))
    assert sorted(found_files) == sorted(working_folder / name for name in wanted)
    before = model_source.code_entry(model_zoo, found("pkg.model:Deep"))["model_code"]["sha256"]
    (working_folder / "pkg" / "sizes.py").write_text("WIDTH = 9\n")
    assert model_source.code_entry(model_zoo, found("pkg.model:Deep"))["model_code"]["sha256"] != before


def test_of_an_installed_package_the_classs_own_file_counts():
    (file,) = model_source.source_files(found("model_zoo.LongCTR:SIM"))
    assert file.parts[-4:] == ("model_zoo", "LongCTR", "SIM", "SIM.py")
