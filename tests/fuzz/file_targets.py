"""Targets of single files from elsewhere: checkpoints and submissions."""

import io
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors

from fuzz.changes import TEXTS, byte_changes, change_bytes
from fuzz.oracle import Fault, Place, fingerprint, invoke

EXPID = "FiBiNET_test"
CHANGES_OF_TENSORS = {
    "float16": lambda tensor: tensor.half(),
    "bfloat16": lambda tensor: tensor.bfloat16(),
    "float64": lambda tensor: tensor.double() if tensor.is_floating_point() else tensor,
    "integers": lambda tensor: tensor.long(),
    "booleans": lambda tensor: tensor.bool(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "sparse": lambda tensor: tensor.to_sparse(),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
    "meta": lambda tensor: tensor.to("meta"),
    "NaN": lambda tensor: tensor * torch.nan,
    "infinity": lambda tensor: tensor / 0,
    "large": lambda tensor: tensor.double() * 1e300,
    "transposed": lambda tensor: tensor.T if tensor.dim() == 2 else tensor.unsqueeze(0),
    "empty": lambda tensor: tensor[:0] if tensor.dim() else tensor,
    "one more": lambda tensor: torch.cat([tensor, tensor[:1]]) if tensor.dim() else tensor,
    "expanded": lambda tensor: torch.zeros(1).expand(10**13),
    "strided": lambda tensor: tensor.repeat_interleave(2, 0)[::2] if tensor.dim() else tensor,
    "a list": lambda tensor: tensor.tolist(),
    "None": lambda tensor: None,
    "code": lambda tensor: Trap(),
}
SAME = {"float64", "strided"}  # and every wrapper, prefix and format: the same weights
tensor_change = st.tuples(st.integers(0, 40), st.sampled_from(sorted(CHANGES_OF_TENSORS)))
checkpoint_cases = st.one_of(
    st.fixed_dictionaries(
        {
            "tensors": st.lists(tensor_change, max_size=2),
            "prefix": st.sampled_from(["", "", "module.", "_orig_mod.", "module._orig_mod.", "other."]),
            "wrapper": st.sampled_from([None, None, "state_dict", "model", "weights", "\x1b[2J"]),
            "format": st.sampled_from(["zip", "zip", "legacy", "safetensors", "pickle"]),
        }
    ),
    st.fixed_dictionaries({"format": st.sampled_from(["zip", "legacy", "safetensors"]), "bytes": byte_changes}),
)


class Trap:
    """Makes the canary when it is unpickled by pickle."""

    path = ""

    def __reduce__(self):
        import os

        return os.mkdir, (Trap.path,)


def make_base(base: Path) -> None:
    """A trained run and the submission of its unchanged weights."""
    arguments = ["--config", base / "data" / "config", "--expid", EXPID, "--model_root", base / "runs"]
    for done in (
        invoke("run_expid", *arguments, "--set", "epochs=1"),
        invoke("prediction", *arguments, "--out", base / "expected.zip"),
    ):
        if done.code:
            raise RuntimeError(f"the unchanged data set is refused: {done.err}")


def run_checkpoint(place: Place, base: Path, case: dict) -> list[int]:
    """Weights from elsewhere: refused, or scored; the same weights in another form give the same submission."""
    state = torch.load(base / "runs" / "TEST_DATA" / f"{EXPID}.model", weights_only=True)
    Trap.path = str(place.canary)
    names = list(state)
    changes = {names[number % len(names)]: change for number, change in case.get("tensors", ())}  # one of each: they
    for name, change in changes.items():  # do not go on from each other, a sparse form of 10^13 numbers takes its time
        try:
            state[name] = CHANGES_OF_TENSORS[change](state[name])
        except (RuntimeError, TypeError, AttributeError, NotImplementedError):
            continue
    state = {case.get("prefix", "") + name: value for name, value in state.items()}
    content = {case["wrapper"]: state, "epoch": 1} if case.get("wrapper") else state
    path = place.given / "some.model"
    try:
        path.write_bytes(change_bytes(_saved(content, case["format"]), case.get("bytes", [])))
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError, pickle.PicklingError):
        return []  # this content has no such form
    shutil.copytree(base / "runs", place.out / "runs")
    before = fingerprint(base / "data")
    arguments = ["--config", base / "data" / "config", "--expid", EXPID, "--model_root", place.out / "runs"]
    out = place.out / "submission.zip"
    done = place.run("prediction", *arguments, "--checkpoint", path, "--out", out, results=("*.zip",))
    if fingerprint(base / "data") != before:
        raise Fault("prediction: changed the data")
    same = {change for _, change in case.get("tensors", ())} <= SAME
    summed = "bytes" not in case or case["format"] == "zip"  # the other formats have no checksum
    if done.code == 0 and same and summed and out.read_bytes() != (base / "expected.zip").read_bytes():
        raise Fault("prediction: other scores from a file that should hold the same weights, or was damaged")
    known = case.get("prefix") != "other." and case.get("wrapper") in (None, "state_dict", "model")
    if done.code and "bytes" not in case and same and known and case["format"] != "pickle":
        raise Fault(f"prediction: refused the same weights in another form: {done.err[:200]}")
    return [done.code]


def _saved(content: dict, form: str) -> bytes:
    if form == "safetensors":
        return save_safetensors({name: value.contiguous() for name, value in content.items()})
    buffer = io.BytesIO()
    if form == "pickle":
        pickle.dump(content, buffer)
    else:
        torch.save(content, buffer, _use_new_zipfile_serialization=form == "zip")
    return buffer.getvalue()


FIELDS = (
    "0",
    "1",
    "-1",
    "1.0",
    "1e0",
    " 1",
    "01",
    "+1",
    "0x1",
    "9" * 400,
    "nan",
    "inf",
    "-inf",
    "1e400",
    "0.5_0",
    *TEXTS,
)
csv_change = st.one_of(
    st.tuples(st.just("header"), st.sampled_from(["ID", "Task1", "Task1,Task2,Task1&2", "\ufeffID,Task1", *TEXTS])),
    st.tuples(st.just("ID"), st.integers(0, 30), st.sampled_from(FIELDS)),
    st.tuples(st.just("score"), st.integers(0, 30), st.sampled_from(FIELDS)),
    st.tuples(st.just("score"), st.just(None), st.sampled_from(["0", "0.5", "1"])),
    st.tuples(st.just("line"), st.integers(0, 30), st.sampled_from(["", ",", "x", "0,0,0", '"', "#", "ID,Task1&2"])),
    st.tuples(st.just("drop"), st.integers(0, 30)),
    st.tuples(st.just("end"), st.sampled_from(["\r\n", "\r", "\n\n", "\x0b", "\u2028", ";\n"])),
    st.tuples(st.just("comma"), st.sampled_from([";", "\t", ", ", ",,"])),
    st.tuples(st.just("encoding"), st.sampled_from(["utf-16", "utf-8-sig", "utf-32", "utf-7"])),
    st.tuples(st.just("content"), byte_changes),
)
zip_change = st.one_of(
    st.tuples(st.just("name"), st.sampled_from(["x/prediction.csv", "prediction.csv/", "../prediction.csv", *TEXTS])),
    st.tuples(st.just("more"), st.sampled_from(["__MACOSX/._prediction.csv", "prediction.csv", "a/", *TEXTS])),
    st.tuples(st.just("method"), st.sampled_from([0, 8, 12, 14])),
    st.tuples(
        st.just("patch"),
        st.sampled_from([0, 2, 4, 6, 8, 10, 14, 16, 20, 24, 28, 30, 34, 38, 42]),
        st.integers(0, 2**32 - 1),
    ),
    st.tuples(st.just("bomb"), st.sampled_from([0, 8, 12, 14])),
    st.tuples(st.just("bytes"), byte_changes),
    st.tuples(st.just("bare")),
)
submission_cases = st.tuples(st.lists(csv_change, max_size=2), st.lists(zip_change, max_size=2))


def run_submission(place: Place, base: Path, case: tuple) -> list[int]:
    """A zip from elsewhere: what is accepted, pandas reads as IDs in order and scores in [0, 1]."""
    of_csv, of_zip = case
    test = place.given / "test.parquet"
    shutil.copy(base / "data" / "TEST_DATA" / "test.parquet", test)
    num_rows = pq.read_metadata(test).num_rows
    path = place.given / "submission.zip"
    content, must_pass = _csv(num_rows, of_csv), not of_csv and not of_zip
    path.write_bytes(_zip(content, of_zip))
    done = place.run("mm_fibinet.submission", "check", path, "--test", test)
    if done.code == 0:
        with zipfile.ZipFile(path) as archive:
            frame = pd.read_csv(io.BytesIO(archive.read("prediction.csv")))
        scores = frame.iloc[:, 1:].to_numpy(dtype=np.float64)
        in_order = frame["ID"].tolist() == list(range(num_rows)) and frame["ID"].dtype == np.int64
        if not (
            in_order and np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all() and scores.any()
        ):
            raise Fault("submission: accepted what pandas reads as something else")
    elif must_pass:
        raise Fault(f"submission: refused a plain one: {done.err[:200]}")
    return [done.code]


def _csv(num_rows: int, changes: list[tuple]) -> bytes:
    header, ids, scores = "ID,Task1&2", [str(i) for i in range(num_rows)], [f"0.{i + 1}" for i in range(num_rows)]
    end, comma, encoding, lines, dropped, byte_edits = "\n", ",", "utf-8", {}, set(), []
    for kind, *what in changes:
        if kind == "header":
            header = what[0]
        elif kind in ("ID", "score"):
            column = ids if kind == "ID" else scores
            rows = range(num_rows) if what[0] is None else [what[0] % num_rows]
            for row in rows:
                column[row] = what[1]
        elif kind == "line":
            lines[what[0] % num_rows] = what[1]
        elif kind == "drop":
            dropped.add(what[0] % num_rows)
        elif kind == "content":
            byte_edits = what[0]
        else:
            end, comma, encoding = (
                what[0] if kind == "end" else end,
                what[0] if kind == "comma" else comma,
                what[0] if kind == "encoding" else encoding,
            )
    rows = [lines.get(i, f"{ids[i]}{comma}{scores[i]}") for i in range(num_rows) if i not in dropped]
    return change_bytes((end.join([header, *rows]) + end).encode(encoding, "replace"), byte_edits)


def _zip(content: bytes, changes: list[tuple]) -> bytes:
    names, method, edits = ["prediction.csv"], zipfile.ZIP_DEFLATED, []
    for kind, *what in changes:
        if kind == "bare":
            return content
        if kind == "name":
            names[0] = what[0]
        elif kind == "more":
            names.append(what[0])
        elif kind == "method":
            method = what[0]
        elif kind == "bomb":
            method, content = what[0], b"0" * (64 << 20)
        else:
            edits.append((kind, what))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    packed = buffer.getvalue()
    for kind, what in edits:
        if kind == "bytes":
            packed = change_bytes(packed, what[0])
        elif (at := packed.rfind(b"PK\x01\x02")) >= 0 and at + what[0] + 8 <= len(packed):
            packed = packed[: at + 4 + what[0]] + struct.pack("<I", what[1]) + packed[at + 8 + what[0] :]
    return packed
