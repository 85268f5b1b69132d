"""From modality features to the embedding columns of item_info: which fusion, and what it learns from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mm_fibinet.errors import UserError
from mm_fibinet.items.clicks import Clicks, beside, read_clicks
from mm_fibinet.items.features import Features
from mm_fibinet.items.fusion import AUTO, CLICK_FUSIONS, FUSIONS, MIX, NAMES, candidates, choose
from mm_fibinet.items.linear import Fused, pca, require_one_space, require_two
from mm_fibinet.items.mix import parse_weights
from mm_fibinet.items.modalities import Modality

FUSED_PREFIX = "item_emb"


@dataclass(frozen=True)
class Fusing:
    """How features are fused.

    Attributes:
        fusion: one of NAMES.
        emb_dim: numbers an item.
        seed: of what is random.
        per_modality: each modality's PCA is a column, too.
        train: the split whose clicks item2vec and contrastive learn from.
        valid: the split that auto chooses on, and whose clicks `train` must not know.
        users: user_info, where the histories of both are there.
        mix: {column: weight} of the fusion mix.
        also: further fusions, each a column of its own.
    """

    fusion: str
    emb_dim: int
    seed: int = 0
    per_modality: bool = True
    train: str | Path | None = None
    valid: str | Path | None = None
    users: str | Path | None = None
    mix: Mapping[str, float] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    @property
    def inputs(self) -> list[str | Path | None]:
        """The files that are read."""
        return [self.train, self.valid, self.users]

    def read_clicks(self, num_items: int) -> Clicks | None:
        """The training split's clicks, where there is something to learn; the ids of item_info are 0 .. num_items."""
        return None if self.train is None else read_clicks(self.train, num_items, self.valid, self.users)


@dataclass(frozen=True)
class Columns:
    """What was fused.

    Attributes:
        embeddings: {column: float32 [n, emb_dim]}, the fusion first, then each modality alone, then further fusions.
        fusion: the name of the one that was taken.
        explained, facts: of `Fused`.
        tried: {fusion: AUC on valid}, where it was chosen.
        also: {further fusion: its facts}.
    """

    embeddings: dict[str, np.ndarray]
    fusion: str
    explained: dict[str, float]
    facts: dict[str, float]
    tried: dict[str, float]
    also: dict[str, dict[str, float]]

    @property
    def fused(self) -> np.ndarray:
        """The fusion's embedding."""
        return next(iter(self.embeddings.values()))


def make_fusing(
    fusion: str | None,
    emb_dim: int,
    seed: int,
    per_modality: bool,
    train: str | Path | None = None,
    valid: str | Path | None = None,
    mix: list[str] | dict[str, float] | None = None,
    users: str | Path | None = None,
    also: str | list[str] | None = None,
) -> Fusing:
    """The options, checked: what a fusion needs is there, and nothing is given that it does not read.

    Raises:
        UserError: says what is missing or in vain.
    """
    fusion = fusion or (MIX if mix else "pca")
    if fusion not in NAMES:
        raise UserError(f"--fusion {fusion}: unknown, expected {' or '.join(NAMES)}")
    if (fusion == MIX) != bool(mix):
        expected = f"expected --mix COLUMN=WEIGHT ... with --fusion {MIX}, and only there"
        raise UserError(f"--fusion {fusion} with{'' if mix else 'out'} --mix: {expected}")
    further = [also] if isinstance(also, str) else list(also or ())
    _check_also(further, fusion)
    learned = [name for name in (fusion, *further) if name in CLICK_FUSIONS]
    if learned and train is None:
        option = "--fusion" if learned[0] == fusion else "--also"
        raise UserError(f"{option} {learned[0]}: --train is missing, expected the training split, which it learns from")
    if fusion == AUTO and valid is None:
        valid = beside(train) if train is not None else None
        if valid is None:
            raise UserError(f"--fusion {AUTO}: --valid is missing, expected the validation split, which it chooses on")
    if not learned and fusion != AUTO:
        _refuse_in_vain(fusion, train, valid, users)
    weights = parse_weights(mix) if mix else {}
    return Fusing(fusion, emb_dim, seed, per_modality, train, valid, users, weights, tuple(further))


def _check_also(also: list[str], fusion: str) -> None:
    """Further fusions are such as can be columns of their own, each once."""
    known = [*FUSIONS, *CLICK_FUSIONS]
    for place, name in enumerate(also):
        if name not in known:
            raise UserError(f"--also {name}: unknown, expected {' or '.join(known)}")
        if name == fusion or name in also[:place]:
            raise UserError(f"--also {name}: it is there already, expected each fusion once, and not that of --fusion")


def _refuse_in_vain(fusion: str, train: str | Path | None, valid: str | Path | None, users: str | Path | None) -> None:
    """Refuse splits where no fusion reads any."""
    if train is not None:
        learning = " or ".join(CLICK_FUSIONS)
        raise UserError(
            f"--train {train}: --fusion {fusion} learns nothing from clicks; choose {learning}, or one of these "
            "for --also, or leave --train out"
        )
    if valid is not None:
        raise UserError(f"--valid {valid}: --fusion {fusion} does not read it; choose {AUTO}, or leave --valid out")
    if users is not None:
        raise UserError(
            f"--user_info {users}: --fusion {fusion} reads no histories; leave it out, or name the split that they are "
            "of with --train"
        )


def check_emb_dim(fusing: Fusing, num_items: int, blocks: dict[str, int], groups: dict[Modality, list[str]]) -> None:
    """Refuse more numbers an item than the features can have, before anything is encoded.

    Args:
        fusing: how they will be fused.
        num_items: n.
        blocks: the width of each block of features, by name.
        groups: the names of each modality's blocks.
    """
    if not blocks:
        if fusing.also:
            raise UserError(f"--also {fusing.also[0]}: all encoders are none, expected one or more to fuse")
        return
    fusions = (fusing.fusion, *fusing.also)
    if "mean" in fusions:
        require_one_space(blocks, fusing.emb_dim)
    if "cca" in fusions:
        require_two(blocks)
    widths = {modality.name: sum(blocks[name] for name in names) for modality, names in groups.items()}
    most, alone = min(num_items - 1, sum(widths.values())), min(num_items - 1, *widths.values())
    if fusing.fusion == MIX:
        most = alone
    if fusing.emb_dim <= (alone if fusing.per_modality else most):
        return
    joined = " or ".join(widths) if fusing.per_modality else " + ".join(widths)
    way_out = f"choose --emb_dim {alone if fusing.per_modality else most} or less"
    if fusing.emb_dim <= most:
        way_out += ", or --fused_only, which leaves out the columns of each modality alone"
    raise UserError(
        f"--emb_dim is {fusing.emb_dim}, but {num_items} items and {joined} features have at most "
        f"{alone if fusing.per_modality else most} independent directions; {way_out}"
    )


def fuse(
    fusing: Fusing,
    features: dict[str, Features],
    groups: dict[Modality, list[str]],
    clicks: Clicks | None,
    device: torch.device,
    mixed: np.ndarray | None = None,
) -> Columns:
    """The embedding of all modalities, the PCA of each alone, and further fusions.

    Args:
        fusing: how.
        features: by block, over the same n items.
        groups: the names of each modality's blocks, which make a column of their own.
        clicks: of `Fusing.read_clicks`.
        device: where what learns is trained.
        mixed: of `mix_columns`, where that is the fusion.

    Raises:
        UserError: the features have too few independent directions, or the clicks cannot be learned from.
    """
    if mixed is not None:
        name, fused, tried = MIX, Fused(mixed), {}
    else:
        name, fused, tried = _fuse_features(fusing, features, clicks, device)
    embeddings = {f"{FUSED_PREFIX}_d{fusing.emb_dim}": fused.embedding}
    for modality, blocks in groups.items() if fusing.per_modality else ():
        column = f"{modality.prefix}_d{fusing.emb_dim}"
        try:
            embeddings[column] = pca({name: features[name] for name in blocks}, fusing.emb_dim).embedding
        except UserError as error:
            raise UserError(f"{column}: {error}; or leave such columns out with --fused_only") from error
    also = {}
    for further in fusing.also:
        result = _fuse_by(further, fusing, features, clicks, device)
        embeddings[f"{further}_emb_d{fusing.emb_dim}"] = result.embedding
        also[further] = result.facts
    return Columns(embeddings, name, fused.explained, fused.facts, tried, also)


def _fuse_by(
    name: str, fusing: Fusing, features: dict[str, Features], clicks: Clicks | None, device: torch.device
) -> Fused:
    """What one fusion gives."""
    if name in FUSIONS:
        return FUSIONS[name](features, fusing.emb_dim, fusing.seed)
    assert clicks is not None  # make_fusing has seen to it
    return CLICK_FUSIONS[name](features, fusing.emb_dim, fusing.seed, clicks, device)


def _fuse_features(
    fusing: Fusing, features: dict[str, Features], clicks: Clicks | None, device: torch.device
) -> tuple[str, Fused, dict[str, float]]:
    """The fusion's name, what it gives, and where it is chosen each one's AUC."""

    def of(name: str) -> Fused:
        return _fuse_by(name, fusing, features, clicks, device)

    if fusing.fusion != AUTO:
        return fusing.fusion, of(fusing.fusion), {}
    assert fusing.valid is not None
    widths = {name: each.width for name, each in features.items()}
    num_items = len(next(iter(features.values())).present)
    return choose(candidates(widths, clicks is not None), of, fusing.valid, num_items, fusing.users)


def facts_of(columns: Columns) -> dict[str, Any]:
    """For the manifest: the fusion that was taken, and what it found."""
    return {
        "fusion": columns.fusion,
        **({"chosen_by_auc_on_valid": columns.tried} if columns.tried else {}),
        **({"fusion_facts": columns.facts} if columns.facts else {}),
        **({"also": columns.also} if columns.also else {}),
    }
