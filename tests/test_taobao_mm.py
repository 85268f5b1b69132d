"""The three commands of docs/reproduce.md for Taobao-MM, as they stand there, on small files of its layout."""

import re
import shlex
import shutil
import subprocess
import zipfile

import numpy as np
import polars as pl
from conftest import ROOT, run_script
from sklearn.metrics import roc_auc_score
from test_recipes import write_taobao_mm


def commands():
    text = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8").split("## Taobao-MM\n", 1)[1]
    return [shlex.split(line) for line in re.search(r"```bash\n(.*?)```", text, re.DOTALL).group(1).splitlines()]


def test_the_download_to_a_score_in_three_commands(tmp_path, capsys, monkeypatch):
    write_taobao_mm(tmp_path / "Taobao-MM", rows=1200)
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    lines = commands()
    assert [line[1] for line in lines] == ["build_dataset.py", "run_expid.py", "prediction.py"]
    for line in lines:
        line = ["-1" if before == "--gpu" else word for before, word in zip(["", *line], line, strict=False)]
        code, out, err = run_script(line[1].removesuffix(".py"), *line[2:], capsys=capsys)
        assert code == 0, (line, out, err)
    labels = pl.read_parquet("data/taobao_mm/test_labels.parquet")["label"].to_numpy()
    users = pl.read_parquet("data/taobao_mm/test.parquet")["user_id"].to_numpy()
    with zipfile.ZipFile("submission/MUSE_Taobao_MM.zip") as archive:
        scores = pl.read_csv(archive.read("prediction.csv"))["Task1&2"].to_numpy()
    both = [rows for rows in (users == user for user in np.unique(users)) if 0 < labels[rows].mean() < 1]
    aucs = [roc_auc_score(labels[rows], scores[rows]) for rows in both]
    expected = np.average(aucs, weights=[rows.sum() for rows in both])
    assert f"gAUC: {expected:.6f}" in out


def test_make_runs_these_commands():
    make = ["make", "-n", "-B", "taobao_mm", "GPU=0", "VENV=bin"]  # -B: as where nothing has been built
    dry = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
    ran = [
        shlex.split(line)[1:] for line in dry.stdout.splitlines() if line.startswith("bin/python") and ".py " in line
    ]
    assert ran == [line[1:] for line in commands()]
