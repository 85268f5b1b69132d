"""A raw log and a catalogue in, a data set of the file contract out, as one call.

    from mm_fibinet.prepare.build import build
    from mm_fibinet.prepare.recipe import load_recipe

    built = build(load_recipe("shop.yaml", {}), "data/shop")

Everything is computed and written beside its place before any of it appears there; dataset_config.yaml, which makes
it a data set, appears last. The same files and recipe give the same rows.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from mm_fibinet.errors import UserError, explain_os_error
from mm_fibinet.files import LOCK, locked, make_folder, write_json
from mm_fibinet.prepare import report, writing
from mm_fibinet.prepare.dataset import make_dataset
from mm_fibinet.prepare.images import bring_images
from mm_fibinet.prepare.reading import table_files
from mm_fibinet.prepare.recipe import Recipe
from mm_fibinet.settings import require_name

PART = ".prepare.part"
REPORT = "report.json"


@dataclass(frozen=True)
class Built:
    """What `build` did.

    Attributes:
        folder: where the data set is.
        name: its dataset_id.
        report: the contents of report.json.
        embeddable: whether build_item_emb.py has texts or images to read.
    """

    folder: Path
    name: str
    report: dict
    embeddable: bool


def build(recipe: Recipe, out: str | os.PathLike, force: bool = False) -> Built:
    """Make a data set.

    Args:
        recipe: of `load_recipe`.
        out: the folder to make; it may exist and be empty.
        force: replace a data set that build_dataset.py made there.

    Raises:
        UserError: the recipe, a file or the folder is at fault; nothing has been written.
    """
    folder = Path(out)
    name = require_name(recipe.name or folder.resolve().name, "name")
    writing.check_names(recipe)
    inputs = _inputs(recipe)
    _require_outside(folder, inputs)
    _require_free(folder, force)
    new = not folder.exists()
    try:
        with locked(folder):
            _require_free(folder, force)
            built = _build(recipe, folder, name)
    except BaseException:
        if new and folder.is_dir() and {each.name for each in folder.iterdir()} <= {LOCK}:
            shutil.rmtree(folder, ignore_errors=True)  # nothing is left of a build that failed
        raise
    return built


def _build(recipe: Recipe, folder: Path, name: str) -> Built:
    """Write into a folder that is this process's own."""
    part = folder / PART
    shutil.rmtree(part, ignore_errors=True)
    try:
        scratch, done = make_folder(part / "scratch"), make_folder(part / "done")
        made = make_dataset(recipe, scratch)
        writing.write_splits(made, recipe, done)
        if recipe.user_info:
            writing.write_user_info(made, done)
        writing.write_items(made, recipe, done)
        writing.write_ids(made, recipe, done)
        images = None
        if recipe.images is not None:
            source = Path(recipe.data_root) / recipe.images
            images = bring_images(source, made.items, done / writing.IMAGES, recipe.copy_images)
        found = report.report(made, recipe, images)
        files = [each.name for each in done.iterdir()]
        writing.write_config(made, recipe, name, done, folder)
        write_json(done / REPORT, {"name": name, "files": files, **found, "recipe": recipe.model_dump()})
        _publish(done, folder, files)
    except OSError as error:
        raise explain_os_error(error, error.filename or folder) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Built(folder, name, found, writing.has_content(made, recipe) and made.embedding is None)


def _publish(done: Path, folder: Path, files: list[str]) -> None:
    """Move the files to their place: the old data set's entry goes first, the new one's comes last."""
    old = folder / REPORT
    if old.exists():
        (folder / writing.CONFIG).unlink(missing_ok=True)
        for name in [*_files_of(old), writing.EMBEDDED]:  # an embedding of other items must not be taken for theirs
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    for name in [*files, REPORT, writing.CONFIG]:
        os.replace(done / name, folder / name)


def _files_of(path: Path) -> list[str]:
    """The files that the data set of a report.json is made of; a `UserError` for what is no such report."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        if not all(
            isinstance(name, str) and name == os.path.basename(name) and name[:1] not in ("", ".") for name in files
        ):
            raise ValueError("files")
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: is not a report of build_dataset.py; choose another --out") from error
    return files


def _require_free(folder: Path, force: bool) -> None:
    """Refuse a place that holds something else than a data set of ours that is to be replaced."""
    if not os.path.lexists(folder):
        return
    if not folder.exists():
        raise UserError(f"--out {folder}: is a link to {os.readlink(folder)}, which is not there; make that folder")
    if not folder.is_dir():
        raise UserError(f"--out {folder}: this is a file, expected a folder")
    try:
        present = {each.name for each in folder.iterdir()} - {LOCK, PART}
    except OSError as error:
        raise explain_os_error(error, folder, "read") from error
    if not present:
        return
    if REPORT not in present:
        raise UserError(
            f"--out {folder}: is not empty, and holds no data set of build_dataset.py; choose another folder"
        )
    _files_of(folder / REPORT)
    if not force:
        raise UserError(f"--out {folder}: holds a data set already; --force replaces it, or choose another folder")


def _inputs(recipe: Recipe) -> list[Path]:
    """All files and folders that are read; a `UserError` where there is none."""
    tables = [*recipe.interactions.values(), recipe.items, recipe.users, recipe.test_users, recipe.embeddings]
    found = [path for table in tables if table is not None for path in table_files(table, recipe.data_root)]
    if recipe.images is not None:
        path = Path(recipe.data_root) / recipe.images
        if not path.exists():
            raise UserError(f"images is {path}: no such file or folder; --images none builds without")
        found.append(path)
    return found


def _require_outside(folder: Path, inputs: list[Path]) -> None:
    """Inputs are never modified, nor in the way of what is replaced."""
    place = folder.resolve()
    for path in (path.resolve() for path in inputs):
        if path == place or path.is_relative_to(place) or (path.is_dir() and place.is_relative_to(path)):
            raise UserError(f"--out {folder}: the input {path} is there; choose another folder")
