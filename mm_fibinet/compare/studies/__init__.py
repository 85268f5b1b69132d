"""Studies of finished runs: what a single AUC hides, each a section of the leaderboard."""

from collections.abc import Callable
from typing import NamedTuple

from mm_fibinet.compare.jobs import Job
from mm_fibinet.compare.section import Section
from mm_fibinet.compare.studies import calibration, groups, modality, protocol, scale
from mm_fibinet.compare.studies.bench import Bench, require_one_data_set


class Study(NamedTuple):
    """A study.

    Attributes:
        run: what it says of the runs.
        check: refuses settings, of `load_params`, whose data it cannot study.
    """

    run: Callable[[Bench], Section]
    check: Callable[[dict], None] = lambda params: None


STUDIES = {
    "cold": Study(groups.cold, groups.require_targets),
    "history": Study(groups.history, groups.require_histories),
    "calibration": Study(calibration.calibration),
    "modality": Study(modality.at_test_time, modality.require_items),
    "protocol": Study(protocol.protocol, protocol.require_histories),
    "scale": Study(scale.scale),
    "modality_retrained": Study(modality.retrained, modality.require_items),
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
        require_one_data_set(runs, name)
        if loaded:
            STUDIES[name].check(loaded[0].params)


def study(names: list[str], bench: Bench) -> list[Section]:
    """The sections of these studies, each once; none where no run has finished.

    Args:
        names: keys of STUDIES.
        bench: the runs.
    """
    return [STUDIES[name].run(bench) for name in dict.fromkeys(names)] if bench.finished() else []
