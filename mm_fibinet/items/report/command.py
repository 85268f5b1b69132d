"""The report from a command line: a data set's entry says where files are, options say otherwise."""

import argparse
from pathlib import Path

from mm_fibinet.errors import UserError, printable
from mm_fibinet.items.report.contents import Sources
from mm_fibinet.items.report.page import as_text, write_report
from mm_fibinet.parquet_reader import exists
from mm_fibinet.schema import ARCHIVE_SUFFIXES

COVERS = "item_images"  # the folder or archive, beside item_feature or the splits
OPTIONS = {"valid": "valid_data", "train": "train_data", "user_info": "user_info", "titles": "item_feature"}


def run(args: argparse.Namespace) -> None:
    """Write the page, and print its figures.

    Args:
        args: of `options.add_report_arguments`.
    """
    sources = find_sources(args)
    contents = write_report(sources, args.out, args.columns, args.seed)
    print(as_text(contents))
    print(f"{'page':<12}{printable(args.out)}")


def find_sources(args: argparse.Namespace) -> Sources:
    """The files: those of the options, else those of the data set's entry that are there.

    Raises:
        UserError: the data set is not known, one of its splits is not there, or one is named that is not read.
    """
    entry = _entry(args)
    named = {option: getattr(args, option) or entry.get(key) for option, key in OPTIONS.items()}
    if args.user_info and not named["valid"]:
        raise UserError(
            f"--user_info {args.user_info}: there is no validation split whose histories these are; name that with "
            "--valid, or leave this out"
        )
    feature = named["titles"]
    if feature and not args.titles and not exists(feature):  # not every data set has one
        feature = None
    images = args.images or _find_covers(feature, named["train"])
    return Sources(args.item_info, named["valid"], named["train"], named["user_info"], feature, images)


def _entry(args: argparse.Namespace) -> dict[str, str]:
    """The files of the data set that is named."""
    if not args.data:
        if args.data_root:
            raise UserError("--data_root goes with --data DATASET_ID, whose folder it replaces")
        return {}
    from mm_fibinet import settings  # pydantic, which a report of named files does without

    return settings.dataset_files(Path(args.config), args.data, args.data_root)


def _find_covers(*beside: str | None) -> str | None:
    """Covers in the place where the challenge has them: beside the files, or one folder up."""
    folders = [folder for path in beside if path for folder in (Path(path).parent, Path(path).parent.parent)]
    for folder in dict.fromkeys(folders):
        for suffix in ("", ".zip", *ARCHIVE_SUFFIXES):
            found = folder / f"{COVERS}{suffix}"
            if found.exists():
                return str(found)
    return None
