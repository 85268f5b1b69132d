"""What of a data set may have been read otherwise than it was meant: a sentence each, for the report.

None of it is an error: films may be called 'nan', and a shop may sell one thing twice. Who reads the report decides.
"""

from collections.abc import Iterator

import numpy as np

from mm_fibinet.prepare.catalogue import TAGS
from mm_fibinet.prepare.columns import NO_NUMBER
from mm_fibinet.prepare.dataset import Dataset, Rows
from mm_fibinet.prepare.recipe import Recipe
from mm_fibinet.prepare.vocabulary import BY_TEST, Vocabulary
from mm_fibinet.prepare.writing import has_tags, tag_vocabulary
from mm_fibinet.yaml_reader import shown

NO_ID = (*NO_NUMBER, "nat", "<na>")  # in small letters
BRACKET, SEPARATORS = r"\A[\[({<]", r"[;,|]"
MANY = 0.2  # a share that is no accident
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
    """Of histories that the files have: items of another kind, and the row's own item."""
    if made.strange is not None and made.strange[0]:
        positions, of, example = made.strange
        yield (
            f"histories: {positions:,} of their {of:,} positions have an item that is in neither the log nor the "
            f"catalogue, {shown(example)} for example; check list_separator"
        )
    if not (recipe.history or recipe.user_history):
        return
    for name, rows in made.splits.items():
        if rows.label is None:
            continue
        of_clicks, of_others = (_share_with_own_item(made, rows, rows.label == label) for label in (1, 0))
        if of_clicks - of_others > MANY:
            yield (
                f"histories: the item of {of_clicks:.0%} of {name}'s clicks is in the row's own history, of "
                f"{of_others:.0%} of the other rows; do they hold clicks that came later?"
            )


def _share_with_own_item(made: Dataset, rows: Rows, chosen: np.ndarray) -> float:
    places = np.flatnonzero(chosen)
    places = places[:: max(1, len(places) // SAMPLE)]
    past = made.histories.take(rows.place[places])
    own = [
        item in past.items[start:end] for item, start, end in zip(rows.item[places], past.start, past.end, strict=True)
    ]
    return float(np.mean(own)) if own else 0.0


def _tags(made: Dataset, recipe: Recipe) -> Iterator[str]:
    if made.catalogue is None or not has_tags(recipe):
        return
    names, lengths = tag_vocabulary(made).names, made.catalogue.lists_of(made.items).list.len()
    odd = names.filter(names.str.contains(BRACKET))
    if len(odd):
        yield (
            f"{TAGS}: {len(odd):,} of {len(names):,} begin with a bracket, as {shown(odd[0])}; are they lists that "
            "were printed in a form that is not read?"
        )
    uncut = names.filter(names.str.contains(SEPARATORS))
    if recipe.tags and int(lengths.max() or 0) == len(recipe.tags) and len(uncut) > MANY * len(names):
        yield (
            f"{TAGS}: none was cut by {shown(recipe.tag_separator)}, and {len(uncut):,} of {len(names):,} are as "
            f"{shown(uncut[0])}; check tag_separator"
        )
    cut = int((lengths > recipe.max_tags).sum())
    if cut:
        most = f"{lengths.max():,} at most"
        yield f"{TAGS}: {cut:,} items have more than max_tags, {recipe.max_tags}, {most}; the first ones are kept"


def _features(made: Dataset) -> Iterator[str]:
    for name, share in made.unknown.items():
        if share > MANY:
            yield (
                f"feature {name}: {share:.0%} of its values outside train are none of train's, and have id 0; is it "
                "a number, a moment or an id?"
            )
    for name, share in made.given_away.items():
        if share > MANY:
            yield (
                f"feature {name}: two clicks of one item agree in it {share:.0%} of the way from chance to always, and "
                "a drawn negative has its click's; the model may learn to tell them by it"
            )


def _levels(made: Dataset) -> Iterator[str]:
    """A train row's own label is in its item's level; where items have few rows the level tells it."""
    labelled = [(rows.item, rows.label) for rows in made.splits.values() if rows.label is not None]
    for name, levels in made.levels.items():
        seen, unseen = (_auc(levels[item], label) for item, label in labelled[:2])
        if seen - unseen > MANY:
            yield (
                f"{name}: tells train's labels by itself (AUC {seen:.2f}) and valid's not ({unseen:.2f}): with few "
                "rows an item, a row's own label makes its item's level; leave it out with use_features"
            )


def _auc(values: np.ndarray, label: np.ndarray) -> float:
    """Of small whole numbers [n]; 0.5 where there is one label only."""
    counts = [np.bincount(values[label == of], minlength=int(values.max(initial=0)) + 1) for of in (0, 1)]
    pairs = float(counts[0].sum()) * float(counts[1].sum())
    below = np.cumsum(counts[0]) - counts[0]
    return float((counts[1] * (below + counts[0] / 2)).sum()) / pairs if pairs else 0.5
