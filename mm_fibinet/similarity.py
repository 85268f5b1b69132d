"""How like the history the target is, in numbers: per embedding, by tags and by levels.

The numbers compare the items' raw columns, so there is nothing to learn in them. FieldModel makes fields of them, and
for FuxiCTR's own models the plain dictionary of a batch has them as numeric features (mm_fibinet.flat).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mm_fibinet.gather import flat_index, take_rows
from mm_fibinet.precision import autocast_dtype

TOP = 4  # history items nearest to the target
RECENCY = 0.85  # the weight of a history item, to the power of the positions after it
ITEMS_PER_POSITION = 16  # up to this many items a position, all cosines at once are cheaper than gathered vectors
NUMBERS_AT_ONCE = 1 << 19  # of gathered vectors: 2 MB of float32 stay in a core's cache, whatever the history's length
NUMBERS_ON_A_GPU = 1 << 26  # 256 MB: few starts of kernels

OF_EMBEDDING = ("mean", "top", "max", "recent")  # what each function computes, in its order
OF_TAGS = ("shared", "mean", "recent")
OF_LEVEL = ("mean", "recent", "distance", "recent_distance")


def history_weights(real: Tensor) -> Tensor:
    """Weights of the history's positions for a mean and for a recent mean, whose weights fall with age.

    Args:
        real: bool [B, L].

    Returns:
        float [B, 2, L]; each sums to 1 over the real positions, or is zero where there are none.
    """
    age = torch.arange(real.shape[1] - 1, -1, -1, device=real.device).float()
    weights = torch.stack([torch.ones_like(age), RECENCY**age]) * real.unsqueeze(1)
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-12)


def weighted_means(values: Tensor, weights: Tensor) -> Tensor:
    """float [B, L] and [B, 2, L], or [1, 2, L] for all rows, to [B, 2]."""
    if len(weights) == 1:
        return values @ weights[0].T
    return torch.bmm(weights, values.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def cosines(items: Tensor, target: Tensor, history: Tensor) -> Tensor:
    """The cosine of the target with each history item; 0 where one of them has no vector (zeros).

    Vectors of int8 are gathered as they are, a quarter of the memory traffic: a cosine needs no scale. Under autocast
    the products are in its type, of vectors of length 1 (or of whole numbers up to 127, which every type has exactly).

    Args:
        items: float or int8 [M, E].
        target: integer [B], history: integer [B, L]; rows of `items`.

    Returns:
        float32 [B, L], from -1 to 1.
    """
    whole_numbers, all_are_gathered = not items.is_floating_point(), len(items) <= history.numel()
    if _are_few(items, history) or (all_are_gathered and not whole_numbers):
        return unit_cosines(F.normalize(items.float(), dim=-1), target, history)
    own = F.normalize(take_rows(items, target).float(), dim=-1)
    lengths = _lengths(items.float()) if all_are_gathered else None
    found = torch.empty(history.shape, device=items.device)
    for part in _parts(items, history):
        theirs = _vectors(items, history[part])
        theirs = (theirs if whole_numbers else F.normalize(theirs.float(), dim=-1)).to(autocast_dtype(own))
        found[part] = _products(own[part], theirs)
        if whole_numbers:
            found[part] /= _lengths(theirs) if lengths is None else _vectors(lengths, history[part])
    return found.clamp_(-1, 1)  # 1 and what rounding makes of it are one tier


@torch.no_grad()
def unit_cosines(unit: Tensor, target: Tensor, history: Tensor) -> Tensor:
    """`cosines` of items whose vectors are float32 and of length 1 already (or 0)."""
    own = take_rows(unit, target)
    if _are_few(unit, history):
        return (own @ unit.T).float().gather(1, history.long()).clamp(-1, 1)
    found = torch.empty(history.shape, device=unit.device)
    for part in _parts(unit, history):
        found[part] = _products(own[part], _vectors(unit, history[part]).to(autocast_dtype(own)))
    return found.clamp_(-1, 1)


def _are_few(items: Tensor, history: Tensor) -> bool:
    """Whether the cosines with all items cost less than the vectors of the history's."""
    return len(items) <= ITEMS_PER_POSITION * history.shape[1]


def _parts(items: Tensor, history: Tensor) -> list[slice]:
    """The rows of a batch, as many at a time as a cache holds their history's vectors."""
    numbers = NUMBERS_AT_ONCE if items.device.type == "cpu" else NUMBERS_ON_A_GPU
    rows = max(numbers // max(history.shape[1] * items.shape[1], 1), 1)
    return [slice(first, first + rows) for first in range(0, len(history), rows)]


def _vectors(items: Tensor, history: Tensor) -> Tensor:
    """What items have, [M, E] or [M], for a history [b, L]: [b, L, E] or [b, L]."""
    return take_rows(items, history.reshape(-1)).unflatten(0, history.shape)


def _products(own: Tensor, theirs: Tensor) -> Tensor:
    """Products of [B, E] with each of [B, L, E]: [B, L]."""
    # the other way round, products of one column take torch twice as long
    return torch.bmm(own.to(theirs.dtype).unsqueeze(1), theirs.transpose(1, 2)).squeeze(1)


def _lengths(vectors: Tensor) -> Tensor:
    """The vectors' lengths, at least 1e-12: float [..., E] to float32 [...]."""
    return torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float32).clamp(min=1e-12)


def cosine_features(items: Tensor, target: Tensor, history: Tensor, real: Tensor, weights: Tensor) -> Tensor:
    """Mean, top-4 mean, maximum and recent mean of the cosines between the target and the real history items.

    Args:
        items: float or int8 [M, E].
        target: integer [B], history: integer [B, L]; rows of `items`.
        real: bool [B, L].
        weights: of `history_weights`.

    Returns:
        float [B, 4].
    """
    return cosine_numbers(cosines(items, target, history), real, weights)


def cosine_numbers(cosines: Tensor, real: Tensor, weights: Tensor) -> Tensor:
    """What `cosine_features` says of cosines that are there.

    Args:
        cosines: float [B, L].
        real: bool [B, L], or [1, L] where all rows have one history.
        weights: of `history_weights`.

    Returns:
        float [B, 4].
    """
    if not cosines.shape[1]:
        return cosines.new_zeros(len(cosines), 4)
    mean, recent = weighted_means(cosines, weights).split(1, dim=1)
    nearest = cosines.masked_fill(~real, -2).topk(min(TOP, cosines.shape[1]), dim=1).values
    there = nearest > -2
    top = (nearest * there).sum(dim=1, keepdim=True) / there.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.cat([mean, top, (nearest * there)[:, :1], recent], dim=1)


def distinct_tags(tags: Tensor) -> Tensor:
    """Integer [N, W], padding (0) in place of a tag that the row has before: sets are compared."""
    columns = tags.unbind(dim=1)
    again = [(tags[:, :i] == tags[:, i : i + 1]).any(dim=1) for i in range(1, len(columns))]
    later = [column.masked_fill(twice, 0) for column, twice in zip(columns[1:], again, strict=True)]
    return torch.stack([*columns[:1], *later], dim=1)


def tag_features(tags: Tensor, target: Tensor, history: Tensor, weights: Tensor) -> Tensor:
    """The share of history items with a tag of the target's, the mean and recent mean Jaccard index of the tag sets.

    Args:
        tags: integer [M, W], 0 = padding, no tag twice in a row (see `distinct_tags`).
        target, history, weights: as in `cosine_features`.

    Returns:
        float [B, 3].
    """
    own = take_rows(tags, target)
    sizes = (tags != 0).sum(dim=-1)
    both = take_rows(sizes, flat_index(history)).view(history.shape) + sizes.index_select(0, target).unsqueeze(1)
    return _jaccard(_common_tags(own, tags, history), both, weights)


def _common_tags(own: Tensor, tags: Tensor, history: Tensor) -> Tensor:
    """How many tags each history item has of the row's.

    Args:
        own: integer [B, W], the rows' tags.
        tags, history: as in `tag_features`.

    Returns:
        float32 [B, L].
    """
    own = own.masked_fill(own == 0, -1)  # which no item has
    if tags.device.type != "cpu":  # few starts of kernels
        theirs = take_rows(tags, flat_index(history)).view(*history.shape, -1, 1)
        return (theirs == own[:, None, None, :]).any(dim=-1).sum(dim=-1).float()
    common = torch.zeros(history.shape, dtype=torch.int32)  # all comparisons at once would not stay in a cache
    places = flat_index(history)
    for column in tags.T.contiguous():
        theirs = take_rows(column, places).view(history.shape)
        same = theirs == own[:, :1]
        for i in range(1, own.shape[1]):
            same |= theirs == own[:, i : i + 1]
        common += same
    return common.float()


def tag_features_of_one(own: Tensor, theirs: Tensor, vocab_size: int, weights: Tensor) -> Tensor:
    """`tag_features` where all rows have one history: a row of counts for each tag that occurs in it, then look-ups.

    Comparing each of a row's tags with each of every history item's takes longer than all the rest of a model.

    Args:
        own: integer [B, W], the rows' tags, theirs: integer [L, W], the history's.
        vocab_size: all tags are below it.
        weights: float [1, 2, L], of `history_weights`.

    Returns:
        float [B, 3].
    """
    own, theirs = distinct_tags(own), distinct_tags(theirs)
    length, width = theirs.shape
    tags = theirs.reshape(-1).long()
    rows = torch.arange(1, length * width + 1, device=tags.device)
    row_of = torch.zeros(vocab_size, dtype=torch.long, device=tags.device).scatter_reduce(0, tags, rows, "amax")
    positions = torch.arange(length, device=tags.device).unsqueeze(1).expand(length, width).reshape(-1)
    cells = row_of[tags] * length + positions
    counts = torch.zeros((length * width + 1) * length, device=tags.device)
    counts = counts.scatter_add(0, cells, (tags != 0).float()).view(-1, length)  # row 0: of tags that do not occur
    found = row_of[own.long()] * (own != 0)
    common = F.embedding(found[:, 0], counts)
    for i in range(1, own.shape[1]):  # a sum of them stacked takes twice as long
        common = common + F.embedding(found[:, i], counts)
    both = (theirs != 0).sum(dim=-1) + (own != 0).sum(dim=-1, keepdim=True)
    return _jaccard(common, both, weights)


def _jaccard(common: Tensor, both: Tensor, weights: Tensor) -> Tensor:
    """The numbers of `tag_features`.

    Args:
        common: float [B, L], how many of an item's tags are the row's.
        both: integer [B, L], how many tags the item has and how many the row, added up.
        weights: of `history_weights`.
    """
    shared = weighted_means((common > 0).float(), weights)[:, :1]
    return torch.cat([shared, weighted_means(common / (both - common).clamp(min=1), weights)], dim=1)


def level_features(levels: list[Tensor], target: Tensor, history: Tensor, weights: Tensor) -> Tensor:
    """For each level, mean and recent mean over the history of (target - item) and of its absolute value, in tenths.

    Args:
        levels: integer [M] each.
        target, history, weights: as in `cosine_features`.

    Returns:
        float [B, 4 * len(levels)].
    """
    features = [level_numbers(level.index_select(0, target), level[history.long()], weights) for level in levels]
    return torch.cat(features, dim=1)


def level_numbers(own: Tensor, theirs: Tensor, weights: Tensor) -> Tensor:
    """What `level_features` says of one level.

    Args:
        own: integer [B], theirs: integer [B, L], or [1, L] where all rows have one history.
        weights: of `history_weights`.

    Returns:
        float [B, 4].
    """
    difference = (own.unsqueeze(1) - theirs).float() / 10
    return torch.cat([weighted_means(difference, weights), weighted_means(difference.abs(), weights)], dim=1)
