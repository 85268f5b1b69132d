"""Fusion learned from clicks, the classic way: item2vec, and a student that says it of items without clicks.

Vectors of co-clicked items (skip-gram with negative sampling over users' sets of clicks) know nothing of cold items,
and of warm ones too much: a training row's own click has shaped its target's vector, so that a model trained on them
trusts them more than it may on new rows. So they do not go into the table: a ridge regression learns to tell them from
the content, and every item, warm or cold, gets what that student says.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import eigh
from torch import Tensor, nn

from mm_fibinet.errors import UserError
from mm_fibinet.items.clicks import Clicks, pair_batches, reproducible
from mm_fibinet.items.features import BLOCK_ROWS, Features, present_in_any
from mm_fibinet.items.joined import one_thread, summed
from mm_fibinet.items.linear import Fused, components_per_modality, with_unit_variance

BATCH, PAIRS = 1024, 2_500_000  # pairs a step, and in all (but each click once)
NEGATIVES, SHARED = 5, 256  # negatives a pair, and drawn a step, for all its pairs
LEARNING_RATE = 0.01
INPUTS = 512  # principal components that the student reads, the modalities' together
PENALTIES = np.logspace(-3, 3, 13)  # of the ridge, in units of the mean variance of an input
LEAST_CLICKS = 5  # of an item that the student learns from, where there are such items


def item2vec(modalities: dict[str, Features], emb_dim: int, seed: int, clicks: Clicks, device: torch.device) -> Fused:
    """What the content says of an item's item2vec vector.

    Args:
        modalities: by name, over the same n items.
        emb_dim: numbers an item.
        seed: of the vectors, the pairs and their order.
        clicks: of the training split.
        device: where the vectors are learned; on a CPU, in one thread, the same input gives the same bytes.

    Raises:
        UserError: the features have fewer than emb_dim independent directions, or too few items have clicks.
    """
    inputs = components_per_modality(modalities, emb_dim, max(INPUTS, emb_dim))
    present = present_in_any(modalities.values())
    counts = clicks.counts
    taught = present & (counts >= min(LEAST_CLICKS, counts.max()))
    if taught.sum() < 3:
        raise UserError(f"item2vec: {int(taught.sum())} items have content and clicks in --train, expected at least 3")
    said, error = ridge(inputs, skip_gram(clicks, emb_dim, seed, device), taught)
    said[~present] = 0
    return Fused(with_unit_variance(said), facts={"items_learned_from": float(taught.sum()), "unexplained": error})


def skip_gram(clicks: Clicks, dim: int, seed: int, device: torch.device) -> np.ndarray:
    """Vectors of items, near where the same users clicked both (item2vec, Barkan and Koenigstein 2016).

    Negatives are drawn in proportion to clicks to the power of 3/4, once for all pairs of a step: the expectation of
    word2vec's loss (Mikolov et al. 2013, eq. 4) as two matrix products.

    Returns:
        float32 [n, dim]; an item without clicks has the small random vector that it began with.
    """
    often = torch.from_numpy(clicks.counts).double() ** 0.75
    with reproducible(seed, device):
        centres = nn.Embedding(clicks.num_items, dim, sparse=True)
        contexts = nn.Embedding(clicks.num_items, dim, sparse=True)
        nn.init.normal_(centres.weight, std=dim**-0.5)
        nn.init.zeros_(contexts.weight)
        cumulative = often.cumsum(0) / often.sum()
        centres.to(device), contexts.to(device)
        tables = [centres.weight, contexts.weight]
        optimizer = torch.optim.SparseAdam(tables, lr=LEARNING_RATE)
        total = max(PAIRS, len(clicks.items))
        drawn = 0
        for pair in pair_batches(clicks, BATCH, total, seed):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * max(1 - drawn / total, 1e-3)
            drawn += len(pair[0])
            negatives = torch.searchsorted(cumulative, torch.rand(SHARED, dtype=torch.float64))
            negatives = negatives.clamp(max=clicks.num_items - 1)
            loss = negative_sampling(
                centres(torch.from_numpy(pair[0]).to(device)),
                contexts(torch.from_numpy(pair[1]).to(device)),
                contexts(negatives.to(device)),
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return centres.weight.detach().cpu().numpy()


def negative_sampling(centres: Tensor, contexts: Tensor, negatives: Tensor) -> Tensor:
    """The mean over pairs of -log s(u v) - NEGATIVES * mean of log s(-u w) over the negatives, s the logistic function.

    Args:
        centres, contexts: float [B, D], u and v of each pair.
        negatives: float [S, D], w of all pairs.
    """
    near = F.logsigmoid((centres * contexts).sum(dim=1))
    far = F.logsigmoid(-centres @ negatives.T).mean(dim=1)
    return -(near + NEGATIVES * far).mean()


@one_thread
def ridge(inputs: np.ndarray, targets: np.ndarray, taught: np.ndarray) -> tuple[np.ndarray, float]:
    """A ridge regression of vectors on inputs, with the penalty that tells items best that it has not seen.

    What it would say of each item had it learned from all others has a closed form: residuals divided by one minus the
    item's leverage (Hastie et al. 2009, eq. 7.64), so every penalty is judged on all items, exactly, for the price of
    one fit.

    Args:
        inputs: float32 [n, k].
        targets: float32 [n, d].
        taught: bool [n], the items to learn from.

    Returns:
        float32 [n, d], what it says of all items, from the mean of the targets; and the share of the targets' variance
        that it does not explain of items left out.
    """
    rows = np.flatnonzero(taught)

    def blocks():
        for start in range(0, len(rows), BLOCK_ROWS):
            part = rows[start : start + BLOCK_ROWS]
            yield inputs[part].astype(np.float64), targets[part].astype(np.float64)

    input_mean = summed(x.sum(axis=0) for x, _ in blocks()) / len(rows)
    target_mean = summed(y.sum(axis=0) for _, y in blocks()) / len(rows)
    variances, axes = eigh(summed((x - input_mean).T @ (x - input_mean) for x, _ in blocks()))
    variances = np.maximum(variances, 0)
    moments = summed(((x - input_mean) @ axes).T @ (y - target_mean) for x, y in blocks())
    penalties = PENALTIES * variances.mean()
    errors = np.zeros(len(penalties))
    for x, y in blocks():
        x, y = (x - input_mean) @ axes, y - target_mean
        for place, penalty in enumerate(penalties):
            shrunk = 1 / (variances + penalty)
            leverage = np.square(x) @ shrunk + 1 / len(rows)
            errors[place] += np.square((y - x @ (moments * shrunk[:, None])) / (1 - leverage)[:, None]).sum()
    best = int(errors.argmin())
    weights = axes @ (moments / (variances + penalties[best])[:, None])
    said = np.empty((len(inputs), targets.shape[1]), dtype=np.float32)
    for start in range(0, len(inputs), BLOCK_ROWS):
        said[start : start + BLOCK_ROWS] = (inputs[start : start + BLOCK_ROWS] - input_mean) @ weights
    spread = sum(float(np.square(y - target_mean).sum()) for _, y in blocks())
    return said, float(errors[best] / spread)
