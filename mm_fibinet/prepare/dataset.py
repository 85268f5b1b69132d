"""A recipe's files as the arrays of a data set: ids, splits, histories, negatives and levels, nothing written yet.

Everything that a row may know of clicks is computed here, from arrays that are sorted by user and time: its history
from the clicks before it, its levels from train's rows, its ids of categories from train's values.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from mm_fibinet.errors import UserError
from mm_fibinet.prepare import giveaways, histories, levels, log, splits
from mm_fibinet.prepare.catalogue import KEY, TAGS, Catalogue, read_items, read_users
from mm_fibinet.prepare.embedding import read_embedding
from mm_fibinet.prepare.histories import Histories
from mm_fibinet.prepare.log import CLICKED, EVENT, FEATURE, ITEM, RATING, SPLIT, TIME, USER, Log
from mm_fibinet.prepare.negatives import NegativeSampler
from mm_fibinet.prepare.recipe import SPLITS, WHOLE, Recipe
from mm_fibinet.prepare.vocabulary import Vocabulary
from mm_fibinet.schema import LEVELS
from mm_fibinet.yaml_reader import shown

DEFAULT_NEGATIVES = 4  # a positive, where the log says of nothing that it was not clicked
LIKES, VIEWS = LEVELS
IDS_AT_ONCE = 1 << 24
SIGNS = r"[\[\](){}<>'\",;|\s]+"  # about and between the elements of lists


@dataclass
class Rows:
    """The rows of a split, ordered by user, time and item, which tells nothing of what was clicked.

    Attributes:
        place: int64 [n], the interaction that a row is, or that a negative was drawn for.
        item: int32 [n].
        label: int8 [n]; None for a test whose labels are withheld.
        negatives: how many rows were drawn.
        without: positives whose user has clicked all of train's items, and for which none could be drawn.
        unlabelled: of a split whose labels are withheld, the rows that have none.
    """

    place: np.ndarray
    item: np.ndarray
    label: np.ndarray | None
    negatives: int = 0
    without: int = 0
    unlabelled: int = 0


@dataclass
class Dataset:
    """All that is to be written; ids of users are from 0, of everything else from 1.

    Attributes:
        user: int32 [n], the interactions' users.
        users, items: the vocabularies.
        histories: of the interactions.
        features: {name: int32 [n], ids, or float32 [n] with NaN for nothing}, of the interactions.
        vocabularies: {feature of the interactions: its vocabulary, of train's values}.
        levels: {likes_level, views_level: int64 [items + 1]}.
        splits: the rows to write.
        cold: bool [items + 1], the items that train lacks.
        catalogue, people: tables of items and users, where the recipe has them.
        embedding: float32 [items + 1, N], where the recipe names one.
        dropped, read: see `Log`.
        unknown: {feature of the interactions: the share of its values outside train that train lacks}.
        given_away: {feature of the interactions: how far its value tells the item}, where negatives are drawn.
        strange: of given histories, the positions whose item neither the log nor the catalogue has, and would have
            without the signs in it, `[12` say: how many, of how many, and one of the items.
    """

    user: np.ndarray
    users: Vocabulary
    items: Vocabulary
    histories: Histories
    features: dict[str, np.ndarray]
    vocabularies: dict[str, Vocabulary]
    levels: dict[str, np.ndarray]
    splits: dict[str, Rows]
    cold: np.ndarray
    catalogue: Catalogue | None = None
    people: Catalogue | None = None
    embedding: np.ndarray | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    read: int = 0
    unknown: dict[str, float] = field(default_factory=dict)
    given_away: dict[str, float] = field(default_factory=dict)
    strange: tuple[int, int, str | None] | None = None


def make_dataset(recipe: Recipe, scratch: Path) -> Dataset:
    """Read a recipe's files and compute the data set.

    Args:
        recipe: what to read.
        scratch: a folder for intermediate files.
    """
    read = log.read_log(recipe, scratch)
    catalogue, people = read_items(recipe, scratch), read_users(recipe, scratch)
    users = Vocabulary([read.frame[USER]])
    items = _item_vocabulary(recipe, read, catalogue, people, users)
    users.require_one_form("users")
    items.require_one_form("items")
    ids = [pl.Series(USER, users.ids(read.frame[USER]) - 1), pl.Series(ITEM, items.ids(read.frame[ITEM]))]
    frame = read.frame.with_columns(ids)
    read.frame = pl.DataFrame()  # sorting needs the room
    frame = frame.sort(USER, TIME, maintain_order=True)
    if recipe.timestamp and SPLIT not in frame.columns:  # given splits are left as they are
        frame, repeated = log.without_repeats(frame)
        read.dropped["repeated user, item and time"] = repeated
    user, time, item = (frame[name].to_numpy() for name in (USER, TIME, ITEM))
    split = _assign(recipe, frame, user, time)
    _refuse_empty(recipe, split)
    for table, name, vocabulary in ((catalogue, ITEM, items), (people, USER, users)):
        if table is not None:
            logged = frame[name].unique().to_numpy() - (name == ITEM)
            table.require_any(vocabulary.names.gather(np.sort(logged)))
    clicked = frame[CLICKED].fill_null(0).to_numpy() == 1
    train = split == splits.TRAIN

    rating = frame[RATING].to_numpy()[train] if RATING in frame.columns else None
    counts, means, rated = levels.counts_and_ratings(item[train], rating, len(items) + 1)
    found = {VIEWS: levels.levels(counts, counts > 0)}
    if means is not None and rated is not None and rated.any():
        found = {LIKES: levels.levels(means, rated), **found}
    features, vocabularies, unknown = _features(frame, train)
    past = _histories(recipe, frame, read, people, users, items, clicked, split)
    made = Dataset(
        user, users, items, past, features, vocabularies, found, {}, counts == 0, catalogue, people,
        read_embedding(recipe, items, scratch), read.dropped, read.rows, unknown,
    )  # fmt: skip
    given = past if recipe.history or recipe.user_history else None
    if given is not None:
        made.strange = _strange(given.items, item, items, catalogue)
    made.splits = _rows(recipe, frame, split, clicked, counts, given)
    if recipe.negatives != 0:  # who sets that wants clicks alone
        _refuse_one_label(made.splits["train"])
    if made.splits["train"].negatives:
        made.given_away = giveaways.of_features(features, user, item, clicked & train)
    return made


def _item_vocabulary(
    recipe: Recipe, read: Log, catalogue: Catalogue | None, people: Catalogue | None, users: Vocabulary
) -> Vocabulary:
    """All items that occur: in the log, in given histories and, where asked, in the catalogue."""
    found = [read.frame[ITEM]]
    if read.lists is not None:
        found.append(read.lists[ITEM])
    if people is not None and recipe.user_history:
        found.append(people.lists_of(users).explode())
    if catalogue is not None and recipe.all_items:
        found.append(catalogue.frame["key"])
    return Vocabulary(found)


def _assign(recipe: Recipe, frame: pl.DataFrame, user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """The split of each interaction: uint8 [n]."""
    if WHOLE not in recipe.interactions:
        split = frame[SPLIT].to_numpy()
        return split if "valid" in recipe.interactions else _with_valid(recipe, split, time)
    if recipe.split == "time":
        return splits.by_time(time, recipe.valid, recipe.test)
    if recipe.split == "leave_last_out":
        return splits.leave_last_out(user, time)
    if recipe.split == "random":
        return splits.at_random(len(user), recipe.valid, recipe.test, np.random.default_rng([recipe.seed, 0]))
    return frame[SPLIT].to_numpy()


def _with_valid(recipe: Recipe, split: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Given train and test alone: valid are train's last rows, or some at random where there are no times."""
    split, train = split.copy(), np.flatnonzero(split == splits.TRAIN)
    if recipe.timestamp:
        taken = splits.by_time(time[train], recipe.valid, 0.0) > 0
    else:
        taken = np.random.default_rng([recipe.seed, 0]).random(len(train)) < recipe.valid
    split[train[taken]] = splits.VALID
    return split


def _refuse_empty(recipe: Recipe, split: np.ndarray) -> None:
    counts = np.bincount(split, minlength=3)
    if counts.all():
        return
    empty = " and ".join(name for name, count in zip(SPLITS, counts, strict=True) if not count)
    advice = {
        "time": "too many rows share a moment; change valid and test, or split otherwise",
        "leave_last_out": f"no user has {splits.LEAST_MOMENTS} moments; choose another split",
        "random": "there are too few rows",
    }.get(recipe.split if WHOLE in recipe.interactions else "", "expected rows of each")
    raise UserError(f"{empty} would have no rows: {advice}")


def _refuse_one_label(train: Rows) -> None:
    """Refuse a train split that nothing can be learnt from."""
    if train.label is not None and (train.label == train.label[0]).all():
        why = f" ({train.without:,} clicks are of users who clicked all of train's items)" if train.without else ""
        raise UserError(
            f"all {len(train.label):,} rows of train have the label {train.label[0]}, expected 0 and 1{why}; "
            "change label, or set negatives to draw items that were not clicked"
        )


def _histories(
    recipe: Recipe, frame: pl.DataFrame, read: Log, people: Catalogue | None, users: Vocabulary, items: Vocabulary,
    clicked: np.ndarray, split: np.ndarray,
) -> Histories:  # fmt: skip
    """The interactions' histories: those of the log, or those given for events or users."""
    user = frame[USER].to_numpy()
    if read.lists is not None:
        owner, listed = frame[EVENT].to_numpy(), items.ids(read.lists[ITEM])
        ends = np.cumsum(np.bincount(read.lists[EVENT].to_numpy(), minlength=int(owner.max()) + 1))
    elif people is not None and recipe.user_history:
        lists = people.lists_of(users)
        people.frame = people.frame.drop(TAGS)  # what is wanted of them is taken
        owner, listed = user, items.ids(lists.explode().drop_nulls())
        ends = np.cumsum(lists.list.len().fill_null(0).to_numpy().astype(np.int64))
    else:
        frozen = split if recipe.frozen_histories else None
        return histories.before_rows(user, frame[TIME].to_numpy(), frame[ITEM].to_numpy(), clicked, frozen)
    starts = np.concatenate([[0], ends[:-1]])
    return Histories(listed, starts[owner], ends[owner])


def _strange(
    listed: np.ndarray, logged: np.ndarray, items: Vocabulary, catalogue: Catalogue | None
) -> tuple[int, int, str | None]:
    """See `Dataset.strange`; histories, ids [T], without any item that the log or the catalogue has are refused."""
    known = np.zeros(len(items) + 1, dtype=bool)
    known[logged] = True
    if catalogue is not None:
        known[items.ids(catalogue.frame[KEY])] = True
    known[0] = False
    positions = _counts(listed, len(known))
    unknown = np.flatnonzero((positions > 0) & ~known)
    if len(listed) and not positions[known].any():
        raise UserError(
            f"the histories have none of the log's items, {shown(items.names[int(unknown[0]) - 1])} for example, but "
            f"{shown(items.names[int(logged[0]) - 1])} for example; check list_separator, or is it the same kind of id?"
        )
    names = items.names.gather(unknown - 1)
    parts = pl.DataFrame({"id": unknown, "part": names.str.replace_all(SIGNS, " ").str.split(" ")}).explode("part")
    of_known = items.names.gather(np.flatnonzero(known) - 1)
    odd = parts.filter((pl.col("part") != "") & pl.col("part").is_in(of_known.implode()))["id"].unique().to_numpy()
    example = items.names[int(odd.min()) - 1] if len(odd) else None
    return int(positions[odd].sum()), len(listed), example


def _counts(ids: np.ndarray, number: int) -> np.ndarray:
    """How often each id below `number` is in int32 [T]; in parts, for NumPy counts in a copy twice as wide."""
    counts = np.zeros(number, dtype=np.int64)
    for first in range(0, len(ids), IDS_AT_ONCE):
        counts += np.bincount(ids[first : first + IDS_AT_ONCE], minlength=number)
    return counts


def _features(
    frame: pl.DataFrame, train: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, Vocabulary], dict[str, float]]:
    """The context: ids by the vocabulary of train's values, and numbers; and `Dataset.unknown`."""
    found, vocabularies, unknown = {}, {}, {}
    for column in frame.columns:
        if not column.startswith(FEATURE):
            continue
        name = column.removeprefix(FEATURE)
        if frame[column].dtype == pl.Float32:
            found[name] = frame[column].fill_null(float("nan")).to_numpy()
        else:
            Vocabulary([frame[column]]).require_one_form(f"values of {name}")
            vocabularies[name] = Vocabulary([frame[column].filter(pl.Series(train))])
            found[name] = vocabularies[name].ids(frame[column])
            later = frame[column].is_not_null().to_numpy() & ~train
            unknown[name] = float((found[name][later] == 0).mean()) if later.any() else 0.0
    return found, vocabularies, unknown


def _rows(
    recipe: Recipe, frame: pl.DataFrame, split: np.ndarray, clicked: np.ndarray, counts: np.ndarray,
    given: Histories | None,
) -> dict[str, Rows]:  # fmt: skip
    """The rows of each split with their negatives, in an order that tells nothing.

    Args:
        given: histories that are not the log's clicks; what a user has there is no negative of his.
    """
    user, item, label = frame[USER].to_numpy(), frame[ITEM].to_numpy(), frame[CLICKED]
    number = recipe.negatives
    if number is None:
        number = DEFAULT_NEGATIVES if recipe.label is None and not recipe.impressions else 0
    weights = counts if recipe.sampling == "popularity" else (counts > 0).astype(np.int64)
    sampler = None
    if number:
        owner, had = user[clicked], item[clicked]
        if given is not None:
            more = given.clicks(user)
            owner, had = np.concatenate([owner, more[0]]), np.concatenate([had, more[1]])
        sampler = NegativeSampler(owner, had, weights)
    moment = np.cumsum(splits.group_starts(user, frame[TIME].to_numpy()))
    found = {}
    for at, name in enumerate(SPLITS):
        place = np.flatnonzero(split == at)
        withheld = label.gather(place).null_count()
        rows = Rows(place, item[place], None if withheld else clicked[place].astype(np.int8), unlabelled=withheld)
        if sampler is not None and not withheld:
            rows = _with_negatives(rows, user, number, sampler, np.random.default_rng([recipe.seed, 1 + at]))
        order = np.argsort(moment[rows.place] * len(counts) + rows.item, kind="stable")
        rows.place, rows.item = rows.place[order], rows.item[order]
        rows.label = None if rows.label is None else rows.label[order]
        found[name] = rows
    return found


def _with_negatives(
    rows: Rows, user: np.ndarray, number: int, sampler: NegativeSampler, rng: np.random.Generator
) -> Rows:
    positives = rows.place[rows.label == 1]
    able = sampler.has_any(user[positives])
    place = np.repeat(positives[able], number)
    drawn = sampler.draw(user[place], rng)
    label = rows.label if rows.label is not None else np.zeros(0, dtype=np.int8)
    return Rows(
        np.concatenate([rows.place, place]),
        np.concatenate([rows.item, drawn]),
        np.concatenate([label, np.zeros(len(drawn), dtype=np.int8)]),
        len(drawn),
        int((~able).sum()),
    )
