"""What a published repository must change so that its scripts run on our loader, told from its text alone.

    python -m mm_fibinet.dataloader check REPO

Solutions of the challenge share a shape: a script hands FuxiCTR a loader class of the repository's own, and YAML files
name the data. Python is parsed and YAML composed (`repository_text`); nothing of the repository is imported, evaluated
or written. What FuxiCTR's releases differ in, where it concerns such scripts, is one table in docs/loader.md and the
constants here.
"""

import argparse
import re
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mm_fibinet.errors import EXIT_USER_ERROR, UserError, printable
from mm_fibinet.parquet_reader import list_width
from mm_fibinet.repository_text import Change, Entry, Script, dataset_entries, own_files, read_scripts, read_yaml_nodes
from mm_fibinet.schema import LEVELS

MODULE, LOADER = "mm_fibinet.dataloader", "MMCTRDataLoader"
TESTED = ("2.3.7", "2.3.8", "2.3.9", "2.3.10")
ITERATOR_UNTIL = (2, 3, 9)  # RankDataLoader is a class with make_iterator; later a function that returns the loaders
PRETRAIN_DIM_FROM = (2, 3, 8)  # FeatureMap reads pretrain_dim of every embedding feature
OLD_PACKAGES = {  # of FuxiCTR up to 2.3.9, which pins none: {package: (releases below, for what, what to do)}
    "numpy": ((2,), "np.Inf", 'pip install "numpy<2", or numpy.Inf = numpy.inf before FuxiCTR is imported'),
    "scikit-learn": ((1, 5), "log_loss(eps=...)", 'pip install "scikit-learn<1.5", or no logloss in metrics'),
    "keras-preprocessing": (None, "keras_preprocessing", "pip install keras_preprocessing"),
}


@dataclass
class Findings:
    """What a repository must change.

    Attributes:
        fuxictr: the release it is to run on.
        changes: lines, and what they become.
        notes: what no single line can say.
        loaders: how many places hand FuxiCTR a loader class.
    """

    fuxictr: str
    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    loaders: int = 0


@dataclass(frozen=True)
class OwnLoader:
    """What a repository's loader class reads beside the split and item_info.

    Attributes:
        files: parquet files that its code names.
        levels: whether it gives the history's items their levels.
        is_triple: whether it yields three things, as (batch_dict, item_dict, mask).
    """

    files: tuple[str, ...]
    levels: bool
    is_triple: bool


def check_repository(folder: str | Path, fuxictr: str | None = None) -> Findings:
    """Read a repository's scripts and configs.

    Args:
        folder: its root, from which its scripts run.
        fuxictr: FuxiCTR's release; None for the one installed, else the one that the repository asserts.

    Raises:
        UserError: there is no such folder, or no Python file in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder; name the root of a repository, which holds its run_expid.py")
    scripts, unread = read_scripts(root)
    if not scripts:
        why = f" that can be read ({unread[0]})" if unread else ""
        raise UserError(f"{folder}: no Python file{why} in it; name the root of a repository, with its run_expid.py")
    found = Findings(fuxictr or _installed("fuxictr") or _asserted(scripts) or TESTED[-1], notes=unread)
    release = _release(found.fuxictr)
    if found.fuxictr not in TESTED:
        found.notes.append(f"FuxiCTR {found.fuxictr}: not tested, {TESTED[0]} to {TESTED[-1]} are")
    if release <= ITERATOR_UNTIL:
        found.notes += _old_packages()
    level_files: set[str] = set()
    joins_levels = False
    for script in scripts.values():
        _check_assertions(script, found.fuxictr)
        _check_iterators(script, release)
        for name, line in script.handed_over("data_loader"):
            found.loaders += 1
            own = _check_loader(script, name, line, scripts, found)
            joins_levels = joins_levels or (own is not None and own.levels)
            level_files.update(own.files if own else ())
        script.edit_imports("our loader in the place of the repository's")
        found.changes += script.changes()
    for path in own_files(root, (".yaml", ".yml")):
        _check_config(path, root, release, sorted(level_files) if joins_levels else None, found)
    if not found.loaders:
        found.notes.append(
            f'{folder}: no script hands FuxiCTR a loader class (params["data_loader"] = ...), so none reads the '
            "challenge's triple"
        )
    return found


def _check_assertions(script: Script, fuxictr: str) -> None:
    """`assert fuxictr.__version__ == "2.3.7"` and its like, where they would fail."""
    for holds, literal, text in script.version_assertions("fuxictr", fuxictr):
        if not holds:
            script.replace(literal, f'"{fuxictr}"', f"it asserts {text}, and is to run on {fuxictr}")


def _check_iterators(script: Script, release: tuple[int, ...]) -> None:
    """RankDataLoader's result: the loaders themselves, or what makes them."""
    calls = script.calls_of_import("RankDataLoader", "fuxictr.pytorch.dataloaders")
    if not calls:
        return
    iterators = script.method_calls("make_iterator")
    if release > ITERATOR_UNTIL:
        for call in iterators:
            script.drop_method(call, "RankDataLoader returns the loaders themselves")
    elif not iterators:
        for call in calls:
            script.insert_after(call, ".make_iterator()", "RankDataLoader is a class, whose make_iterator has them")


def _check_loader(
    script: Script, name: str, line: int, scripts: dict[Path, Script], found: Findings
) -> OwnLoader | None:
    """One class handed to FuxiCTR: the import that must change, if that is all; what it reads, for the config."""
    if script.full_name(name) == f"{MODULE}.{LOADER}":
        return None
    imported = script.import_of(name)
    if imported is None:
        found.notes.append(
            f"{script.shown}:{line}: hands FuxiCTR {name}, which is not imported by name there: write from {MODULE} "
            f"import {LOADER}, and hand over {LOADER}"
        )
        return None
    node, alias = imported
    place = script.find_class(alias.name, node, scripts)
    if place is None:
        found.notes.append(
            f"{script.shown}:{node.lineno}: {alias.name} is no class of the repository's files: whether {LOADER} can "
            "take its place cannot be told"
        )
        return None
    home, text = place
    own = OwnLoader(
        tuple(sorted(value for value in text.strings if value.endswith(".parquet") and value != ".parquet")),
        any(level in text.strings for level in LEVELS),
        3 in text.returned,
    )
    where = f"{home.shown}:{text.line}: {alias.name}"
    if not own.is_triple:
        found.notes.append(f"{where} does not return three things, (batch_dict, item_dict, mask): it stays as it is")
        return None
    if len(own.files) > 1 or (own.files and not own.levels):
        found.notes.append(
            f"{where} reads {', '.join(own.files)}, too; what it makes of them must be columns of item_info before "
            f"{LOADER} can take its place in {script.shown}:{line}"
        )
        return None
    as_name = "" if name == LOADER else f" as {name}"
    script.move_import(node, alias, f"from {MODULE} import {LOADER}{as_name}")
    return own


def _check_config(
    path: Path, root: Path, release: tuple[int, ...], level_files: list[str] | None, found: Findings
) -> None:
    """The data sets' entries of one YAML file.

    Args:
        level_files: files from which the scripts' loader takes the history's levels; None when it takes none.
    """
    shown = path.relative_to(root)
    config, problem = read_yaml_nodes(path, shown)
    if config is None:
        found.notes.append(problem)
        return
    for entry in dataset_entries(config):
        if release >= PRETRAIN_DIM_FROM:
            _check_widths(entry, root, shown, found)
        if level_files is not None and entry.value("item_info"):
            missing = {} if entry.value("history_levels") else {"history_levels": "True"}
            if level_files and not entry.value("item_feature"):
                missing = {"item_feature": level_files[0], **missing}
            if missing:
                entry.insert("item_info", missing, "the repository's loader gives the history's items their levels")
    found.changes += config.changes()


def _check_widths(entry: Entry, root: Path, shown: Path, found: Findings) -> None:
    """FuxiCTR needs the width of an embedding column in the config."""
    for feature in entry.features():
        if feature.value("type") != "embedding" or feature.value("pretrain_dim"):
            continue
        name, width = feature.value("name"), _width(feature, entry, root)
        if width is None:
            found.notes.append(
                f"{shown}:{feature.line}: {name} needs pretrain_dim, the width of its lists: without it FeatureMap "
                "ends in KeyError: 'pretrain_dim'"
            )
        else:
            why = "FeatureMap reads pretrain_dim of every embedding feature (KeyError)"
            feature.insert("type", {"pretrain_dim": str(width)}, why)


def _width(feature: Entry, entry: Entry, root: Path) -> int | None:
    """Numbers a row of an embedding column: of the file where it is here, else what the config and the name say."""
    name = feature.value("name") or ""
    key = "item_info" if feature.value("source") == "item" else "train_data"
    path = entry.value(key)
    if path and (root / path).exists():
        try:
            return list_width(root / path, name)
        except UserError:
            pass  # another data set's file; the config says a width too
    told = feature.value("embedding_dim") or (re.findall(r"_d(\d+)(?:_|$)", name) or [""])[0]
    return int(told) if told.isdecimal() else None


def _old_packages() -> list[str]:
    """What FuxiCTR up to 2.3.9 lacks, or finds too new, among the installed packages."""
    notes = []
    for package, (below, name, wanted) in OLD_PACKAGES.items():
        installed = _installed(package)
        if installed is None or (below and _release(installed) >= below):
            found = f"installed is {installed}" if installed else "it is not installed"
            notes.append(f"FuxiCTR up to 2.3.9 uses {name}, {found}: {wanted}")
    return notes


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _asserted(scripts: dict[Path, Script]) -> str | None:
    """The release that a script of the repository asserts."""
    found = [text for script in scripts.values() for _, literal, text in script.version_assertions("fuxictr", "")]
    numbers = [match.group() for text in found if (match := re.search(r"\d+(\.\d+)+", text))]
    return numbers[0] if numbers else None


def _release(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


def print_findings(found: Findings, folder: str) -> None:
    """What must change, as lines before and after."""
    print(printable(f"{folder} on FuxiCTR {found.fuxictr}"))
    for change in found.changes:
        print(f"\n{printable(change.path)}:{change.first}  {printable(change.why)}")
        for sign, lines in (("-", change.before), ("+", change.after)):
            for line in lines:
                print(f"  {sign} {printable(line)}")
    for note in found.notes:
        print(f"\n{printable(note)}")
    if found.changes:
        count = len(found.changes)
        print(f"\n{count} {'place' if count == 1 else 'places'} to change; nothing was written")
    else:
        print("\nnothing must change" if not found.notes else "\nno line must change")


def main() -> int:
    """The command line of `python -m mm_fibinet.dataloader`; exit code 2 when something must change."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description="The challenge's loader, faster.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="say what a published repository must change to run on it")
    check.add_argument("repository", metavar="REPO", help="its root folder; it is read, never run and never written")
    check.add_argument(
        "--fuxictr", metavar="VERSION", help="FuxiCTR's release to run on (default: the installed one), as 2.3.7"
    )
    args = parser.parse_args()
    if args.fuxictr and not re.fullmatch(r"\d+(\.\d+)+", args.fuxictr):
        check.error(f"--fuxictr {printable(args.fuxictr)}: expected a release, as 2.3.7")
    found = check_repository(args.repository, args.fuxictr)
    print_findings(found, args.repository)
    return EXIT_USER_ERROR if found.changes or found.notes else 0
