"""The three commands of docs/reproduce.md for Taobao-MM, as they stand there, on small files of its layout."""

import shlex
import shutil
import subprocess
import zipfile

import numpy as np
import polars as pl
import pytest
from conftest import ROOT
from documented import commands_of
from sklearn.metrics import roc_auc_score
from test_recipes import write_taobao_mm

PLACE = ("docs/reproduce.md", "Taobao-MM")


@pytest.mark.documented("docs/reproduce.md", "Taobao-MM")
def test_the_download_to_a_score_in_three_commands(documented, tmp_path, capsys, monkeypatch):
    write_taobao_mm(tmp_path / "Taobao-MM", rows=1200)
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    scripts = [command.words[1] for command in documented.commands]
    assert scripts == ["build_dataset.py", "run_expid.py", "prediction.py"]
    *_, last = documented.run_all(capsys=capsys)
    labels = pl.read_parquet("data/taobao_mm/test_labels.parquet")["label"].to_numpy()
    users = pl.read_parquet("data/taobao_mm/test.parquet")["user_id"].to_numpy()
    with zipfile.ZipFile("submission/MUSE_Taobao_MM.zip") as archive:
        scores = pl.read_csv(archive.read("prediction.csv"))["Task1&2"].to_numpy()
    both = [rows for rows in (users == user for user in np.unique(users)) if 0 < labels[rows].mean() < 1]
    aucs = [roc_auc_score(labels[rows], scores[rows]) for rows in both]
    expected = np.average(aucs, weights=[rows.sum() for rows in both])
    assert f"gAUC: {expected:.6f}" in last.out


def test_make_runs_these_commands():
    make = ["make", "-n", "-B", "taobao_mm", "GPU=0", "VENV=bin"]  # -B: as where nothing has been built
    dry = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
    ran = [
        shlex.split(line)[1:] for line in dry.stdout.splitlines() if line.startswith("bin/python") and ".py " in line
    ]
    assert ran == [list(command.words[1:]) for command in commands_of(*PLACE)]
