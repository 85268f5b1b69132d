"""What of a data set may have been read otherwise than it was meant: a sentence each, for the report.

None of it is an error: films may be called 'nan', and a shop may sell one thing twice. Who reads the report decides.
"""

from collections.abc import Iterator

import numpy as np

from mm_fibinet.prepare.catalogue import TAGS
from mm_fibinet.prepare.columns import NO_NUMBER
from mm_fibinet.prepare.dataset import LIKES, Dataset, Rows
from mm_fibinet.prepare.recipe import Recipe
from mm_fibinet.prepare.vocabulary import BY_TEST, Vocabulary
from mm_fibinet.prepare.writing import has_tags, tag_vocabulary
from mm_fibinet.yaml_reader import shown

NO_ID = (*NO_NUMBER, "nat", "<na>")  # in small letters
BRACKET, SEPARATORS = r"\A[\[({<]", (";", ",", "|")
MANY, HALF, NEARLY_ALL = 0.2, 0.5, 0.95  # shares that are no accident
SAMPLE = 5_000  # rows


def doubts(made: Dataset, recipe: Recipe) -> list[str]:
    """All that there are."""
    found = [*_ids(made.users, "users"), *_ids(made.items, "items"), *_labels(made), *_histories(made, recipe)]
    return [*found, *_tags(made, recipe), *_features(made), *_levels(made)]


def _ids(vocabulary: Vocabulary, kind: str) -> Iterator[str]:
    """Ids that programs write where there is none; in all rows that have one they are one user, or one item."""
    names = vocabulary.names.str.strip_suffix(BY_TEST).unique().sort()
    words = list(map(shown, names.filter(names.str.to_lowercase().is_in(NO_ID))))
    if words:
        yield (
            f"{kind}: {', '.join(words)} among them; if that stands for none, set missing: [{', '.join(words)}] beside "
            "the table's files"
        )


def _labels(made: Dataset) -> Iterator[str]:
    for name, rows in made.splits.items():
        if rows.unlabelled and rows.unlabelled < len(rows.place):
            yield (
                f"labels: {rows.unlabelled:,} of the {len(rows.place):,} rows of {name} have none, so those of all are "
                "withheld; leave these rows out for a test that can be scored here"
            )


def _histories(made: Dataset, recipe: Recipe) -> Iterator[str]:
    """Of histories that the files have: ids with signs of the list about them, and the row's own click."""
    if made.strange is not None and made.strange[0]:
        positions, of, example = made.strange
        yield (
            f"histories: {positions:,} of their {of:,} positions have an item that nothing else has, but for the signs "
            f"in it, {shown(example)} for example; are the lists cut as they were written?"
        )
    if not (recipe.history or recipe.user_history):
        return
    for name, rows in made.splits.items():
        if rows.label is None or not rows.label.any():
            continue
        share = _share_with_own_item(made, rows, rows.label == 1)
        if share > NEARLY_ALL:
            yield (
                f"histories: the item of {share:.0%} of {name}'s clicks is in the row's own history; do they hold the "
                "clicks that are to be predicted?"
            )


def _share_with_own_item(made: Dataset, rows: Rows, chosen: np.ndarray) -> float:
    places = np.flatnonzero(chosen)
    places = places[:: max(1, len(places) // SAMPLE)]
    past = made.histories.take(rows.place[places])
    of_rows = zip(rows.item[places], past.start, past.end, strict=True)
    return float(np.mean([item in past.items[start:end] for item, start, end in of_rows]))


def _tags(made: Dataset, recipe: Recipe) -> Iterator[str]:
    if made.catalogue is None or not has_tags(recipe):
        return
    names, lengths = tag_vocabulary(made).names, made.catalogue.lists_of(made.items).list.len()
    odd = names.filter(names.str.contains(BRACKET))
    if len(odd) > MANY * len(names):
        yield (
            f"{TAGS}: {len(odd):,} of {len(names):,} begin with a bracket, as {shown(odd[0])}; are they lists that "
            "were printed in a form that is not read?"
        )
    for separator in SEPARATORS if recipe.tags and int(lengths.max() or 0) == len(recipe.tags) else ():
        uncut = names.filter(names.str.contains(separator, literal=True))
        parts = uncut.str.split(separator).explode()
        if len(uncut) > MANY * len(names) and parts.n_unique() < len(parts) / 2:
            yield (
                f"{TAGS}: none was cut by {shown(recipe.tag_separator)}, and {len(uncut):,} of {len(names):,} are as "
                f"{shown(uncut[0])}; check tag_separator"
            )
    cut = int((lengths > recipe.max_tags).sum())
    if cut and recipe.max_tags == Recipe.model_fields["max_tags"].default:
        most = f"{lengths.max():,} at most"
        yield f"{TAGS}: {cut:,} items have more than max_tags, {recipe.max_tags}, {most}; the first ones are kept"


def _features(made: Dataset) -> Iterator[str]:
    for name, share in made.unknown.items():
        if share > MANY:
            yield (
                f"feature {name}: {share:.0%} of its values outside train are none of train's, and have id 0, "
                "of which nothing is learnt"
            )
    for name, share in made.given_away.items():
        if share > HALF:
            yield (
                f"feature {name}: tells the row's item, {share:.0%} of the way from chance to certainty, and a drawn "
                "negative has its click's, which gives it away; what is the item's own belongs in item_features"
            )


def _levels(made: Dataset) -> Iterator[str]:
    """A train row's own label is in its item's mean; where items have few rows the level tells it."""
    train = made.splits["train"]
    if LIKES not in made.levels or train.label is None:
        return
    label = train.label.astype(np.int64)
    rows, clicks = np.bincount(train.item), np.bincount(train.item, weights=label)
    mean = clicks[train.item] / rows[train.item]
    without = np.where(rows > 1, rows - 1, 1)[train.item]
    without_own = np.where(rows[train.item] > 1, (clicks[train.item] - label) / without, label.mean())
    seen, unseen = _auc(mean, label), _auc(without_own, label)
    if seen - unseen > MANY:
        yield (
            f"{LIKES}: holds much of its row's own label in train, where items have few rows: their mean label tells "
            f"it with AUC {seen:.2f}, the mean of their other rows with {unseen:.2f}; leave it out with use_features"
        )


def _auc(values: np.ndarray, label: np.ndarray) -> float:
    """Of numbers [n] for labels of 0 and 1 [n]; 0.5 where there is one label only."""
    ranks = np.unique(values, return_inverse=True)[1]
    counts = [np.bincount(ranks[label == of], minlength=int(ranks.max(initial=0)) + 1) for of in (0, 1)]
    pairs = float(counts[0].sum()) * float(counts[1].sum())
    below = np.cumsum(counts[0]) - counts[0]
    return float((counts[1] * (below + counts[0] / 2)).sum()) / pairs if pairs else 0.5
