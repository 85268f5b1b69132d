"""Scores of an exported model, with numpy and onnxruntime alone: no torch, and nothing of FuxiCTR.

A request is one user's history and any number of candidates; the history is read once for all of them. Items that the
table does not have count as cold ones: a candidate has the padding item's row, zeros, as an item has that training
never saw and of which nothing is known; in a history its position counts as padding. So an id can be unknown, and is
no error; what is an error, a missing feature or a wrong shape, is told before anything is scored.

`python -m mm_fibinet.scorer DIR --test FILE --out ZIP` writes the submission that prediction.py writes.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mm_fibinet import extras, normalizer
from mm_fibinet.errors import UserError, first_line, printable, run_cli
from mm_fibinet.options import TASKS
from mm_fibinet.served_files import CARD, COMPILED, Card, ItemRows

EMPTY: Mapping = {}
INPUTS = ("history", "real", "candidates", "history_ids", "candidate_ids")  # of a graph, before the row's features
MOST_THREADS = 256  # a system has so many processes for all, and a mistake would take them


@dataclass(frozen=True)
class Request:
    """What is asked at once.

    Attributes:
        history_ids: integers [L] of any length, the user's items, oldest first; 0 is padding.
        candidate_ids: integers [C].
        user: {feature: one value} that all candidates have.
        context: {feature: [C] or [C, width]} that each candidate has.
    """

    history_ids: Sequence[int] | np.ndarray
    candidate_ids: Sequence[int] | np.ndarray
    user: Mapping[str, object] = field(default_factory=dict)
    context: Mapping[str, object] = field(default_factory=dict)


class Scorer:
    """An exported model in memory; safe to use from several threads.

    Args:
        folder: of export_onnx.py.
        threads: that one request is scored with.

    Attributes:
        card: what the folder holds.

    Raises:
        UserError: it is no such folder, or not a whole one.
    """

    def __init__(self, folder: str | Path, threads: int = 1):
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
            raise UserError(f"threads is {threads!r}, expected a whole number from 1 to {MOST_THREADS}")
        self.card = Card.read(folder)
        self.items = ItemRows.read(folder, self.card)
        path = Path(folder) / self.card.graph
        self.session = open_compiled(path, self.card, threads) if path.name == COMPILED else open_graph(path, threads)
        firsts = np.cumsum([0, *self.card.ids.values()])
        self._id_columns = dict(zip(self.card.ids, firsts.tolist(), strict=False))
        self._inputs = {each.name for each in self.session.get_inputs()}
        strange = self._inputs.difference(INPUTS, self.card.row_features)
        if strange:
            raise UserError(f"{folder}: {path.name} reads {min(strange)}, which {CARD} does not have; export it again")

    def score(
        self,
        history_ids: Sequence[int] | np.ndarray,
        candidate_ids: Sequence[int] | np.ndarray,
        user: Mapping[str, object] = EMPTY,
        context: Mapping[str, object] = EMPTY,
    ) -> np.ndarray:
        """Click probabilities of a request's candidates; see Request.

        Returns:
            float32 [C].

        Raises:
            UserError: a feature is missing or unknown, a shape or type is wrong, or a number so large that a score
                is NaN.
        """
        [scores] = self.score_all([Request(history_ids, candidate_ids, user, context)])
        return scores

    def score_all(self, requests: Iterable[Request]) -> list[np.ndarray]:
        """float32 [C] of each request; all of them are checked before the first is scored."""
        if not isinstance(requests, Iterable):
            raise UserError(f"requests is a {type(requests).__name__}, expected a list of Request")
        checked = [self._checked(request) for request in requests]
        return [self._run(*request) for request in checked]

    def _checked(self, request: Request) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """The history's and the candidates' rows in the table, integers [L] and [C], and the row's features."""
        if not isinstance(request, Request):
            raise UserError(f"a request is a {type(request).__name__}, expected a Request")
        history, candidates = self._items(request.history_ids, request.candidate_ids)
        return history, candidates, self._row(request, candidates)

    def score_read(
        self, history_ids: np.ndarray, candidate_ids: np.ndarray, row: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """`score` of features as `schema.read_feature` has them: checked, and on the scale of the model already.

        Args:
            history_ids: integers [L].
            candidate_ids: integers [C].
            row: {feature: [C] or [C, width]} of all of the card's `row_features`.

        Returns:
            float32 [C].
        """
        read = {
            name: values.astype(np.float32 if values.dtype.kind == "f" else np.int32, copy=False)
            for name, values in row.items()
        }
        return self._run(*self._items(history_ids, candidate_ids), read)

    def _items(self, history_ids: object, candidate_ids: object) -> tuple[np.ndarray, np.ndarray]:
        """The history's and the candidates' rows in the table, integers [L] and [C]."""
        history = _ids(history_ids, "history_ids", self.card.num_items)
        return self._positions(history), _ids(candidate_ids, "candidate_ids", self.card.num_items)

    def _positions(self, history: np.ndarray) -> np.ndarray:
        """The last positions, without the padding in front but for what the graph asks for."""
        history = history[max(len(history) - self.card.max_len, 0) :]
        history = history[int((history != 0).argmax()) if history.any() else len(history) :]
        length = max(len(history), self.card.min_len, self.card.padded_len)
        return np.concatenate([np.zeros(length - len(history), np.int64), history])

    def _row(self, request: Request, candidates: np.ndarray) -> dict[str, np.ndarray]:
        """The row's own features: {feature: [C] or [C, width]}."""
        found = {}
        for given, what in ((request.user, "user"), (request.context, "context")):
            if not isinstance(given, Mapping):
                raise UserError(f"{what} is a {type(given).__name__}, expected {{feature: value}}, {{}} for none")
            for name in given:
                if name not in self.card.row_features:
                    expected = ", ".join(self.card.row_features) or "none"
                    raise UserError(f"{what} has {name!r}, expected the features that the model reads: {expected}")
                if name in found:
                    raise UserError(f"{name} is in user and in context, expected in one of them")
                found[name] = (given[name], what)
        row = {}
        for name, spec in self.card.row_features.items():
            if name in found:
                row[name] = _feature(name, spec, *found[name], len(candidates))
            elif name in self.card.ids:
                row[name] = self.items.ids[candidates, self._id_columns[name]]
            else:
                raise UserError(f"{name} is missing, expected a value in user, or one a candidate in context")
        return row

    def _run(self, history: np.ndarray, candidates: np.ndarray, row: dict[str, np.ndarray]) -> np.ndarray:
        """The graph's scores: float32 [C]; of as many candidates at once as memory is meant for."""
        items, scores = self.items, np.empty(len(candidates), np.float32)
        shared = {"history": items.take(history), "real": (history > 0).astype(np.float32)}
        shared["history_ids"] = items.ids.take(history, axis=0)
        parts = -(-len(candidates) * len(history) // self.card.pairs_at_once)
        for part in np.array_split(np.arange(len(candidates)), max(min(parts, len(candidates)), 1)):
            if not len(part):
                continue
            chosen = candidates[part]
            own = {"candidates": items.take(chosen), "candidate_ids": items.ids.take(chosen, axis=0)}
            own |= {name: values[part] for name, values in row.items()}
            fed = {name: values for name, values in {**shared, **own}.items() if name in self._inputs}
            scores[part] = self._computed(fed)
        strange = np.flatnonzero(~np.isfinite(scores))
        if len(strange):  # sorted anywhere, were it given
            raise UserError(
                f"candidate {strange[0]}, item {candidates[strange[0]]}, scores {scores[strange[0]]}: a number of the "
                "request or of an item is too large; expected numbers as the model was trained on"
            )
        return scores

    def _computed(self, fed: dict[str, np.ndarray]) -> np.ndarray:
        """What the graph makes of its inputs: float32 [C]."""
        try:
            return self.session.run(None, fed)[0]
        except MemoryError:
            raise
        except Exception as error:  # of onnxruntime's and torch's own kinds
            reason = f"{self.card.graph} cannot score what {CARD} has it read ({first_line(error)})"
            raise UserError(f"{reason}; is it the one that {CARD} is of? copy or export it again") from error


def score_split(scorer: Scorer, path: str | Path) -> np.ndarray:
    """Scores of a split in the file's order, a request for each history that occurs in a part of the file.

    Unlike a request's, its items must be known, as prediction.py has it; others are of another catalogue.

    Args:
        path: a parquet file or folder of the contract.

    Returns:
        float32 [N].

    Raises:
        UserError: the file breaks the contract.
    """
    from mm_fibinet import parquet_reader, schema  # and with them pyarrow, which a server may do without

    if schema.ITEM_SEQ not in parquet_reader.open_parquet(path).schema_arrow.names:
        raise UserError(
            f"{path}: has no column {schema.ITEM_SEQ}, the rows' histories; where they are in user_info, prediction.py "
            "scores it, or a program that gives them to Scorer.score"
        )
    columns = schema.split_columns(scorer.card.row_features, [], scorer.card.num_items)
    scores = []
    for _, blocks in schema.checked_slices(path, columns):
        history, items = blocks[schema.ITEM_SEQ], blocks[schema.ITEM_ID]
        _, first, group = np.unique(history, axis=0, return_index=True, return_inverse=True)
        order = np.argsort(group.reshape(-1), kind="stable")
        rows = np.split(order, np.cumsum(np.bincount(group.reshape(-1)))[:-1])
        context = {name: blocks[name] for name in scorer.card.row_features}
        found = np.empty(len(items), np.float32)
        for start, chosen in zip(first, rows, strict=True):
            own = {name: values[chosen] for name, values in context.items()}
            found[chosen] = scorer.score_read(history[start], items[chosen], own)
        scores.append(found)
    return np.concatenate(scores)


def _array(values: object, what: str) -> np.ndarray:
    """What a caller gave, as an array."""
    try:
        return np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:  # lists of several lengths, say
        raise UserError(f"{what} is no array of numbers ({error})") from error


def _ids(values: object, what: str, num_items: int) -> np.ndarray:
    """int64 [n], 0 for ids that the table does not have."""
    ids = _array(values, what)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise UserError(f"{what} is {ids.dtype} {list(ids.shape)}, expected integers [n]")
    return np.where((ids > 0) & (ids < num_items), ids, 0).astype(np.int64)


def _feature(name: str, spec: dict, value: object, where: str, count: int) -> np.ndarray:
    """A feature of the row as the graph reads it: [count] or [count, width].

    Ids that the model does not know are 0, as ids that training never saw; so is None for an id.
    """
    kind, is_list = spec["type"], spec["type"] in ("sequence", "embedding")
    if value is None:
        value = spec.get("fill_na", 0 if kind == "categorical" else None)
    values = _array(value, f"{where}: {name}")
    shape, wanted = list(values.shape), "one value" if where == "user" else f"[{count}]"
    if is_list:
        wanted = "[width]" if where == "user" else f"[{count}, width]"
    values = values[None] if where == "user" else values
    integer = kind in ("categorical", "sequence")
    if values.ndim != 1 + is_list or (where == "context" and len(values) != count):
        raise UserError(f"{where}: {name} has shape {shape}, expected {wanted}")
    if values.size and values.dtype.kind not in ("iu" if integer else "iuf"):
        raise UserError(f"{where}: {name} is {values.dtype}, expected {'integers' if integer else 'numbers'}")
    if kind == "numeric":
        values = values.astype(np.float64)
        values = np.where(np.isnan(values), spec["fill_na"], values) if "fill_na" in spec else values
        values = normalizer.scaled(values, spec)
    width = {"sequence": "max_len", "embedding": "pretrain_dim"}.get(kind)
    if width and not (values.shape[1] == spec[width] or (integer and values.shape[1] < spec[width])):
        raise UserError(f"{where}: {name} has {values.shape[1]} values, expected {spec[width]}")
    if integer:
        values = np.where((values >= 0) & (values < spec["vocab_size"]), values, 0).astype(np.int32)
        if width:
            values = np.pad(values, ((0, 0), (spec[width] - values.shape[1], 0)))
    else:
        values = (values * spec.get("scale", 1) if kind == "embedding" else values).astype(np.float32)
        if not np.isfinite(values).all():
            raise UserError(f"{where}: {name} has NaN or infinity, expected finite numbers")
    return np.repeat(values, count, axis=0) if where == "user" else np.ascontiguousarray(values)


def open_graph(path: Path, threads: int):
    """onnxruntime's session; its threads sleep while they wait, as other work may need the cores."""
    extras.require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    slower = ["SkipLayerNormFusion"]  # for vectors as short as fields, one kernel takes several times as long as two
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=slower
        )
    except Exception as error:  # of onnxruntime's own kinds
        raise UserError(f"{path}: onnxruntime cannot load it ({first_line(error)}); copy or export it again") from error


def open_compiled(path: Path, card: Card, threads: int):
    """torch's, which only a graph that it compiled needs."""
    try:
        from mm_fibinet.compiled_graph import CompiledGraph
    except ModuleNotFoundError as error:
        advice = "install the torch that compiled it, or export with --format onnx"
        raise UserError(f"{path}: {error.name} is not installed, which runs it; {advice}") from error

    return CompiledGraph(path, [*INPUTS, *card.row_features], len(INPUTS), threads)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mm_fibinet.scorer", description="Score a test split without torch."
    )
    parser.add_argument("folder", metavar="DIR", help="of export_onnx.py")
    parser.add_argument("--test", required=True, metavar="FILE", help="test.parquet")
    parser.add_argument("--out", required=True, nargs="+", metavar="FILE", help="the zip, the .csv in it, or both")
    parser.add_argument("--task", default="Task1&2", choices=TASKS, help="name of the score column")
    parser.add_argument("--threads", type=int, default=1, help="of a request (default: %(default)s)")
    args = parser.parse_args()
    from mm_fibinet import schema, submission  # pyarrow, and polars to write the table

    scorer = Scorer(args.folder, args.threads)
    num_rows = len(schema.read_test_ids(args.test))
    outputs = submission.require_outputs(args.out, [args.test, args.folder])
    submission.write_submission(score_split(scorer, args.test), outputs, num_rows, args.task)
    for path in outputs:
        print(printable(submission.check_submission(path, args.test)))


if __name__ == "__main__":
    run_cli(main)
