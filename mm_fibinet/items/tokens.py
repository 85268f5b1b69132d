"""Texts to the tokens that a sentence-transformers model would make of them, many texts at a time.

A model's own way from texts to tensors takes longer than a small network on a GPU: it looks at what kind of content
each one is, and a text whose length is asked for beforehand is cut twice. Here the tokenizer inside it, which works
outside of Python, cuts a text once: its tokens are counted, to find texts of one padded length, and are what the
network then gets.

The tokenizer is a copy, so that no setting of the model's own (whether it pads) changes under the hands of a thread. It
is asked only where it gives exactly what the model makes of texts of all kinds (PROBES).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
# Letters, signs, white space, no token, more than a step; one that is cut is made for the model.
PROBES = ("A title: 10 ways, 2nd part!", " ÅNGSTRÖM  naïve\t漢字 🙂\n", "", "some words more " * 6)


class Tokens:
    """A copy of the tokenizer inside one of transformers.

    Args:
        tokenizer: of transformers, one that has such inside.
        longest: the tokens that the model reads at most.
        step: texts are padded to a multiple of it.
        prompt: what comes before each text.

    Raises:
        Exception: of any kind; the tokenizer cannot be copied.
    """

    def __init__(self, tokenizer: Any, longest: int, step: int, prompt: str | None):
        from tokenizers import Tokenizer

        inside = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        inside.no_padding()
        inside.enable_truncation(longest, direction=tokenizer.truncation_side)
        self._encode = getattr(inside, "encode_batch_fast", inside.encode_batch)  # since tokenizers 0.20
        self._pad_left = tokenizer.padding_side == "left"
        self._pad_id = tokenizer.pad_token_id
        self._prompt = prompt or ""
        self._step = step
        self.others: dict[str, Any] = {}  # what else the model hands its network, the same with every batch
        self.names: tuple[str, ...] = (IDS, MASK, TYPES)

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's tokens."""
        return [encoding.ids for encoding in self._encode([self._prompt + text.strip() for text in texts])]

    def padded(self, tokens: Sequence[int]) -> int:
        """Their number when they are padded."""
        return math.ceil(len(tokens) / self._step) * self._step

    def tensors(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """What the network gets of some texts' tokens: int64 [B, the longest one's padded number] each."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        width = self.padded(range(lengths.max()))
        places = np.arange(width)
        filled = places >= width - lengths[:, None] if self._pad_left else places < lengths[:, None]
        ids = np.full(filled.shape, self._pad_id, np.int64)
        ids[filled] = np.fromiter(itertools.chain.from_iterable(rows), np.int64, int(lengths.sum()))
        made = {IDS: ids, MASK: filled.astype(np.int64), TYPES: np.zeros_like(ids)}
        return {name: torch.from_numpy(made[name]) for name in self.names}


def tokens_of(
    tokenizer: Any, longest: int | None, step: int, prompt: str | None, tensors: Callable[[list[str]], dict[str, Any]]
) -> Tokens | None:
    """A model's tokens, where they can be made so.

    Args:
        tokenizer: the model's.
        longest, step, prompt: of `Tokens`; None for a model that tells no longest text.
        tensors: the model's own way from texts to what its network gets.

    Returns:
        None where the tokenizer has none inside, or where that gives anything else.
    """
    if longest is None or getattr(tokenizer, "backend_tokenizer", None) is None:
        return None
    try:
        tokens = Tokens(tokenizer, longest, step, prompt)
        expected = tensors([PROBES[0]])
        tokens.names = tuple(name for name in tokens.names if torch.is_tensor(expected.get(name)))
        tokens.others = {name: value for name, value in expected.items() if name not in tokens.names}
        batches = [*([probe] for probe in PROBES), ["word " * (longest + 8)], list(PROBES)]
        return tokens if all(_same(tokens, batch, tensors(batch)) for batch in batches) else None
    except Exception:  # what else there is of tokenizers, and of what models hand their networks
        return None


def _same(tokens: Tokens, texts: list[str], expected: dict[str, Any]) -> bool:
    """Whether a batch becomes exactly what the model makes of it."""
    made = tokens.tensors(tokens.read(texts))
    rest = {name: value for name, value in expected.items() if name not in made}
    return rest == tokens.others and all(
        value.dtype == expected[name].dtype and torch.equal(value, expected[name]) for name, value in made.items()
    )
