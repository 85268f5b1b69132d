"""Studies of finished runs: what a single AUC hides, each a section of the leaderboard."""

from collections.abc import Callable
from typing import NamedTuple

from mm_fibinet.compare.jobs import Job
from mm_fibinet.compare.section import Section
from mm_fibinet.compare.studies import calibration, groups, modality, protocol, scale
from mm_fibinet.compare.studies.bench import ROWS, Bench, require_same_files
from mm_fibinet.errors import UserError


class Study(NamedTuple):
    """A study.

    Attributes:
        run: what it says of the runs.
        check: refuses settings, of `load_params`, whose data it cannot study; also given its name.
        files: settings that name files of which all experiments must have the same.
    """

    run: Callable[[Bench], Section]
    check: Callable[[dict, str], None] = lambda params, study: None
    files: tuple[str, ...] = ROWS


STUDIES = {
    "cold": Study(groups.cold, groups.require_targets),
    "history": Study(groups.history, groups.require_histories),
    "calibration": Study(calibration.calibration),
    "modality": Study(modality.at_test_time, modality.require_items, (*ROWS, "item_info")),
    "protocol": Study(protocol.protocol, protocol.require_histories),
    "scale": Study(scale.scale),
    "modality_retrained": Study(modality.retrained, modality.require_items, (*ROWS, "item_info")),
}


def require(names: list[str], runs: list[Job]) -> None:
    """Refuse, before anything runs, what cannot be studied.

    Args:
        names: keys of STUDIES.
        runs: planned; those that cannot be loaded are passed over.

    Raises:
        UserError: the experiments have different data, or the data lack what a study looks at.
    """
    loaded = [job for job in runs if job.params]
    for name in names:
        require_same_files(loaded, name, STUDIES[name].files)
        if loaded:
            STUDIES[name].check(loaded[0].params, name)


def study(names: list[str], bench: Bench) -> list[Section]:
    """The sections of these studies, each once; none where no run has finished. One that fails says why.

    Args:
        names: keys of STUDIES.
        bench: the runs.
    """
    return [_section(name, bench) for name in dict.fromkeys(names)] if bench.finished() else []


def _section(name: str, bench: Bench) -> Section:
    try:
        return STUDIES[name].run(bench)
    except UserError as error:
        return Section(name, f"Study {name}", "It failed.", ["Experiment"], [], [], failed=[str(error)])
