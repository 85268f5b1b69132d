"""The command line of `prepare`: what a recipe may say, each as an option."""

from pathlib import Path

from mm_fibinet.commands.arguments.shared import Parser

# The settings of a recipe, which are options too: {name: (group, kind of KINDS, what its help says)}.
RECIPE_OPTIONS: dict[str, tuple[str, str, str]] = {
    "name": ("data set", "text", "its dataset_id (default: the name of OUT)"),
    "data_root": ("data set", "text", "folder that all paths are relative to (default: .)"),
    "interactions": ("the log", "list", "files, or folders of files: .csv, .tsv, .jsonl, .parquet, also .gz and .zst"),
    "user": ("the log", "text", "column of the user (default: user_id)"),
    "item": ("the log", "text", "column of the item (default: item_id)"),
    "timestamp": ("the log", "text", "column of the time: a number, or a date and time"),
    "label": (
        "the log",
        "text",
        "column of 0 and 1, or a comparison, 'rating >= 4' (default: all rows are clicks)",
    ),
    "rating": ("the log", "text", "column that likes_level is made of (default: the one that the label compares)"),
    "features": ("the log", "list", "further columns of the row: texts become ids, numbers stay numbers"),
    "categorical": ("the log", "list", "further columns that become ids even where they are numbers"),
    "impressions": ("the log", "text", "column of items with labels in place of --item and --label: ID-1 ID-0"),
    "history": ("the log", "text", "column of the clicks before the row, where the log has it"),
    "list_separator": ("the log", "text", "between the elements of impressions and histories (default: a space)"),
    "items": ("the catalogue", "list", "files"),
    "item_key": ("the catalogue", "text", "column of the item (default: that of --item)"),
    "title": ("the catalogue", "text", "column"),
    "tags": ("the catalogue", "list", "columns of lists, or of texts that a separator cuts"),
    "tag_separator": ("the catalogue", "text", "(default: |)"),
    "tag_flags": ("the catalogue", "list", "columns of 0 and 1 whose names are the tags"),
    "max_tags": ("the catalogue", "int", "tags an item (default: 5)"),
    "description": ("the catalogue", "text", "column"),
    "item_features": ("the catalogue", "list", "further columns: texts become ids, numbers stay numbers"),
    "item_categorical": ("the catalogue", "list", "further columns that become ids even where they are numbers"),
    "all_items": ("the catalogue", "flag", "keep items that do not occur in the log"),
    "images": ("the catalogue", "text", "folder, .zip, .tar or .rar of images named by the items' original ids"),
    "copy_images": ("the catalogue", "flag", "copy a folder's images instead of linking them"),
    "embeddings": ("the catalogue", "list", "files with an item embedding that there is already"),
    "embedding": ("the catalogue", "text", "their column of lists"),
    "embedding_scale": ("the catalogue", "number", "what its numbers are multiplied by (default: 1)"),
    "users": ("the users", "list", "files"),
    "test_users": ("the users", "list", "files with what is known of users by the time of a given test"),
    "user_key": ("the users", "text", "column of the user (default: that of --user)"),
    "user_history": ("the users", "text", "column of a user's clicks, oldest first"),
    "user_features": ("the users", "list", "further columns: texts become ids, numbers stay numbers"),
    "user_categorical": ("the users", "list", "further columns that become ids even where they are numbers"),
    "split": ("method", "text", "time (default), leave_last_out, random, or a column of train, valid, test"),
    "valid": ("method", "float", "share of the rows (default: 0.1)"),
    "test": ("method", "float", "share of the rows (default: 0.1)"),
    "negatives": ("method", "int", "drawn for each click (default: 4 where all rows are clicks, else 0)"),
    "sampling": ("method", "text", "of negatives: uniform (default), or popularity"),
    "max_len": ("method", "int", "history positions in a row (default: 64)"),
    "frozen_histories": ("method", "flag", "histories end where the row's own split begins"),
    "user_info": ("method", "flag", "write histories once a user, whole, in place of item_seq in each row"),
    "seed": ("method", "int", "same seed, same rows (default: 2025)"),
}
KINDS: dict[str, dict] = {
    "text": {"metavar": "NAME"},
    "list": {"nargs": "+", "metavar": "NAME"},
    "int": {"type": int, "metavar": "N"},
    "float": {"type": float, "metavar": "SHARE"},
    "number": {"type": float, "metavar": "NUMBER"},
    "flag": {"action": "store_true", "default": None},
}


def add(parser: Parser, config: Path) -> None:
    """Its arguments; the options but for four are the settings of a recipe."""
    parser.add_argument("--out", required=True, metavar="OUT", help="folder of the data set, data/NAME say")
    parser.add_argument(
        "--recipe", metavar="FILE", help=f"YAML with settings named as the options below, or one of {config}/recipes"
    )
    parser.add_argument("--force", action="store_true", help="replace the data set that is there")
    groups = {group: parser.add_argument_group(group) for group in dict.fromkeys(o[0] for o in RECIPE_OPTIONS.values())}
    for name, (group, kind, text) in RECIPE_OPTIONS.items():
        groups[group].add_argument(f"--{name}", help=text, **KINDS[kind])
