"""A raw log and a catalogue to the file contract: the command line of `mm_fibinet.prepare.build`."""

import argparse
import shlex
from pathlib import Path

from mm_fibinet.commands import Home
from mm_fibinet.commands.arguments.prepare import RECIPE_OPTIONS
from mm_fibinet.errors import UserError, printable
from mm_fibinet.prepare.build import Built, build
from mm_fibinet.prepare.recipe import load_recipe
from mm_fibinet.prepare.report import lines
from mm_fibinet.prepare.writing import EMBEDDED, IMAGES


def run(args: argparse.Namespace, home: Home) -> None:
    """Build, say what was built, and which command comes next."""
    path = find_recipe(args.recipe, home) if args.recipe else None
    recipe = load_recipe(path, {name: getattr(args, name) for name in RECIPE_OPTIONS})
    built = build(recipe, args.out, args.force)
    for line in [*lines(built.report), f"output      {built.folder}", *next_steps(built)]:
        print(printable(line))


def find_recipe(name: str, home: Home) -> Path:
    """A recipe's file: as named, or the one of that name that the config folder ships.

    Raises:
        UserError: there is neither.
    """
    shipped = home.config / "recipes"
    for path in (Path(name), shipped / f"{name}.yaml"):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml")))
    raise UserError(f"--recipe {name}: no such file{f', and none of the shipped ones: {names}' if names else ''}")


def next_steps(built: Built) -> list[str]:
    """The commands that go on from here."""
    folder = Path(shlex.quote(str(built.folder)))
    steps = []
    if built.embeddable:
        images = f"--images {folder / IMAGES}" if "images" in built.report else "--image_encoder none"
        steps.append(
            f"build_item_emb.py --item_info {folder / 'item_info.parquet'} "
            f"--item_feature {folder / 'item_feature.parquet'} {images} --output {folder / EMBEDDED}"
        )
    found = "" if built.folder == Path("data") / built.name else f" --data_root {folder}"
    steps.append(f"run_expid.py --expid EXPID --set {shlex.quote(f'dataset_id={built.name}')}{found}")
    return [f"{'next' if at == 0 else 'then':<12}python {step}" for at, step in enumerate(steps)]
