"""Covers under the items' new ids: NAME.png of a folder or an archive, NAME an item's original id, as ITEM_ID.png.

Files of a folder are linked, which takes no space, or copied where that is asked; those of an archive are unpacked. All
names are read before anything is written: what is refused for two images of one item leaves nothing, and ids are looked
up together. For an archive without a directory that is a second pass.
"""

import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

import polars as pl

from mm_fibinet import archives
from mm_fibinet.errors import UserError, explain_os_error, printable
from mm_fibinet.files import make_folder, walk
from mm_fibinet.prepare.vocabulary import Vocabulary
from mm_fibinet.schema import ARCHIVE_SUFFIXES, IMAGE_SUFFIXES
from mm_fibinet.yaml_reader import shown


def bring_images(path: Path, items: Vocabulary, target: Path, copy: bool) -> dict[str, int]:
    """Make a folder of ITEM_ID.jpg and the like.

    Args:
        path: a folder, searched at any depth, a .zip, or what libarchive reads.
        items: the items' ids by their original ones.
        target: the folder to make.
        copy: copy a folder's files instead of linking them.

    Returns:
        {"found", "missing", "of no item": number}.

    Raises:
        UserError: `path` is neither, cannot be read, has images of no item, or two of one.
    """
    bring: Callable[[Path, dict[str, Path]], None]
    if path.is_dir():
        found, bring = _folder_files(path), _copy if copy else _link
    elif path.is_file() and path.suffix.lower() == ".zip":
        found, bring = _zip_files(path), _unpack
    elif path.is_file() and path.suffix.lower() in ARCHIVE_SUFFIXES:
        found, bring = _archive_files(path), _stream
    else:
        raise UserError(
            f"images is {path}: expected a folder, a .zip, .tar or .rar of images named by the items' ids; unpack "
            "others"
        )
    images = list(found)
    ids = items.ids(pl.Series([printable(stem) for stem, _ in images], dtype=pl.String))
    files: dict[int, str] = {}
    for item_id, (_, file) in zip(ids.tolist(), images, strict=True):
        if item_id and item_id in files:
            raise UserError(f"{path}: {files[item_id]} and {file} are images of the same item; keep one of them")
        if item_id:
            files[item_id] = file
    if images and not files:
        example = f"{printable(images[0][1])} for example, but an item is {shown(items.names[0])}"
        raise UserError(
            f"{path}: none of {len(images):,} images is named by an item's id, {example}; name them by the ids of the "
            "log, or leave images out"
        )
    make_folder(target)
    try:
        bring(path, {file: target / f"{item_id}{_suffix(file)}" for item_id, file in files.items()})
    except OSError as error:
        raise explain_os_error(error, error.filename or target) from error
    return {"found": len(files), "missing": len(items) - len(files), "of no item": int((ids == 0).sum())}


def _link(folder: Path, places: dict[str, Path]) -> None:
    for file, place in places.items():
        place.symlink_to((folder / file).resolve())


def _copy(folder: Path, places: dict[str, Path]) -> None:
    for file, place in places.items():
        shutil.copyfile(folder / file, place)


def _unpack(path: Path, places: dict[str, Path]) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            for file, place in places.items():
                with archive.open(file) as source, open(place, "wb") as out:
                    shutil.copyfileobj(source, out)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be unpacked ({error}); pack it again") from error


def _stream(path: Path, places: dict[str, Path]) -> None:
    for member in archives.members(path):
        if member.name in places and member.kind == archives.FILE:
            with open(places[member.name], "wb") as out:
                out.writelines(member.blocks())


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
    yield from _images(name for name in names if not name.endswith("/"))


def _archive_files(path: Path) -> Iterator[tuple[str, str]]:
    yield from _images(member.name for member in archives.members(path) if member.kind == archives.FILE)


def _images(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(item's original id, path) of each path in an archive that is an image's."""
    for name in names:
        if _suffix(name) in IMAGE_SUFFIXES:
            yield PurePosixPath(name).stem, name


def _suffix(file: str) -> str:
    return PurePosixPath(file).suffix.lower()
