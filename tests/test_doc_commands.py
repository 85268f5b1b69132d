"""Every command of the pages can be typed as it stands there, and is run by a test or says what it needs."""

import ast
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from doc_check import all_options, problems
from doc_commands import of_row, rows
from doc_pages import Block, Command, options, pages, read, shell
from documented import Documented, runners


@pytest.fixture(scope="module")
def table():
    """{page: its rows}."""
    found = {page: [] for page in pages()}
    for row in rows():
        found[row.shown.page].append(row)
    return found


@pytest.mark.parametrize("page", pages())
def test_every_command_of_a_page(page, table):
    wrong = [f"{row.shown}: {problem}" for row in table[page] for problem in of_row(row)]
    wrong += [f"{page}:{line}: no program has the option {option}: correct the page" for line, option in options(page)
              if option not in all_options()]  # fmt: skip
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.documented("CONTRIBUTING.md", "What the pages show")
def test_the_list(documented, table, capsys):
    """A line a command, and their number; the page's example of a test is one."""
    documented.execute(documented.blocks[0], pytest=pytest)
    [done] = documented.run_all(capsys=capsys)
    listed = [row for of_page in table.values() for row in of_page]
    lines = [line for line in done.out.splitlines() if line.startswith("| ")]
    assert len(lines) == len(listed) + 1
    *_, counts = done.out.strip().splitlines()
    assert re.match(rf"{len(listed)}: ", counts)
    assert f" {sum(row.how == 'run' for row in listed)} run" in counts and "untested" not in counts


def test_the_tests_that_run_them_are_collected(request):
    """By pytest: of this session where it has all of them, else of one that collects their files."""
    named = {test for tests in runners().values() for test in tests}
    collected = {item.nodeid for item in request.session.items}
    if not named <= {name.partition("[")[0] for name in collected}:
        files = sorted({name.partition("::")[0] for name in named})
        how = ["--collect-only", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
        done = subprocess.run([sys.executable, "-m", "pytest", *how, *files], cwd=ROOT, capture_output=True, text=True)
        collected = set(done.stdout.splitlines())
    assert named <= {name.partition("[")[0] for name in collected}


def test_the_tests_that_run_them_are_never_skipped():
    for name in {test for tests in runners().values() for test in tests}:
        path, _, function = name.partition("::")
        [node] = [each for each in ast.parse((ROOT / path).read_text()).body if getattr(each, "name", "") == function]
        assert not re.search("skip|xfail", " ".join(map(ast.unparse, node.decorator_list))), name


def test_every_mark_names_commands_that_there_are():
    for place in runners():
        assert Documented([place]).left, place


PROGRAMS = ("bash", "cd", "cp", "curl", "git", "make", "mkdir", "mm-fibinet", "pip", "pre-commit", ".venv/bin/python")
PYTHONS = ("python", "python3.10", "python3.12", "python3.13")


@pytest.mark.parametrize("page", [page for page in pages() if page.endswith(".md")])
def test_lines_are_read_as_bash_reads_them(page):
    """The words of each command are those that bash hands to a program of that name; `!` and `%` are a notebook's."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    tell = 'local line; printf -v line \'%s\\x1f\' {name} "$@"; echo "$line"'
    told = "".join(f"{name}() {{ {tell.replace('{name}', name)}; }}\n" for name in (*PROGRAMS, *PYTHONS))
    script = "set -f\n" + told + re.sub(r"^[!%]", "", "\n".join(blocks), flags=re.MULTILINE)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    expected = sorted(tuple(line.split("\x1f")[:-1]) for line in done.stdout.splitlines())
    found = [each.words for each in read(page) if isinstance(each, Command) and each.fenced]
    assert sorted(words for words in found if words != ("wait",)) == expected


def command(line):
    [found] = shell(f"{line}\n", "page.md", 7, "", "")
    return found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "python run_expid.py --expid FiBiNET_dem",
            "no experiment ID FiBiNET_dem in config/model_config, near are FiBi",
        ),
        ("python run_expid.py --exid FiBiNET_demo", "unrecognized arguments: --exid FiBiNET_demo"),
        ("python run_expid.py --expid FiBiNET_demo --epochs 3", "unrecognized arguments: --epochs 3"),
        ("python run_expid.py --expid FiBiNET_demo --gpu 0 0", "--gpu 0 0: expected each GPU once"),
        ("python run_expid.py --expid FiBiNET_demo --set learning_rat=1", "did you mean learning_rate"),
        ("python run_expid.py --expid FiBiNET_demo --set epochs=none", "epochs"),
        ("python prediction.py --average a", "expected two runs or more"),
        ("python run_xpid.py --expid FiBiNET_demo", "there is no script run_xpid.py"),
        ("python benchmarks/nothing.py", "there is no script benchmarks/nothing.py"),
        ("python benchmarks/step_cost.py --gpu 0", "benchmarks/step_cost.py takes no arguments"),
        ("python benchmarks/speed.py --bussy", "unrecognized arguments: --bussy"),
        ("python -m mm_fibinet.sumbission check a.zip", "there is no module mm_fibinet.sumbission"),
        ("python -m mm_fibinet.submission chek a.zip", "invalid choice: 'chek'"),
        ("python -m mm_fibinet trian --expid FiBiNET_demo", "mm-fibinet has no command ['trian']"),
        ("mm-fibinet check", "name either a FOLDER, or --dataset_id"),
        ("python run_benchmark.py --suite smal", "there is no suite smal in config/benchmark_config.yaml"),
        ("python run_benchmark.py --suite small --study colds", "invalid choice: 'colds'"),
        ("python run_param_tuner.py --config config/tuner/no.yaml", "there is no config/tuner/no.yaml"),
        (
            "python build_dataset.py --recipe movilens --out o",
            "there is no recipe movilens in config/recipes, near are mov",
        ),
        ("python build_item_emb.py --item_info IN --output OUT --fusion pcaa", "there is no fusion pcaa"),
        (
            "python build_item_emb.py --item_info IN --output OUT --image_encoder tim:x",
            "there is no image encoder tim:",
        ),
        ("make demoo", "there is no target demoo in the Makefile, near are demo"),
        ("make microlens EXPID=Nope", "there is no experiment ID Nope"),
        ("make microlens GPUS=0", "there is no variable gpus"),
        ("pip install '.[encodrs]'", "there is no extra encodrs in pyproject.toml, near are encoders"),
        ("frobnicate --hard", "frobnicate is no program that tests/doc_check.py knows"),
        ("cp ../mm-fibinet/config/none.yaml .", "there is no config/none.yaml"),
    ],
)
def test_what_cannot_be_typed_is_found(line, message):
    assert message in " ".join(problems(command(line)))


@pytest.mark.parametrize(
    "line",
    [
        "python run_expid.py --expid EXPID --set dataset_id=NAME",
        "python build_item_emb.py ... --fusion item2vec --train TRAIN.parquet",
        "torchrun --nproc_per_node=2 ... run_expid.py --expid ... --gpu 0",
        "python run_benchmark.py --expids DIN_demo FiBiNET_demo --seeds 1 2",
    ],
)
def test_what_stands_for_a_readers_own_is_taken(line):
    assert problems(command(line)) == []


PAGE = """# Title

Train it:

```bash
python run_expid.py --expid FiBiNET_demo    # a comment
python run_expid.py --expid FiBiNET_demo --gpu 0
```

Needs MicroLens:

```bash
python run_expid.py --expid DIN_demo --set "dataset_id=MINE"
```

```python
from mm_fibinet import no_such_thing
```

```yaml
a: 1
a: 2
```

Say `python run_expid.py --expid FiBiNET_demo --bad 1` or
`run_benchmark.py --suite`.
"""


def test_a_new_command_has_to_be_run_or_marked(tmp_path):
    """Named with page and line, and with what to do."""
    (tmp_path / "new.md").write_text(PAGE.replace("Needs", "It needs"))
    found = {str(row.shown): (row.how, " ".join(of_row(row))) for row in rows(["new.md"], tmp_path)}
    expected = {
        "new.md:6: python run_expid.py --expid FiBiNET_demo": (
            "untested",
            "no test runs it: mark a test that does with",
        ),
        "new.md:7: python run_expid.py --expid FiBiNET_demo --gpu 0": ("needs", ""),
        "new.md:13: python run_expid.py --expid DIN_demo --set dataset_id=MINE": ("needs", ""),
        "new.md:16: python block": ("untested", "mm_fibinet has no no_such_thing"),
        "new.md:20: yaml block": ("parsed", "new.md:20: yaml block: not valid YAML: 'a' is given twice"),
        "new.md:25: python run_expid.py --expid FiBiNET_demo --bad 1": ("parsed", "unrecognized arguments: --bad 1"),
        "new.md:26: run_benchmark.py --suite": ("parsed", ""),
    }
    assert found.keys() == expected.keys()
    for shown, (how, message) in expected.items():
        assert found[shown][0] == how and message in found[shown][1] and bool(message) == bool(found[shown][1]), shown


def test_a_test_that_leaves_a_command_out_is_told():
    whole = Documented([("docs/serving.md", "Serving")])
    export, score = whole.commands
    whole.done(export)
    [block] = whole.blocks
    assert whole.left == [score, block] and isinstance(block, Block)
    with pytest.raises(AssertionError, match=r"there is nothing to run at .*No such heading"):
        Documented([("docs/serving.md", "No such heading")])


def test_notebooks_markdown_is_read(tmp_path):
    cells = [{"cell_type": "code", "source": []}, {"cell_type": "markdown", "source": ["Run\n", "`make dmo`"]}]
    (tmp_path / "book.ipynb").write_text(json.dumps({"cells": cells}))
    [found] = read("book.ipynb", tmp_path)
    assert str(found) == "book.ipynb:1: make dmo"
