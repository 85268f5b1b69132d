"""Models of the Hugging Face hub: what is here is not asked for, and a hub that does not answer is one clear error."""

import socket
import threading

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from small_models import bert_folder

from mm_fibinet.errors import UserError
from mm_fibinet.items import hub
from mm_fibinet.items.encoders import IMAGE_ENCODERS, TEXT_ENCODERS, load_encoder
from mm_fibinet.items.encoding import Encoder, Loading


def load(modality: str, name: str) -> Encoder:
    how = Loading(torch.device("cpu"), 4)
    return load_encoder(modality, name, how, TEXT_ENCODERS if modality == "text" else IMAGE_ENCODERS)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return bert_folder(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def dead_hub(monkeypatch, tmp_path):
    """A hub where nobody answers, and an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


HUB_NAMES = {
    "text": ["paraphrase-multilingual-MiniLM-L12-v2", "sentence_transformers:a/b", "joint:a/b",
             "open_clip:ViT-B-32:laion2b_s34b_b79k"],
    "image": ["timm:resnet18", "joint:a/b", "open_clip:ViT-B-32:openai"],
}  # fmt: skip


@pytest.mark.parametrize(("modality", "name"), [(each, name) for each, names in HUB_NAMES.items() for name in names])
def test_a_hub_that_does_not_answer_is_one_clear_error(dead_hub, modality, name):
    expected = r"is not on this machine, and http://127.0.0.1:9 did not answer within 5 s \(Connect(ion)?Error"
    with pytest.raises(UserError, match=expected) as caught:
        load(modality, name)
    assert str(caught.value).startswith(f"--{modality}_encoder {name}: ") and "\n" not in str(caught.value)


def test_an_offline_hub_is_one_clear_error(dead_hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"a/b is not on this machine, and HF_HUB_OFFLINE is set; unset it"):
        load("text", "a/b")


def test_a_hub_that_never_ends_its_answer_is_left(dead_hub, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []
        threading.Thread(target=lambda: taken.append(server.accept()[0]), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(hub, "SECONDS", 0.3)
        with pytest.raises(UserError, match=r"did not answer within 0 s \(.*Timeout"):
            load("text", "a/b")
    assert taken, "it was asked, once"
    taken[0].close()


@pytest.mark.parametrize("name", ["./folder", "/no/folder", "~/folder", "a/b/c", "two words", "C:\\model"])
def test_a_path_is_never_asked_for(name, bert, monkeypatch):
    """Nor is anything while a model of this machine is loaded."""

    def refuse(*_):
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(UserError, match=r"cannot be loaded|C:.* unknown, expected none, minilm"):
        load("text", name)
    load("text", str(bert))


def test_what_was_downloaded_before_is_loaded_without_asking(dead_hub, bert, tmp_path):
    snapshots = tmp_path / "cache" / "models--a--b" / "snapshots"
    snapshots.mkdir(parents=True)
    asked: list[bool] = []

    def load_model():
        asked.append(constants.HF_HUB_OFFLINE)
        return "model"

    with pytest.raises(UserError, match="did not answer"):
        hub.load("--text_encoder a/b", ("a/b",), load_model, "give a folder")
    (snapshots / "1234").mkdir()
    assert hub.load("--text_encoder a/b", ("a/b",), load_model, "give a folder") == "model" and asked == [True]

    def incomplete():
        raise OSError("no such file in the cache")

    with pytest.raises(UserError, match="did not answer"):
        hub.load("--text_encoder a/b", ("a/b",), incomplete, "give a folder")


def test_sessions_that_remember_are_forgotten(monkeypatch):
    """Of huggingface_hub before 1.0: one that was begun offline would stay so."""
    seen: list[bool] = []
    monkeypatch.setattr(
        huggingface_hub,
        "configure_http_backend",
        lambda: seen.append(constants.HF_HUB_OFFLINE),
        raising=False,
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub.offline():
        assert constants.HF_HUB_OFFLINE
    assert seen == [True, False]
