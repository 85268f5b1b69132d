"""Covers under the items' new ids: NAME.png of a folder or a zip, NAME being an item's original id, as ITEM_ID.png.

Files of a folder are linked, which takes no space, or copied where that is asked; those of a zip are unpacked.
"""

import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import polars as pl

from mm_fibinet.errors import UserError, explain_os_error
from mm_fibinet.files import make_folder, walk
from mm_fibinet.prepare.vocabulary import Vocabulary
from mm_fibinet.schema import IMAGE_SUFFIXES


def bring_images(path: Path, items: Vocabulary, target: Path, copy: bool) -> dict[str, int]:
    """Make a folder of ITEM_ID.jpg and the like.

    Args:
        path: a folder, searched at any depth, or a .zip.
        items: the items' ids by their original ones.
        target: the folder to make.
        copy: copy a folder's files instead of linking them.

    Returns:
        {"found", "missing", "of no item": number}.

    Raises:
        UserError: `path` is neither, cannot be read, or has two images of an item.
    """
    if path.is_dir():
        named = pl.DataFrame(_folder_files(path), schema={"stem": pl.String, "file": pl.String}, orient="row")
    elif path.is_file() and path.suffix.lower() == ".zip":
        named = pl.DataFrame(_zip_files(path), schema={"stem": pl.String, "file": pl.String}, orient="row")
    else:
        raise UserError(
            f"images is {path}: expected a folder or a .zip of images named by the items' ids; unpack others"
        )
    ids = items.ids(named["stem"])
    files: dict[int, str] = {}
    for item_id, file in zip(ids.tolist(), named["file"].to_list(), strict=True):
        if item_id and item_id in files:
            raise UserError(f"{path}: {files[item_id]} and {file} are images of the same item; keep one of them")
        if item_id:
            files[item_id] = file
    make_folder(target)
    try:
        if path.is_dir():
            _bring(path, files, target, copy)
        else:
            _unpack(path, files, target)
    except OSError as error:
        raise explain_os_error(error, error.filename or target) from error
    return {"found": len(files), "missing": len(items) - len(files), "of no item": int((ids == 0).sum())}


def _bring(folder: Path, files: dict[int, str], target: Path, copy: bool) -> None:
    for item_id, file in files.items():
        place = target / f"{item_id}{Path(file).suffix.lower()}"
        if copy:
            shutil.copyfile(folder / file, place)
        else:
            place.symlink_to((folder / file).resolve())


def _unpack(path: Path, files: dict[int, str], target: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            for item_id, file in files.items():
                place = target / f"{item_id}{PurePosixPath(file).suffix.lower()}"
                with archive.open(file) as source, open(place, "wb") as out:
                    shutil.copyfileobj(source, out)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be unpacked ({error}); pack it again") from error


def _folder_files(folder: Path) -> Iterator[tuple[str, str]]:
    """(item's original id, path in the folder) of each image below it."""

    def refuse(error: OSError) -> None:
        raise explain_os_error(error, error.filename, "read") from error

    for root, _, names in walk(folder, refuse):
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES:
                yield stem, os.path.relpath(os.path.join(root, name), folder)


def _zip_files(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a complete zip file ({error}); pack it again") from error
    for name in names:
        place = PurePosixPath(name)
        if place.suffix.lower() in IMAGE_SUFFIXES:
            yield place.stem, name
