"""`python -m mm_fibinet.dataloader check REPO` reads a repository, and says which lines must become what."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, list_column, run_script

from mm_fibinet import repository_check
from mm_fibinet.errors import UserError
from mm_fibinet.repository_check import check_repository

MINIATURE = Path(__file__).resolve().parent / "published"
SCRIPT = """
from fuxictr.pytorch.dataloaders import RankDataLoader
from src.loaders import MMCTRDataLoader

def main(params):
    params["data_loader"] = MMCTRDataLoader
    return RankDataLoader(None, stage="train", **params)
"""
LOADER = """
class MMCTRDataLoader:
    def __init__(self, feature_map, data_path, item_info, **kwargs):
        if not data_path.endswith(".parquet"):
            data_path += ".parquet"
        self.collate = Collator(item_info)

class Collator:
    def __call__(self, rows):
        return {}, {}, None
"""
CONFIG = """
DATA:
    data_root: ./data/
    item_info: ./data/item_info.parquet  # of v3
    feature_cols:
    - {name: likes_level, type: categorical}
    - {name: item_emb_d128, source: item, type: embedding}
"""


@pytest.fixture
def repository(tmp_path):
    """Writes a repository of these files and checks it."""

    def write_and_check(files: dict[str, str], fuxictr: str = "2.3.10"):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        return check_repository(tmp_path, fuxictr)

    return write_and_check


@pytest.fixture(autouse=True)
def no_old_packages(monkeypatch):
    """What is installed here is no matter of the repository."""
    monkeypatch.setattr(repository_check, "_old_packages", list)


def lines(found) -> dict[str, list[str]]:
    """{place: the lines that shall be there}."""
    return {f"{change.path}:{change.first}": change.after for change in found.changes}


IMPORT = {"run_expid.py:15": ["from mm_fibinet.dataloader import MMCTRDataLoader"]}
LINES_OF = {
    "2.3.7": {},
    "2.3.8": {"fuxictr_version.py:5": ['assert fuxictr.__version__ == "2.3.8"']},
    "2.3.9": {"fuxictr_version.py:5": ['assert fuxictr.__version__ == "2.3.9"']},
    "2.3.10": {
        "fuxictr_version.py:5": ['assert fuxictr.__version__ == "2.3.10"'],
        "run_expid.py:37": ['    train, valid = RankDataLoader(feature_map, stage="train", **params)'],
    },
}


@pytest.mark.parametrize("fuxictr", LINES_OF)
def test_each_release_needs_its_own_changes(fuxictr):
    found = check_repository(MINIATURE, fuxictr)
    line = (MINIATURE / "config" / "dataset_config.yaml").read_text().split("\n")[15]
    width = line.replace("type: embedding", "type: embedding, pretrain_dim: 16")
    widths = {} if fuxictr == "2.3.7" else {"config/dataset_config.yaml:16": [width]}
    assert lines(found) == {**LINES_OF[fuxictr], **IMPORT, **widths}
    assert found.notes == []


def test_a_repository_on_our_loader_needs_nothing(repository, capsys, tmp_path):
    ours = SCRIPT.replace("src.loaders", "mm_fibinet.dataloader")
    config = CONFIG.replace("type: embedding", "pretrain_dim: 128, type: embedding")
    assert repository({"run_expid.py": ours, "config/data.yaml": config}).changes == []
    code, out, _ = run_script("mm_fibinet.repository_check", "check", tmp_path, "--fuxictr", "2.3.10", capsys=capsys)
    assert code == 0
    assert out.splitlines()[-1] == "nothing must change"


@pytest.mark.parametrize(
    ("statement", "after"),
    [
        (
            "from src.loaders import MMCTRDataLoader, Other",
            ["from src.loaders import Other", "from mm_fibinet.dataloader import MMCTRDataLoader"],
        ),
        ("from src import MMCTRDataLoader  # déjà", ["from mm_fibinet.dataloader import MMCTRDataLoader  # déjà"]),
        ("from src.loaders import (\n    MMCTRDataLoader,\n)", ["from mm_fibinet.dataloader import MMCTRDataLoader"]),
    ],
)
def test_the_import_is_found_as_it_is_written(repository, statement, after):
    script = SCRIPT.replace("from src.loaders import MMCTRDataLoader", statement)
    files = {"run.py": script, "src/__init__.py": "from .loaders import MMCTRDataLoader", "src/loaders.py": LOADER}
    assert lines(repository(files)) == {"run.py:3": after}


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("from mm_fibinet.dataloader import MMCTRDataLoader as Ours", "Ours"),
        ("from mm_fibinet import dataloader", "dataloader.MMCTRDataLoader"),
        ("import mm_fibinet.dataloader", "mm_fibinet.dataloader.MMCTRDataLoader"),
        ("import mm_fibinet.dataloader as loaders", "loaders.MMCTRDataLoader"),
    ],
)
def test_ours_is_known_however_it_is_named(repository, statement, value):
    script = SCRIPT.replace("from src.loaders import MMCTRDataLoader", statement)
    found = repository({"run.py": script.replace('["data_loader"] = MMCTRDataLoader', f'["data_loader"] = {value}')})
    assert (found.changes, found.notes, found.loaders) == ([], [], 1)


def test_a_class_by_another_way_is_told_to_be_imported(repository):
    script = SCRIPT.replace('["data_loader"] = MMCTRDataLoader', '["data_loader"] = Own if params else MMCTRDataLoader')
    found = repository({"run.py": script, "src/loaders.py": LOADER})
    assert lines(found) == {"run.py:3": ["from mm_fibinet.dataloader import MMCTRDataLoader"]}
    assert found.notes == [
        "run.py:6: hands FuxiCTR Own, which is not imported by name there: write from mm_fibinet.dataloader import "
        "MMCTRDataLoader, and hand over MMCTRDataLoader"
    ]


def test_a_class_from_elsewhere_is_left(repository):
    found = repository({"run.py": SCRIPT.replace("src.loaders", "torch.utils.data")})
    assert found.changes == []
    assert found.notes[0].startswith("run.py:3: MMCTRDataLoader is no class of the repository's files: whether ")


def test_two_classes_of_one_import_become_one_change(repository):
    script = SCRIPT.replace("import MMCTRDataLoader", "import MMCTRDataLoader, Other, other")
    script = script.replace("= MMCTRDataLoader", "= MMCTRDataLoader if params else Other")
    files = {"run.py": script, "src/loaders.py": LOADER + LOADER.replace("MMCTRDataLoader", "Other")}
    assert lines(repository(files)) == {
        "run.py:3": [
            "from src.loaders import other",
            "from mm_fibinet.dataloader import MMCTRDataLoader",
            "from mm_fibinet.dataloader import MMCTRDataLoader as Other",
        ]
    }


def test_files_of_an_environment_are_nobodys(repository):
    files = {"venv/pyvenv.cfg": "", "venv/lib/run.py": SCRIPT, "venv/lib/data.yaml": CONFIG, ".git/run.py": SCRIPT}
    found = repository({**files, "run.py": SCRIPT.replace("src.loaders", "mm_fibinet.dataloader")})
    assert (found.changes, found.loaders) == ([], 1)


def test_another_name_of_the_class_is_kept(repository):
    files = {
        "run.py": SCRIPT.replace("MMCTRDataLoader", "OwnLoader"),
        "src/loaders.py": LOADER.replace("MMCTRDataLoader", "OwnLoader"),
    }
    assert lines(repository(files)) == {"run.py:3": ["from mm_fibinet.dataloader import MMCTRDataLoader as OwnLoader"]}


def test_levels_of_the_history_become_two_settings(repository):
    """What DIN_att6's and MMCTRers' loaders do: join the levels of item_feature to every item."""
    collate = 'read("./data/item_feature.parquet")["likes_level"]; return {}, {}, None'
    files = {
        "run.py": SCRIPT,
        "src/loaders.py": LOADER.replace("return {}, {}, None", collate),
        "config/data.yaml": CONFIG,
        "config/flow.yaml": "tuner: {DATA: {item_info: a.parquet, item_feature: b.parquet, feature_cols: []}}",
    }
    found = lines(repository(files, "2.3.7"))
    assert found["config/data.yaml:4"] == [
        "    item_info: ./data/item_info.parquet  # of v3",
        "    item_feature: ./data/item_feature.parquet",
        "    history_levels: True",
    ]
    flow = "tuner: {DATA: {item_info: a.parquet, history_levels: True, item_feature: b.parquet, feature_cols: []}}"
    assert found["config/flow.yaml:1"] == [flow]


def test_a_loader_that_does_more_is_named_and_left(repository):
    files = {
        "run.py": SCRIPT,
        "src/loaders.py": LOADER.replace("return {}", 'read("./data/item_emb.parquet"); return {}'),
    }
    found = repository(files)
    assert found.changes == []
    assert found.notes == [
        "src/loaders.py:2: MMCTRDataLoader reads ./data/item_emb.parquet, too; what it makes of them must be columns "
        "of item_info before MMCTRDataLoader can take its place in run.py:6"
    ]
    other = {"src/loaders.py": LOADER.replace("return {}, {}, None", "return {}")}
    assert "does not return three things" in repository(other).notes[0]


@pytest.mark.parametrize(
    ("assertion", "fuxictr", "after"),
    [
        (
            'assert fuxictr.__version__ >= "2.3.7"',
            "2.3.10",
            'assert fuxictr.__version__ >= "2.3.10"',
        ),
        ('assert fuxictr.__version__ >= "2.3.7"', "2.3.9", None),
        ('assert parse(fuxictr.__version__) >= parse("2.3.7")', "2.3.10", None),
        (
            'assert parse(fuxictr.__version__) < parse("2.3.10")',
            "2.3.10",
            'assert parse(fuxictr.__version__) < parse("2.3.10")',
        ),
    ],
)
def test_an_assertion_is_judged_as_python_does(repository, assertion, fuxictr, after):
    files = {"run.py": SCRIPT.replace("src.loaders", "mm_fibinet.dataloader"), "fuxictr_version.py": assertion}
    found = lines(repository(files, fuxictr))
    assert found.get("fuxictr_version.py:1") == (None if after is None else [after])


def test_an_old_release_needs_make_iterator(repository):
    files = {"run.py": SCRIPT.replace("src.loaders", "mm_fibinet.dataloader")}
    after = ['    return RankDataLoader(None, stage="train", **params).make_iterator()']
    assert lines(repository(files, "2.3.9")) == {"run.py:7": after}
    assert lines(repository(files, "2.3.10")) == {}


def test_the_width_is_that_of_the_file_else_what_config_and_name_say(repository, tmp_path):
    entry = "    - name: item_vector\n      type: embedding\n      source: item\n      embedding_dim: 64\n"
    files = {"run.py": SCRIPT.replace("src.loaders", "mm_fibinet.dataloader"), "c/data.yaml": CONFIG + entry}
    found = lines(repository(files))
    assert found["c/data.yaml:7"] == ["    - {name: item_emb_d128, source: item, type: embedding, pretrain_dim: 128}"]
    assert found["c/data.yaml:9"] == ["      type: embedding", "      pretrain_dim: 64"]
    (tmp_path / "data").mkdir()
    table = {"item_id": [0, 1], "item_vector": list_column(np.zeros((2, 7), np.float32))}
    pq.write_table(pa.table(table), tmp_path / "data" / "item_info.parquet")
    assert lines(repository({}))["c/data.yaml:9"] == ["      type: embedding", "      pretrain_dim: 7"]
    unknown = {"c/data.yaml": CONFIG.replace("item_emb_d128", "vectors")}
    assert "vectors needs pretrain_dim, the width of its lists" in repository(unknown).notes[-1]


def test_old_releases_and_new_packages_are_told_apart(monkeypatch):
    monkeypatch.undo()
    installed = {"numpy": "2.4.6", "scikit-learn": "1.4.2", "keras-preprocessing": None}
    monkeypatch.setattr(repository_check, "_installed", installed.get)
    assert check_repository(MINIATURE, "2.3.9").notes == [
        'FuxiCTR up to 2.3.9 uses np.Inf, installed is 2.4.6: pip install "numpy<2", or numpy.Inf = numpy.inf before '
        "FuxiCTR is imported",
        "FuxiCTR up to 2.3.9 uses keras_preprocessing, it is not installed: pip install keras_preprocessing",
    ]
    assert check_repository(MINIATURE, "2.3.10").notes == []


def test_it_is_read_and_neither_run_nor_written(tmp_path, capsys):
    trap = "raise SystemExit\nopen('trap', 'w')\n"
    files = {"run.py": trap + SCRIPT, "src/__init__.py": trap, "src/loaders.py": trap + LOADER}
    files |= {
        "broken.py": "def (",
        "bom.py": "\ufeffx = 1\r\n",
        "config/a.yaml": "a: !!python/object/apply:os.abort []",
    }
    files |= {"config/b.yaml": "a: [", "config/circle.yaml": "a: &a [*a, {feature_cols: [*a]}]", "data.yaml": CONFIG}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    for name in ("latin.py", "latin.yaml"):
        (tmp_path / name).write_bytes(b"# \xe9")
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = run_script("mm_fibinet.repository_check", "check", tmp_path, "--fuxictr", "2.3.10", capsys=capsys)
    assert (code, err) == (2, "")
    assert "\n2 places to change; nothing was written\n" in out
    assert "broken.py: not read, it is no Python (" in out
    assert "\nlatin.py: not read, it is no UTF-8 text\n" in out
    assert "\nlatin.yaml: not read, it is no UTF-8 text\n" in out
    assert "config/b.yaml: not read, it is no YAML (" in out
    after = {path: hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_what_is_no_repository_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder; name the root of a repository"):
        check_repository(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no Python file in it; name the root of a repository"):
        check_repository(tmp_path)
    os.mkfifo(tmp_path / "pipe.py")  # to read it would be to wait for ever
    message = r"no Python file that can be read \(pipe.py: not read, it is no file\) in it"
    with pytest.raises(UserError, match=message):
        check_repository(tmp_path)


def test_the_command_is_the_loaders_module():
    done = subprocess.run(
        [sys.executable, "-m", "mm_fibinet.dataloader", "check", MINIATURE, "--fuxictr", "2.3.10"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (2, "")
    assert "run_expid.py:15  our loader in the place of the repository's\n  - from src.mmctr_dataloader" in done.stdout
