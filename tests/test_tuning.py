"""The same tuning for every experiment: its own settings first, equal budgets, one rule, the same trials each time."""

import argparse
import csv
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from bench_runs import trained_here
from conftest import ROOT, run_script

import model_zoo
from mm_fibinet import settings
from mm_fibinet.checkpoint import RunCheckpoints
from mm_fibinet.commands import Home, benchmark
from mm_fibinet.compare import alike, jobs, tuning
from mm_fibinet.compare.tuning_space import FIELDS, Budget, Line, as_changes, read_space
from mm_fibinet.errors import UserError

SPACE = {
    "common": {
        "learning_rate": {"low": 1.0e-3, "high": 1.0e-2, "log": True},
        "batch_size": {"times": [0.5, 1, 2]},
        "net_dropout": [0.0, 0.1],
    },
    "models": {"FiBiNET": {"reduction_ratio": [1, 2, 3]}},
    "similarity": {
        "with": {"similarity_fields": True, "similarity_only": ["item_emb_d16", "txt_emb_d128"]},
        "without": {"similarity_fields": False, "similarity_only": []},
    },
}
EPOCHS, SECONDS = 5, 2.0  # of a run, and for each of its epochs


class Training:
    """Stands for the workers: a run is an epoch a poll, and its AUC a function of its settings.

    Attributes:
        starts: {folder: how often a run began there}.
        auc: the last epoch's AUC, given the settings; raises what a run fails with.
        stop_after: epochs of all runs after which somebody asks the benchmark to stop.
    """

    def __init__(self, auc, stop_after=math.inf):
        self.auc, self.stop_after, self.starts, self.epochs, self.at_once = auc, stop_after, {}, 0, []
        self.known = {}

    def start(self, command, output, place, environment, meter):
        folder = Path(command[command.index("--model_root") + 1])
        self.starts[folder.name] = self.starts.get(folder.name, 0) + 1
        return Run(self, self.known[str(folder)], output, meter)


class Run:
    """One of `Training`, with the methods of a process."""

    def __init__(self, training, job, output, meter):
        self.training, self.job, self.output, self.meter = training, job, output, meter
        self.code, self.done, self.seconds = None, [], 0.0
        self.state = RunCheckpoints(job.folder, "").last
        if self.state.exists():
            self.done = json.loads(self.state.read_text())

    def poll(self):
        if self.code is None:
            self.training.at_once.append(self.job.expid)
            self._step()
        return self.code

    def _step(self):
        left = (self.meter.limit or math.inf) - self.seconds
        if left <= SECONDS:
            self.seconds += left
            return self._end(130)
        self.seconds += SECONDS
        self.training.epochs += 1
        try:
            auc = self.training.auc(self.job.params)
        except UserError as error:
            self.output.write_text(f"some line\nerror: {error}\n")
            return self._end(2)
        epoch = len(self.done) + 1
        self.done.append(auc - 0.02 * (EPOCHS - epoch))
        self.job.folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{number},{number},{value}" for number, value in enumerate(self.done, 1)]
        (self.job.folder / "metrics.csv").write_text("\n".join(["epoch,step,AUC", *lines]) + "\n")
        if epoch == EPOCHS:
            (self.job.folder / "valid_scores.parquet").touch()
            result = {"fingerprint": self.job.fingerprint, "metrics": {"AUC": self.done[-1]}, "train_seconds": 1}
            (self.job.folder / "result.json").write_text(json.dumps(result))
            (self.job.folder.parent / f"{self.job.expid}.model").touch()
            self._end(0)
        if self.training.epochs >= self.training.stop_after:
            raise KeyboardInterrupt  # as tuning.run_all ends after a signal

    def _end(self, code):
        self.code = code
        self.job.folder.mkdir(parents=True, exist_ok=True)
        self.state.write_text(json.dumps(self.done))
        manifest = {"config": self.job.params, "data": self.job.data}
        (self.job.folder / "manifest.json").write_text(json.dumps(manifest, default=str))
        with open(self.meter.file, "a") as opened:
            opened.write(f"{self.seconds}\n")

    def terminate(self):
        if self.code is None:
            self._end(130)

    def wait(self, timeout):
        return self.code


@pytest.fixture
def tuned(dataset, tmp_path, monkeypatch):
    """A function: the tunings of these experiments, run by `Training`, and that."""
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0)
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(SPACE))

    def run(auc, budget, expids=("FiBiNET_test",), places=1, stop_after=math.inf, out="out", similarity=None):
        training, known = Training(auc, stop_after), {}

        def plan(expids, seeds, out, variants=None):
            overrides = [f"epochs={EPOCHS}"]
            return jobs.plan(str(dataset), expids, seeds, model_zoo, out, overrides, None, variants, known)

        space = read_space(path, model_zoo)
        lines = alike.find_lines(space, plan(expids, [2025], tmp_path / out), model_zoo, similarity)
        tunings = alike.plan_tuning(
            lines, space, Budget.read(budget), model_zoo, {"epochs"}, [2025], plan, tmp_path / out
        )
        for one in tunings:
            one.plan = noted(one.plan, training)
        with jobs.locked(tmp_path / out) as lock:
            try:
                tuning.run_all(tunings, ["run"], [jobs.CPU] * places, lock, training, tmp_path / out)
            except KeyboardInterrupt:
                assert training.epochs >= stop_after
        return tunings, training, alike.plan_lines(lines, tunings, [2025, 7], plan, tmp_path / out)

    return run


def noted(plan, training):
    """A planner whose runs the training knows, and which stay as they are."""

    def planned(changes):
        job = plan(changes)
        training.known[str(job.model_root)] = job
        return job

    return planned


def proposed(tunings):
    return [(trial.settings, trial.state, trial.value) for one in tunings for trial in one.trials]


def rising(params):
    """Better with a higher learning rate; of the experiment's own, 0.005, 0.75."""
    return 0.7 + 10 * params["learning_rate"]


def falling(params):
    """Best with the experiment's own settings."""
    return 0.9 - abs(math.log(params["learning_rate"] / 0.005)) - abs(params["net_dropout"] - 0.1)


def test_the_experiments_own_settings_are_the_first_trial(tuned, dataset):
    (one,), _, runs = tuned(falling, "6")
    assert [trial.number for trial in one.trials] == list(range(6))
    base = one.trials[0]
    own = settings.load_params(str(dataset), "FiBiNET_test", model_zoo)
    assert base.settings == {} and base.value == pytest.approx(0.9)
    assert {key: base.job.params[key] for key in SPACE["common"]} == {key: own[key] for key in SPACE["common"]}
    assert one.best() is base
    assert [job.changes for job in runs] == [[], []] and [job.seed for job in runs] == [2025, 7]
    assert base.job.seed not in (2025, 7)  # no line of the leaderboard is a run that was chosen for its luck


def test_the_best_trial_is_what_the_leaderboard_runs(tuned):
    (one,), _, runs = tuned(rising, "8")
    best = max(one.trials[1:], key=lambda trial: trial.settings["learning_rate"])
    assert best.settings["learning_rate"] > 0.005 and one.best() is best
    assert best.value == pytest.approx(0.7 + 10 * best.settings["learning_rate"])
    for job in runs:
        assert job.changes == as_changes(best.settings) and job.tuned.trials == 8
        assert {key: job.params[key] for key in best.settings} == best.settings
    for trial in one.trials:
        assert set(trial.settings) in (set(), {"learning_rate", "batch_size", "net_dropout", "reduction_ratio"})
        assert trial.job.params["batch_size"] in (32, 64, 128)  # times 64


def test_seconds_are_spent_to_the_last_and_a_trial_that_they_end_does_not_count(tuned, tmp_path):
    """Four epochs of 2.5 s a trial: three fit into 35 s, the fourth is stopped after 5 s."""
    tunings, _, runs = tuned(lambda params: 0.8, "35s", expids=("FiBiNET_test", "FiBiNET_test_no_emb"))
    for one in tunings:
        assert [trial.state for trial in one.trials] == ["done"] * 3 + ["stopped"]
        assert one.seconds == pytest.approx(35) and one.count == 3
        assert one.best() is one.trials[0]  # of equal ones the first
    assert {tuple(job.tuned) for job in runs} == {(3, 35.0)}
    with open(tmp_path / "out/tuning.csv", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["state"] for row in rows] == (["done"] * 3 + ["stopped"]) * 2
    assert [float(row["seconds"]) for row in rows] == [10, 10, 10, 5] * 2
    assert rows[3]["value"] == "" and "learning_rate=" in rows[3]["set"]


def test_a_smaller_budget_takes_nothing_of_a_larger_one_before_it(tuned):
    """Trials of 10 s: the third of 60 s ended after 30, which is more than 25."""
    (larger,), _, _ = tuned(rising, "60s", out="one")
    assert larger.count > 3
    (again,), training, _ = tuned(rising, "25s", out="one")
    (alone,), _, runs = tuned(rising, "25s", out="two")
    states = ["done", "done", "stopped"]
    assert [trial.state for trial in again.trials] == states == [trial.state for trial in alone.trials]
    assert again.count == runs[0].tuned.trials == 2 and training.starts == {}
    assert again.best().settings == alone.best().settings
    (larger_again,), nothing, _ = tuned(rising, "60s", out="one")
    assert proposed([larger_again]) == proposed([larger]) and nothing.starts == {}


def test_a_budget_that_ends_in_the_first_trial_leaves_the_experiment_as_it_is(tuned):
    (one,), _, runs = tuned(rising, "6s")
    assert [trial.state for trial in one.trials] == ["stopped"] and one.best() is None
    assert runs[0].changes == [] and runs[0].tuned == (0, 6.0)


@pytest.mark.parametrize(("budget", "trials"), [("7", 7), ("74s", 8)])
def test_the_same_trials_come_out_however_many_run_at_a_time(tuned, budget, trials):
    expids = ("FiBiNET_test", "FiBiNET_test_no_emb")
    first, training, _ = tuned(rising, budget, expids, out="one")
    again, beside, _ = tuned(rising, budget, expids, out="two", places=3)
    assert proposed(first) == proposed(again) and len(first[0].trials) == trials
    assert len({json.dumps(trial.settings) for trial in first[0].trials}) > 4
    assert training.starts == beside.starts
    assert beside.at_once[:2] == list(expids)  # while of the first training, one after the other was trained
    assert training.at_once[:2] == [expids[0]] * 2


@pytest.mark.parametrize("stop_after", [1, 9, 13])
def test_a_stopped_command_goes_on_as_if_it_had_not(tuned, stop_after):
    whole, training, _ = tuned(rising, "6", out="whole")
    tuned(rising, "6", out="parts", stop_after=stop_after)
    resumed, rest, _ = tuned(rising, "6", out="parts")
    assert proposed(resumed) == proposed(whole) and resumed[0].count == 6
    assert training.epochs == rest.epochs + stop_after  # no epoch is trained twice
    assert resumed[0].seconds == pytest.approx(whole[0].seconds) == pytest.approx(training.epochs * SECONDS)
    done, nothing, _ = tuned(rising, "6", out="parts")
    assert proposed(done) == proposed(whole) and nothing.starts == {}
    more, _, _ = tuned(rising, "9", out="parts")
    assert proposed(more)[:6] == proposed(whole) and more[0].count == 9


def test_a_trial_that_fails_does_not_end_its_experiment(tuned, tmp_path):
    def fails_above(params):
        if params["learning_rate"] > 0.004:
            raise UserError("the training loss is nan")
        return 0.8

    (one,), _, runs = tuned(fails_above, "8")
    failed = [trial for trial in one.trials if trial.state == "failed"]
    assert failed[0] is one.trials[0] and 1 < len(failed) < 8 and one.count == 8
    assert {trial.error for trial in failed} == {"the training loss is nan"}
    assert one.best().value == 0.8 and runs[0].changes == as_changes(one.best().settings)
    assert "the training loss is nan" in (tmp_path / "out/tuning.csv").read_text()


def test_a_trial_that_failed_costs_what_one_start_of_it_costs(tuned):
    """Every command tries it again, from the beginning; the budget is that of one tuning, however often it is named."""

    def fails_above(params):
        if params["learning_rate"] > 0.004:
            raise UserError("the training loss is nan")
        return rising(params)

    first = tuned(fails_above, "60s")[0]
    failed = [trial.state for trial in first[0].trials].count("failed")
    assert failed > 1 and first[0].seconds == pytest.approx(60)
    for _ in range(3):
        again, training, _ = tuned(fails_above, "60s")
        assert proposed(again) == proposed(first) and len(training.starts) == failed
        assert again[0].seconds == pytest.approx(60)


def test_an_experiment_whose_every_trial_fails_comes_to_an_end(tuned):
    def fails(params):
        raise UserError("no space")

    (one,), _, runs = tuned(fails, "1h")
    assert len(one.trials) == tuning.MOST_IN_VAIN and one.best() is None and runs[0].changes == []


def test_what_was_tried_is_not_run_again_and_few_values_come_to_an_end(tuned, tmp_path):
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({**SPACE, "common": {"net_dropout": [0.0, 0.1]}, "models": {}}))
    (one,), training, _ = tuned(lambda params: 0.8 + params["net_dropout"], "20")
    states = [trial.state for trial in one.trials]
    assert states.count("done") == 2 == len(training.starts) and set(states) == {"done", "again"}
    assert states[-tuning.MOST_IN_VAIN :] == ["again"] * tuning.MOST_IN_VAIN
    assert set(training.starts.values()) == {1}


def test_one_rule_stops_trials_that_fall_behind(tuned, tmp_path):
    """Followed here by hand: below the median of the trials that were done at its place, from the fourth evaluation."""
    (one,), _, _ = tuned(rising, "14")
    ended = []
    for trial in one.trials:
        values = [rising(trial.job.params) - 0.02 * (EPOCHS - epoch) for epoch in range(1, EPOCHS + 1)]
        behind = None
        for place in range(3, EPOCHS - 1):
            others = sorted(other[place] for other in ended if len(other) == EPOCHS)
            half = len(others) // 2
            median = (others[half] + others[~half]) / 2 if others else -math.inf
            if len(others) >= tuning.STARTUP_TRIALS and max(values[: place + 1]) < median:
                behind = place + 1
                break
        assert trial.state == ("pruned" if behind else "done"), trial.number
        ended.append(values[: behind or EPOCHS])
    pruned = [trial for trial in one.trials if trial.state == "pruned"]
    assert pruned and not any(trial is one.best() for trial in pruned)
    assert not list((tmp_path / "out/tuning").rglob("*.model"))  # nobody asks for a trial's weights


def test_similarity_fields_on_and_off_are_lines_of_their_own(tuned, dataset):
    tunings, _, runs = tuned(falling, "2", similarity="both")
    assert [one.line.name for one in tunings] == ["FiBiNET_test", "FiBiNET_test with similarity"]
    with_it = tunings[1].trials[0].job.params
    assert with_it["similarity_fields"] is True
    assert with_it["similarity_only"] == ["item_emb_d16"]  # of the columns those that item_info has
    assert not tunings[0].trials[0].job.params.get("similarity_fields")
    shown = tunings[1].rows()[0]["set"]  # as a shell takes it
    assert shown == "similarity_fields=true 'similarity_only=[\"item_emb_d16\"]'"
    names = ["FiBiNET_test", "FiBiNET_test with similarity"]
    assert [(job.shown, job.seed) for job in runs] == [(name, seed) for seed in (2025, 7) for name in names]
    assert len({job.model_root for job in runs}) == 4


@pytest.mark.parametrize(
    ("overrides", "which", "names"),
    [
        ([], None, [""]),
        ([], "on", [" with similarity"]),
        ([], "off", [""]),
        (["similarity_fields=True"], "on", [""]),
        (["similarity_fields=True"], "both", ["", " without similarity"]),
        (["model=LR"], "both", [""]),
    ],
)
def test_a_line_is_the_experiment_itself_where_nothing_is_switched(dataset, tmp_path, overrides, which, names):
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    space = read_space(tmp_path / "space.yaml", model_zoo)
    sizes = ["hidden_units", "net_dropout", "embedding_dim"] if overrides == ["model=LR"] else []
    experiment = settings.load_model_config(dataset, "FiBiNET_test")
    experiment = {key: value for key, value in experiment.items() if key not in sizes}
    entry = settings.load_dataset_config(dataset, "TEST_DATA")
    params = settings.resolve("x", experiment, entry, model_zoo, ("--set", settings.parse_overrides(overrides)))
    lines = space.lines("x", {**params, "model_id": "x"}, model_zoo, which)
    assert [line.label for line in lines] == names and all(line.name == f"x{line.label}" for line in lines)
    assert lines[0].changes == {} or names == [" with similarity"]


@pytest.mark.parametrize(
    ("modalities", "compared_only"),
    [(["txt_emb_d128"], ["item_emb_d128"]), ([], [])],  # none named: all that there are
)
def test_what_a_model_reads_as_modalities_stays_a_feature_where_it_is_compared(tmp_path, modalities, compared_only):
    """LMF without its modalities is another model; `similarity_only` takes columns out of the features."""
    columns = ["item_emb_d128", "txt_emb_d128"]
    pq.write_table(pa.table({name: [0] for name in ("item_id", *columns)}), tmp_path / "item_info.parquet")
    similarity = {"with": {FIELDS: True, "similarity_only": columns}, "without": {FIELDS: False}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({**SPACE, "similarity": similarity}))
    space = read_space(tmp_path / "space.yaml", model_zoo)
    changed = {"item_info": str(tmp_path / "item_info.parquet"), "modality_features": modalities}
    params = settings.load_params(str(ROOT / "config"), "LMF_small", model_zoo, []) | changed
    (line,) = space.lines("LMF_small", params, model_zoo, "on")
    assert line.changes == {FIELDS: True, "similarity_only": compared_only}
    params = settings.load_params(str(ROOT / "config"), "FM_small", model_zoo, []) | {"item_info": params["item_info"]}
    (line,) = space.lines("FM_small", params, model_zoo, "on")
    assert line.changes["similarity_only"] == columns


@pytest.mark.parametrize("which", ["on", "off", "both"])
def test_data_without_items_have_no_similarity(tmp_path, which):
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    space = read_space(tmp_path / "space.yaml", model_zoo)
    assert space.lines("x", {"model": "DeepFM"}, model_zoo, which) == [Line("x")]


def test_the_shipped_space_fits_every_experiment_that_it_is_for(tmp_path):
    item_info, columns = tmp_path / "item_info.parquet", ("item_id", "item_emb_d128", "txt_emb_d128", "img_emb_d128")
    pq.write_table(pa.table({name: [0] for name in columns}), item_info)
    config = ROOT / "config"
    space, experiments = read_space(config / "tuner/benchmark.yaml", model_zoo), settings.load_model_configs(config)
    datasets = {}
    for suite in settings.read_yaml(config / "benchmark_config.yaml"):
        for expid in jobs.find_suite(str(config), suite):
            name = experiments[expid]["dataset_id"]
            datasets[name] = datasets.get(name) or settings.load_dataset_config(config, name)
            params = {**settings.resolve(expid, experiments[expid], datasets[name], model_zoo), "model_id": expid}
            values = space.of(params, model_zoo)
            assert {"learning_rate", "embedding_regularizer", "batch_size"} <= set(values), expid
            assert values["batch_size"] == [params["batch_size"] * factor // 2 for factor in (1, 2, 4)], expid
            for line in space.lines(expid, params | {"item_info": str(item_info)}, model_zoo, "both"):
                switched = settings.change_params(params, model_zoo, as_changes(line.changes))
                assert bool(line.label) == (switched.get(FIELDS) != params.get(FIELDS) and FIELDS in switched), expid
                taken_out = {*(line.changes.get("similarity_only") or ())}
                assert not taken_out & {*(params.get("modality_features") or ())}, expid
                to_mlp = switched.get("similarity_to_mlp")
                assert not line.label or to_mlp in (None, switched[FIELDS]), expid
            assert "net_dropout" in values or params.get("net_dropout") is None, expid
    for model in space.models:
        assert model in model_zoo.__all__, model


def test_a_config_folder_without_a_space_takes_ours(dataset, tmp_path):
    home = Home.repository(ROOT)
    args = argparse.Namespace(config=str(dataset), tune_space=None)
    assert benchmark.find_space(args, home) == ROOT / "config/tuner/benchmark.yaml"
    (tmp_path / "tuner").mkdir()
    (tmp_path / "tuner/benchmark.yaml").touch()
    args.config = str(tmp_path)
    assert benchmark.find_space(args, home) == tmp_path / "tuner/benchmark.yaml"
    args.tune_space = "mine.yaml"
    assert benchmark.find_space(args, home) == Path("mine.yaml")


def test_what_set_fixes_is_not_varied(dataset, tmp_path):
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    space = read_space(tmp_path / "space.yaml", model_zoo)
    params = settings.load_params(str(dataset), "FiBiNET_test", model_zoo)
    assert set(space.of(params, model_zoo, {"learning_rate"})) == {"batch_size", "net_dropout", "reduction_ratio"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("20m", Budget(seconds=1200)), ("1.5h", Budget(seconds=5400)), ("90s", Budget(seconds=90)), ("7", Budget(7))],
)
def test_budgets(text, expected):
    assert Budget.read(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "0m", "-3", "1.5", "20 m", "20min", "m", "1e3", "99999", "٣", "nan", "20m\n"]
)
def test_bad_budgets_are_one_line(text, dataset, tmp_path, capsys):
    arguments = ["--config", dataset, "--expids", "FiBiNET_test", "--out", tmp_path / "out", f"--tune={text}"]
    code, _, error = run_script("run_benchmark", *arguments, capsys=capsys)
    assert code == 2 and len(error.splitlines()) == 1 and not (tmp_path / "out").exists()
    assert "expected minutes, hours or seconds of one core for each experiment (20m, 2h, 90s), or a number" in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"comon": {}}, "comon: unknown key, did you mean common?"),
        ({"common": []}, "common is [], expected a mapping"),
        ({"models": {"FiBiNET": [1]}}, "FiBiNET is [1], expected a mapping"),
        (
            {"models": {"FiBiNET": {"learning_rte": [1]}}},
            "models: FiBiNET: learning_rte: unknown key, did you mean learning_rate",
        ),
        ({"common": {"learning_rte": [1]}}, "space.yaml: learning_rte is a setting of no model"),
        ({"common": {"learning_rate": []}}, "learning_rate is [], expected a list of values"),
        ({"common": {"learning_rate": 0.1}}, "learning_rate is 0.1, expected a list of values"),
        (
            {"common": {"learning_rate": {"low": 1, "high": 0}}},
            "learning_rate is {'high': 0, 'low': 1}, expected a list",
        ),
        ({"common": {"learning_rate": {"times": [0]}}}, "{'times': [0]}, expected a list of values"),
        ({"common": {"learning_rate": [0.1, -1]}}, "space.yaml: learning_rate is -1, expected"),
        ({"common": {"similarity_fields": {"times": [2]}}}, "similarity_fields is times [2], but the experiment has"),
        ({"similarity": {"with": {"similar": 1}, "without": {}}}, "space.yaml: similar is a setting of no model"),
        ({"similarity": {"with": {}}}, "similarity has ['with'], expected with and without"),
        ({"similarity": {"with": {}, "without": {}}}, "similarity: with: similarity_fields is missing, expected True"),
        (
            {"similarity": {"with": {"similarity_fields": True}, "without": {"similarity_fields": 0}}},
            "similarity: without: similarity_fields is 0, expected False",
        ),
        (
            {"similarity": {**SPACE["similarity"], "with": {"similarity_fields": True, "similarity_only": "txt"}}},
            "similarity: with: similarity_only is 'txt', expected a list of columns",
        ),
        ({"models": {"FiBiNETT": {"batch_size": [1]}}}, "models: model 'FiBiNETT' is unknown, did you mean FiBiNET?"),
        ({"common": {"valid_data": ["train.parquet"]}}, "valid_data is the same for all runs of a comparison"),
        ({"models": {"FiBiNET": {"seed": [1, 2]}}}, "seed is the same for all runs of a comparison, leave it out"),
    ],
)
def test_bad_spaces_are_one_line_before_anything_runs(change, message, dataset, tmp_path, capsys):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({**SPACE, **change}))
    arguments = ["--config", dataset, "--expids", "FiBiNET_test", "--tune", "2", "--tune_space", path]
    code, _, error = run_script("run_benchmark", *arguments, "--out", tmp_path / "out", capsys=capsys)
    assert code == 2 and message in error and len(error.splitlines()) == 1, error
    assert not list((tmp_path / "out").rglob("*.log"))


def test_a_space_says_what_similarity_is_where_that_is_asked_for(dataset, tmp_path, capsys):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({"common": SPACE["common"]}))
    assert read_space(path, model_zoo).of(settings.load_params(dataset, "FiBiNET_test", model_zoo), model_zoo)
    arguments = ["--config", dataset, "--expids", "FiBiNET_test", "--tune", "2", "--tune_space", path]
    arguments += ["--similarity", "on", "--out", tmp_path / "out"]
    code, _, error = run_script("run_benchmark", *arguments, capsys=capsys)
    expected = f"error: {path}: has no similarity, expected it, with and without, for --similarity on\n"
    assert (code, error) == (2, expected)


def test_a_switched_line_is_held_to_the_schema_before_anything_runs(dataset, tmp_path, capsys):
    path, switched = tmp_path / "space.yaml", {"similarity_fields": True, "similarity_to_mlp": 3}
    path.write_text(yaml.safe_dump({**SPACE, "similarity": {**SPACE["similarity"], "with": switched}}))
    arguments = ["--config", dataset, "--expids", "FiBiNET_test", "--similarity", "both", "--tune_space", path]
    code, _, error = run_script("run_benchmark", *arguments, "--out", tmp_path / "out", capsys=capsys)
    assert (code, error) == (2, f"error: {path}: similarity: with: similarity_to_mlp is 3, expected True or False\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tune_space", "x.yaml"], "--tune_space x.yaml: there is no --tune BUDGET and no --similarity"),
        (["--tune", "2", "--tune_space", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--similarity", "both", "--set", "similarity_fields=True"], "--set similarity_fields: expected --similarity"),
        (
            ["--similarity", "both", "--set", "similarity_only=[item_emb_d16]"],
            "--set similarity_only: --similarity both sets it for FiBiNET_test with similarity, by ",
        ),
        (["--similarity", "maybe"], "invalid choice: 'maybe'"),
        (["--tune", "2", "--baseline", "FiBiNET_test with similarity"], "not among the experiments that are run"),
    ],
)
def test_bad_arguments(arguments, message, dataset, tmp_path, capsys):
    given = ["--config", dataset, "--expids", "FiBiNET_test", "--out", tmp_path / "out", *arguments]
    code, _, error = run_script("run_benchmark", *given, capsys=capsys)
    assert code == 2 and message in error


def test_task_1_is_not_tuned(tmp_path, capsys):
    code, _, error = run_script("run_benchmark", "--task1", tmp_path / "a.parquet", "--tune", "2", capsys=capsys)
    assert code == 2 and "--tune 2: with --task1 the embedding alone differs between runs" in error


@pytest.mark.slow
def test_the_command(dataset, tmp_path, capsys):
    """The real thing, twice: trials in a worker, then a run with the best of them; nothing is done again.

    The worker's second run is, to the last bit, that of a process of its own.
    """
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({**SPACE, "common": {"learning_rate": [5e-3, 5e-2]}}))
    arguments = ["--config", dataset, "--expids", "FiBiNET_test", "--tune", "2", "--out", tmp_path / "out"]
    arguments += ["--tune_space", tmp_path / "space.yaml"]
    with trained_here() as trained:
        code, printed, error = run_script("run_benchmark", *arguments, capsys=capsys)
        assert code == 0 and "FiBiNET_test trial 0: " in printed + error
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")}
        assert run_script("run_benchmark", *arguments, capsys=capsys)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")} == before
    assert len(before) == 3 and len(trained) == 1
    with open(tmp_path / "out/tuning.csv", newline="") as opened:
        trials = list(csv.DictReader(opened))
    with open(tmp_path / "out/leaderboard.csv", newline="") as opened:
        (row,) = csv.DictReader(opened)
    assert [trial["state"] for trial in trials] == ["done", "done"]
    assert row["trials"] == "2" and float(row["train_seconds"]) > 0
    assert float(row["tuning_seconds"]) == pytest.approx(sum(float(trial["seconds"]) for trial in trials), abs=0.11)
    page = (tmp_path / "out/leaderboard.html").read_text()
    assert "<dt>Tuning</dt><dd>2 trials each, on valid</dd>" in page
    best = max(trials, key=lambda trial: float(trial["value"]))
    assert trained[0].changes == best["set"].split() and trained[0].params["seed"] == 2025

    second = [*trials[1]["set"].split(), "seed=1"]
    alone = ["--config", dataset, "--expid", "FiBiNET_test", "--model_root", tmp_path / "alone", "--set", *second]
    assert run_script("run_expid", *alone, capsys=capsys)[0] == 0
    values = {path: json.loads(path.read_text())["metrics"]["AUC"] for path in before if "tuning" in str(path)}
    (of_second,) = (path for path, value in values.items() if value == float(trials[1]["value"]))
    scores = "TEST_DATA/FiBiNET_test/valid_scores.parquet"
    assert of_second.with_name("valid_scores.parquet").read_bytes() == (tmp_path / "alone" / scores).read_bytes()


@pytest.mark.parametrize(
    ("values", "stored", "value"),
    [
        ({"low": 3e-4, "high": 5e-3, "log": True}, 0.00123456789, 0.00123),
        ({"low": 0.9, "high": 0.9999}, 0.99983456, 0.9998),  # three digits are 1, which ema_decay cannot be
        ({"low": 0.99, "high": 0.9999}, 0.991234567, 0.9912),  # three digits are one of eleven values
        ({"low": 0.0, "high": 0.1236}, 0.12358, 0.1236),
        ({"low": 1, "high": 8}, 3, 3),
        ([0.123456], "0.123456", 0.123456),
    ],
)
def test_a_number_of_a_range_has_few_digits_and_stays_in_it(values, stored, value):
    assert tuning._value(values, stored) == value


def test_what_similarity_sets_is_not_varied(dataset, tmp_path, monkeypatch, capsys):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({**SPACE, "common": {"similarity_fields": [True, False], "net_dropout": [0.0]}}))
    tunings = []
    monkeypatch.setattr(tuning, "run_all", lambda found, *_: tunings.extend(found))
    monkeypatch.setattr(jobs, "run_all", lambda *_: None)
    arguments = ["--config", dataset, "--expids", "FiBiNET_test", "--tune", "2", "--similarity", "both"]
    run_script("run_benchmark", *arguments, "--tune_space", path, "--out", tmp_path / "out", capsys=capsys)
    assert [one.line.label for one in tunings] == ["", " with similarity"]
    assert [list(one.space) for one in tunings] == [["net_dropout", "reduction_ratio"]] * 2


def test_line_names():
    assert Line("A", " with similarity").name == "A with similarity" and Line("A").name == "A"
