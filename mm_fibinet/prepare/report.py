"""What a build found and made: rows and why some were left out, users, items, lengths, clicks, what is cold."""

import numpy as np

from mm_fibinet.prepare.catalogue import KEY, Catalogue
from mm_fibinet.prepare.columns import NO_NUMBER
from mm_fibinet.prepare.dataset import Dataset
from mm_fibinet.prepare.recipe import Recipe
from mm_fibinet.prepare.vocabulary import BY_TEST, Vocabulary
from mm_fibinet.prepare.writing import has_tags, tag_vocabulary
from mm_fibinet.yaml_reader import shown

NO_ID = (*NO_NUMBER, "nat", "<na>")  # in small letters
BRACKET = r"\A[\[({<]"


def report(made: Dataset, recipe: Recipe, images: dict[str, int] | None) -> dict:
    """The facts, as report.json holds them."""
    found: dict = {
        "rows_read": made.read,
        "rows_left_out": {reason: count for reason, count in made.dropped.items() if count},
        "users": len(made.users),
        "items": len(made.items),
        "items_not_in_train": int(made.cold[1:].sum()),
    }
    no_ids = {"users": _words_for_nothing(made.users), "items": _words_for_nothing(made.items)}
    if any(no_ids.values()):
        found["ids_that_may_be_none"] = no_ids
    if made.catalogue is not None:
        known, left_out = _of_table(made.catalogue, made.items, "items")
        found |= {"items_not_in_catalogue": len(made.items) - known, "catalogue_rows_left_out": left_out}
        if has_tags(recipe):
            tags = tag_vocabulary(made).names
            odd = tags.filter(tags.str.contains(BRACKET))
            found |= {"tags": len(tags), "tags_in_brackets": {"number": len(odd), "example": next(iter(odd), None)}}
    if made.people is not None:
        known, left_out = _of_table(made.people, made.users, "users")
        found |= {"users_not_in_their_table": len(made.users) - known, "users_rows_left_out": left_out}
    if made.strange is not None:
        positions, of, example = made.strange
        found["history_positions_unknown"] = {"positions": positions, "of": of, "example": example}
    if made.embedding is not None:
        found["items_without_embedding"] = int((~made.embedding[1:].any(axis=1)).sum())
    if images is not None:
        found["images"] = images
    found["categories"] = {name: len(vocabulary) for name, vocabulary in made.vocabularies.items()}
    found["splits"] = {name: _split(made, name) for name in made.splits}
    return found


def _words_for_nothing(vocabulary: Vocabulary) -> list[str]:
    """Ids that programs write where there is none; in all rows that have one they are one user, or one item."""
    names = vocabulary.names.str.strip_suffix(BY_TEST).unique().sort()
    return names.filter(names.str.to_lowercase().is_in(NO_ID)).to_list()


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
    for kind, ids in found.get("ids_that_may_be_none", {}).items():
        if ids:
            told.append(
                f"{kind:<12}{', '.join(map(shown, ids))} among them: is it an id? If it stands for none, set missing: "
                f"[{', '.join(map(shown, ids))}] beside the table's files"
            )
    if "items_not_in_catalogue" in found:
        missing, unused = found["items_not_in_catalogue"], counts(found["catalogue_rows_left_out"])
        told.append(f"catalogue   {missing:,} items are not in it; rows left out: {unused}")
    brackets = found.get("tags_in_brackets")
    if brackets and brackets["number"]:
        told.append(
            f"tags        {brackets['number']:,} of {found['tags']:,} begin with a bracket, as "
            f"{shown(brackets['example'])}: are they lists that were printed in a form that is not read?"
        )
    if "users_not_in_their_table" in found:
        missing, unused = found["users_not_in_their_table"], counts(found["users_rows_left_out"])
        told.append(f"their table {missing:,} users are not in it; rows left out: {unused}")
    unknown = found.get("history_positions_unknown")
    if unknown and unknown["positions"]:
        told.append(
            f"histories   {unknown['positions']:,} of their {unknown['of']:,} positions have an item that is in "
            f"neither the log nor the catalogue, {shown(unknown['example'])} for example"
        )
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
    return told
