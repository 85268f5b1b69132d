"""What a build found and made: rows and why some were left out, users, items, lengths, clicks, what is cold."""

import numpy as np

from mm_fibinet.prepare.catalogue import KEY, Catalogue
from mm_fibinet.prepare.dataset import Dataset
from mm_fibinet.prepare.doubts import doubts
from mm_fibinet.prepare.recipe import Recipe
from mm_fibinet.prepare.vocabulary import Vocabulary


def report(made: Dataset, recipe: Recipe, images: dict[str, int] | None) -> dict:
    """The facts, as report.json holds them."""
    found: dict = {
        "rows_read": made.read,
        "rows_left_out": {reason: count for reason, count in made.dropped.items() if count},
        "users": len(made.users),
        "items": len(made.items),
        "items_not_in_train": int(made.cold[1:].sum()),
    }
    if made.catalogue is not None:
        known, left_out = _of_table(made.catalogue, made.items, "items")
        found |= {"items_not_in_catalogue": len(made.items) - known, "catalogue_rows_left_out": left_out}
    if made.people is not None:
        known, left_out = _of_table(made.people, made.users, "users")
        found |= {"users_not_in_their_table": len(made.users) - known, "users_rows_left_out": left_out}
    if made.embedding is not None:
        found["items_without_embedding"] = int((~made.embedding[1:].any(axis=1)).sum())
    if images is not None:
        found["images"] = images
    found["categories"] = {name: len(vocabulary) for name, vocabulary in made.vocabularies.items()}
    found["splits"] = {name: _split(made, name) for name in made.splits}
    found["doubts"] = doubts(made, recipe)
    return found


def _of_table(table: Catalogue, keys: Vocabulary, what: str) -> tuple[int, dict[str, int]]:
    """How many of the keys a table has, and {reason: its rows that were left out}."""
    known = int(keys.names.is_in(table.frame[KEY].implode()).sum())
    reasons = {
        "repeated": table.repeated,
        "without an id": table.unnamed,
        f"of {what} that do not occur": len(table.frame) - known,
    }
    return known, {reason: count for reason, count in reasons.items() if count}


def _split(made: Dataset, name: str) -> dict:
    rows = made.splits[name]
    lengths = made.histories.lengths[rows.place]
    return {
        "rows": len(rows.place),
        "users": len(np.unique(made.user[rows.place])),
        "items": len(np.unique(rows.item)),
        "ctr": None if rows.label is None else float(rows.label.mean()),
        "negatives_drawn": rows.negatives,
        "positives_without_negatives": rows.without,
        "history_mean": float(lengths.mean()),
        "history_median": float(np.median(lengths)),
        "history_longest": int(lengths.max()),
        "empty_histories": float((lengths == 0).mean()),
        "cold": float(made.cold[rows.item].mean()),
    }


def lines(found: dict) -> list[str]:
    """The report for a person, a line each."""

    def counts(values: dict[str, int]) -> str:
        return ", ".join(f"{reason}: {count:,}" for reason, count in values.items()) or "none"

    told = [
        f"rows        {found['rows_read']:,} read; left out: {counts(found['rows_left_out'])}",
        f"users       {found['users']:,}",
        f"items       {found['items']:,}, of which {found['items_not_in_train']:,} are not in train",
    ]
    if "items_not_in_catalogue" in found:
        missing, unused = found["items_not_in_catalogue"], counts(found["catalogue_rows_left_out"])
        told.append(f"catalogue   {missing:,} items are not in it; rows left out: {unused}")
    if "users_not_in_their_table" in found:
        missing, unused = found["users_not_in_their_table"], counts(found["users_rows_left_out"])
        told.append(f"their table {missing:,} users are not in it; rows left out: {unused}")
    if "items_without_embedding" in found:
        told.append(f"embedding   {found['items_without_embedding']:,} items have none; theirs is zeros")
    if "images" in found:
        told.append(f"images      {counts(found['images'])}")
    if found["categories"]:
        told.append(f"categories  {counts(found['categories'])}")
    for name, split in found["splits"].items():
        clicked = "withheld labels" if split["ctr"] is None else f"{split['ctr']:.1%} clicked"
        drawn = f" ({split['negatives_drawn']:,} negatives drawn)" if split["negatives_drawn"] else ""
        told.append(
            f"{name:<10}  {split['rows']:,} rows{drawn}, {clicked}, {split['users']:,} users, {split['cold']:.1%} of "
            f"cold items; histories of {split['history_median']:,.0f} items (median), {split['history_longest']:,} at "
            f"most, {split['empty_histories']:.1%} empty"
        )
        if split["positives_without_negatives"]:
            number = split["positives_without_negatives"]
            told.append(f"{'':<10}  {number:,} positives without negatives: their users clicked all items of train")
    return [*told, *(f"look at     {doubt}" for doubt in found["doubts"])]
