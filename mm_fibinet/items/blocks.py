"""The blocks that an embedding is fused of: each modality by each encoder that was chosen for it.

With one encoder a modality is one block of its own name, "text"; with several they are "text/minilm" and so on.
"""

import dataclasses
from numbers import Integral
from pathlib import Path
from typing import Any

from mm_fibinet.errors import UserError
from mm_fibinet.items import modalities
from mm_fibinet.items.columns import Vectors
from mm_fibinet.items.contents import Source
from mm_fibinet.items.encoders import load_encoder
from mm_fibinet.items.encoders_text import CHARS_COUNTED, TextEncoder, describe_unknown, sample, unknown_share
from mm_fibinet.items.encoding import Encoder, Loading
from mm_fibinet.items.modalities import Modality, Reading
from mm_fibinet.options import COLUMN, NONE


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A block that takes part: a modality by one of its encoders.

    Attributes:
        block: its name, the modality's where that has one encoder.
        modality: the modality.
        path: where its contents are; None for a column of vectors.
        encoder_name: the encoder.
        prompt, dim: see `Loading`.
    """

    block: str
    modality: Modality
    path: str | Path | None
    encoder_name: str
    prompt: str | None = None
    dim: int | None = None


def choose(given: dict[str, Any], optional: bool = False) -> list[Chosen]:
    """A block for each encoder of each modality whose encoder is not none; at least one unless that is optional."""
    known = [option for each in modalities.MODALITIES for option in each.options]
    for name in given:
        if name not in known:
            raise TypeError(f"build() got an unexpected argument {name!r}, expected one of {', '.join(known)}")
    chosen = []
    for each in modalities.MODALITIES:
        encoders = _encoder_names(each, given.get(each.encoder_option))
        path, prompt, dim = (given.get(name) for name in (each.source, each.prompt_option, each.dim_option))
        _check_asked(each, prompt, dim)
        if encoders == [NONE]:
            continue
        if path is None and not all(encoder.startswith(COLUMN) for encoder in encoders):
            raise UserError(
                f"--{each.source} is missing; give it, or leave the modality out with --{each.encoder_option} {NONE}"
            )
        for encoder in encoders:
            block = each.name if len(encoders) == 1 else f"{each.name}/{encoder}"
            chosen.append(Chosen(block, each, path, encoder, prompt, dim))
    if not chosen and not optional:
        options = " or ".join(f"--{each.encoder_option} {NONE}" for each in modalities.MODALITIES)
        raise UserError(f"all encoders are {NONE}, expected at least one; drop {options}")
    return chosen


def tables(given: dict[str, Any], item_info: str | Path) -> list[str | Path]:
    """Where columns of vectors are looked for: the modalities' sources that are parquet, and item_info."""
    sources = [given.get(each.source) for each in modalities.MODALITIES]
    return [*(path for path in sources if path is not None and _is_parquet(Path(path))), item_info]


def open_sources(chosen: list[Chosen], reading: Reading, tables: list[str | Path]) -> list[Source]:
    """Each block's source; encoders of one modality read the same, but for columns of vectors, from `tables`."""
    opened: dict[str, Source] = {}
    sources: list[Source] = []
    for each in chosen:
        if each.encoder_name.startswith(COLUMN):
            sources.append(Vectors(each.encoder_name.removeprefix(COLUMN), tables, reading.num_items))
            continue
        if each.modality.name not in opened:
            assert each.path is not None
            opened[each.modality.name] = each.modality.read(each.path, reading)
        sources.append(opened[each.modality.name])
    return sources


def load(chosen: Chosen, source: Source, how: Loading) -> Encoder:
    """A block's encoder; `how` without what was asked of this one."""
    how = dataclasses.replace(how, prompt=chosen.prompt, dim=chosen.dim, source=source)
    return load_encoder(chosen.modality.name, chosen.encoder_name, how, chosen.modality.encoders())


def described(encoder: Encoder, source: Source) -> tuple[dict[str, Any], list[str]]:
    """What a source says of itself and, of texts, how much of them the encoder's vocabulary does not have."""
    facts, notes = source.facts(), source.notes()
    if isinstance(encoder, TextEncoder):
        entries = sample(list(next(iter(source.views.values()))))
        share = unknown_share(encoder, [entry.load().decode("utf-8")[:CHARS_COUNTED] for entry in entries])
        if share is not None:
            facts = facts | {"unknown_tokens": round(share, 4)}
            notes = [*notes, describe_unknown(share)] if facts["unknown_tokens"] else notes
    return facts, notes


def _encoder_names(modality: Modality, given: Any) -> list[str]:
    """The encoders that were asked for, each once."""
    names = [str(name) for name in (given if isinstance(given, list | tuple) else [given]) if name]
    names = names or [modality.default]
    option = f"--{modality.encoder_option} {' '.join(names)}"
    if NONE in names and len(names) > 1:
        raise UserError(f"{option}: {NONE} leaves the modality out, expected it alone or not at all")
    if len(set(names)) < len(names):
        raise UserError(f"{option}: expected each encoder once")
    return names


def _check_asked(modality: Modality, prompt: Any, dim: Any) -> None:
    """A prompt is a text, and a vector's numbers to keep are a whole number."""
    if prompt is not None and not isinstance(prompt, str):
        raise UserError(f"--{modality.prompt_option} {prompt!r}: expected words")
    if dim is not None and (isinstance(dim, bool) or not isinstance(dim, Integral) or dim < 1):
        raise UserError(f"--{modality.dim_option} {dim!r}: expected a whole number, 1 or more")


def _is_parquet(path: Path) -> bool:
    """Whether a path is a parquet file or a folder of such."""
    return path.suffix.lower() == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))
