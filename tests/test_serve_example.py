"""examples/serve.py answers what can be answered, and everything else with one JSON error and no 5xx."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from fastapi.testclient import TestClient

from mm_fibinet.errors import run_cli
from mm_fibinet.scorer import Scorer


@pytest.fixture(scope="module")
def serve():
    sys.path.insert(0, str(ROOT / "examples"))
    import serve

    sys.path.remove(str(ROOT / "examples"))
    return serve


@pytest.fixture(scope="module")
def scorer(exported):
    return Scorer(exported.folder)


@pytest.fixture(scope="module")
def client(serve, scorer):
    return TestClient(serve.make_app(scorer), raise_server_exceptions=False)


QUERY = {"history_ids": [3, 9, 14], "candidate_ids": [7, 1, 30]}


def test_scores_and_health(client, scorer):
    assert client.get("/health").json() == {"status": "ok", "model": "DeepFM", "expid": "FiBiNET_test", "items": 40}
    for more in ({}, {"context": {"likes_level": [1, 2, 3]}}, {"user": {"likes_level": 4, "views_level": None}}):
        answer = client.post("/score", json={**QUERY, **more})
        assert answer.status_code == 200
        expected = scorer.score(**QUERY, **more)
        np.testing.assert_array_equal(np.float32(answer.json()["scores"]), expected)


def many(count):
    return {**QUERY, "candidate_ids": [1] * count}


BAD = {
    "no JSON": (b"{", 422, "JSON"),
    "no object": (b"[1]", 422, ""),
    "nothing": (b"", 422, ""),
    "no UTF-8": (b'{"history_ids": "\xff"}', 4, ""),
    "nested": (b"[" * 100_000, 4, ""),
    "no candidates": ({"history_ids": [1]}, 422, "candidate_ids: Field required"),
    "empty candidates": ({**QUERY, "candidate_ids": []}, 422, "candidate_ids: List should have at least 1 item"),
    "text for an id": ({**QUERY, "history_ids": ["3"]}, 422, "history_ids.0: Input should be a valid integer"),
    "a fraction": ({**QUERY, "candidate_ids": [1.5]}, 422, "candidate_ids.0"),
    "true": ({**QUERY, "candidate_ids": [True]}, 422, "candidate_ids.0"),
    "beyond 64 bits": ({**QUERY, "candidate_ids": [2**64]}, 422, "candidate_ids.0"),
    "an unknown field": ({**QUERY, "users": {}}, 422, "users: Extra inputs are not permitted"),
    "an unknown feature": ({**QUERY, "user": {"age": 3}}, 422, "user has 'age', expected the features"),
    "a short context": ({**QUERY, "context": {"likes_level": [1]}}, 422, "likes_level has shape [1], expected [3]"),
    "a ragged context": ({**QUERY, "context": {"likes_level": [1, [2], 3]}}, 422, "likes_level"),
    "NaN": (b'{"history_ids": [], "candidate_ids": [1], "user": {"likes_level": NaN}}', 422, "user.likes_level"),
    "too many candidates": (many(5_001), 422, "candidate_ids: List should have at most 5000 items"),
    "too many bytes": (many(400_000), 413, "the body has more than 1,048,576 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_request_is_one_json_error(client, name):
    body, status, message = BAD[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/score", content=content, headers={"content-type": "application/json"})
    assert str(answer.status_code).startswith(str(status)), answer.text
    assert answer.json().keys() == {"error"} and message in answer.json()["error"], answer.text
    assert len(answer.content) < 1_000


def test_a_body_of_unknown_length_is_bounded_too(client):
    sent = []

    def endless():
        for _ in range(100):
            sent.append(1)
            yield b" " * (1 << 16)

    answer = client.post("/score", content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413 and answer.json().keys() == {"error"}


def test_other_places_and_methods(client):
    wrong = [(client.get("/nowhere"), 404), (client.get("/score"), 405), (client.post("/health"), 405)]
    for answer, status in [*wrong, (client.post("/score/", json=QUERY), 404)]:
        assert answer.status_code == status and answer.json().keys() == {"error"}


def test_unknown_items_are_scored(client):
    answer = client.post("/score", json={"history_ids": [10**9, -4], "candidate_ids": [2**62, 0]})
    assert answer.status_code == 200 and len(answer.json()["scores"]) == 2


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_port_that_cannot_be_is_one_line(serve, exported, port, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["serve.py", str(exported.folder), "--port", str(port)])
    with pytest.raises(SystemExit, match="2"):
        run_cli(serve.main)
    assert capsys.readouterr().err == f"error: --port is {port}, expected a number from 0 to 65535\n"


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b"])
def test_a_host_that_cannot_be_is_one_line(serve, exported, host, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["serve.py", str(exported.folder), "--host", host])
    with pytest.raises(SystemExit, match="2"):
        run_cli(serve.main)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --host {host}: no address (")


def test_a_service_without_fastapi_says_how_to_get_it(tmp_path):
    code = "import runpy, sys; sys.modules['fastapi'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    command = [sys.executable, "-c", code, str(ROOT / "examples" / "serve.py")]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: fastapi is not installed; pip install fastapi uvicorn\n")
