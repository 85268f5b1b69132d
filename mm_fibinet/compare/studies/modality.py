"""Studies of missing modalities: how much AUC is left when a share of the items has no text, no image, or neither.

At test time, a trained model meets items that lack what its training items had. Retrained, it has learned with such
items: what remains of the loss is what the modality knew and nothing else knows.
"""

import json
import statistics
from pathlib import Path

from mm_fibinet import files, run_result
from mm_fibinet.compare.jobs import Job
from mm_fibinet.compare.section import Figure, Point, Section
from mm_fibinet.compare.studies.bench import Bench, auc_of, failures, has_auc, set_path
from mm_fibinet.compare.studies.missing import BOTH, ItemVectors, write_without
from mm_fibinet.compare.studies.rescoring import Rescorer
from mm_fibinet.errors import UserError, printable
from mm_fibinet.metrics import auc
from mm_fibinet.progress import track

SHARES = (0.1, 0.3, 0.5, 0.7)  # of the items
Auc = dict[str, dict[float, float]]  # {what items lack: {share of the items: AUC}}


def require_items(params: dict, study: str) -> None:
    """Refuse data whose items have no files of their own: `params` of `load_params`."""
    if not params.get("item_info"):
        raise UserError(
            f"--study {study}: data set {params['dataset_id']} has no item_info, whose vectors may be missing"
        )


def at_test_time(bench: Bench) -> Section:
    """The trained runs, scored with items that lack a modality."""
    vectors = ItemVectors(bench.params["item_info"], bench.modalities)
    written = _written(bench, vectors)
    found: dict[str, list[Auc]] = {}
    failed = []
    for expid, runs in track(bench.finished().items(), "modality", unit="experiment"):
        try:
            found[expid] = [_rescored(job, bench, written) for job in runs]
        except UserError as error:
            failed.append(printable(f"{expid}: {error}"))
    note = "The trained runs score the validation rows while a share of the items, the same for all, lacks a modality. "
    return _section("modality", "AUC by share of items that lack a modality", note, vectors, found, failed)


def retrained(bench: Bench) -> Section:
    """Runs that are trained and judged on items that lack a modality."""
    vectors = ItemVectors(bench.params["item_info"], bench.modalities)
    variants = {
        f"{what}_{share}": (what, share, [set_path("item_info", path)])
        for (what, share), path in _written(bench, vectors).items()
    }
    runs = bench.retrained("modality_retrained", lambda base: {name: own for name, (_, _, own) in variants.items()})
    found: dict[str, list[Auc]] = {}
    for expid, bases in bench.finished().items():
        for base in bases:
            aucs: Auc = {what: {0.0: auc_of(base)} for what in vectors.removable}
            for variant in runs:
                if variant.base is base and has_auc(variant.job):
                    what, share, _ = variants[variant.name]
                    aucs[what][share] = auc_of(variant.job)
            found.setdefault(expid, []).append(aucs)
    note = "Each run is trained and judged anew on items of which a share, the same for all, lacks a modality. "
    title = "AUC by share of items that lack a modality, retrained"
    return _section("modality_retrained", title, note, vectors, found, failures(runs))


def _written(bench: Bench, vectors: ItemVectors) -> dict[tuple[str, float], Path]:
    """{(what items lack, share of them): the file with these items}."""
    folder = bench.folder("missing")
    return {
        (what, share): write_without(vectors, what, share, folder) for what in vectors.removable for share in SHARES
    }


def _rescored(job: Job, bench: Bench, files_of: dict[tuple[str, float], Path]) -> Auc:
    """The AUCs of a run, from its folder where they are there of the same run."""
    kept = job.model_root / "modality.json"
    key = {"fingerprint": job.fingerprint, "AUC": auc_of(job), "missing": [list(one) for one in files_of]}
    try:
        content = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    if content.get("of") != key:
        label, rescorer = run_result.read_scores(job.folder)["label"].to_numpy(), Rescorer(job, bench.models, bench.gpu)
        content = {"of": key, "values": [auc(label, rescorer.scores(path)) for path in files_of.values()]}
        files.write_json(kept, content)
    found: Auc = {}
    for (what, share), value in zip(files_of, content["values"], strict=True):
        found.setdefault(what, {0.0: auc_of(job)})[share] = value
    return found


def _section(
    name: str, title: str, note: str, vectors: ItemVectors, found: dict[str, list[Auc]], failed: list[str]
) -> Section:
    """The section of the AUCs of each experiment's runs."""
    mean = {
        expid: {
            what: {share: statistics.fmean(one[what][share] for one in runs if share in one[what]) for share in shares}
            for what in vectors.removable
            for shares in [sorted({share for one in runs for share in one[what]})]
        }
        for expid, runs in found.items()
    }
    records = [
        {"expid": expid, "missing": what, "share": share, "auc": value}
        for expid, of_what in mean.items()
        for what, values in of_what.items()
        for share, value in values.items()
    ]
    table = [
        [expid, what, *(f"{values[share]:.4f}" if share in values else "-" for share in (0.0, *SHARES))]
        for expid, of_what in mean.items()
        for what, values in of_what.items()
    ]
    panels: dict[str, dict[str, list[Point]]] = {
        what: {
            expid: [(share, value, None, None) for share, value in of_what[what].items()]
            for expid, of_what in mean.items()
        }
        for what in vectors.removable
    }
    figure = Figure("share of the items", "AUC", panels)
    headings = ["Experiment", "missing", *(f"{share:.0%}" for share in (0.0, *SHARES))]
    return Section(name, title, note + _of_fused(vectors), headings, table, records, figure, failed)


def _of_fused(vectors: ItemVectors) -> str:
    """What is said of columns that are of several modalities."""
    if vectors.removable == [BOTH]:
        return "Not each modality has a column of its own, so an item lacks all of its vectors. Means over the seeds."
    zeros = "Its vectors of that modality are zeros"
    parts = [f"{share:.0%} of {printable(name)}" for name, share in vectors.explained().items()]
    if not parts:
        return f"{zeros}. Means over the seeds."
    return (
        f"{zeros}, and a fused vector loses the part that they explain of it (least squares over the items; all "
        f"modalities together explain {', '.join(parts)}). Means over the seeds."
    )
