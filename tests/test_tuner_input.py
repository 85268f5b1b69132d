"""A tuner YAML with a mistake is one clear error before anything runs."""

import pytest
from conftest import run_script
from test_tuner import write_tuner


@pytest.mark.parametrize(
    ("space", "more", "arguments", "message"),
    [
        ("{no_such: [1, 2]}", "", [], "tuner_space: no_such: unknown key, expected one of "),
        ("{learning_rate: []}", "", [], "tuner_space has learning_rate: [], expected a list of values"),
        ("{learning_rate: {low: 2, high: 1}}", "", ["--optuna", "1"], "or low < high"),
        ("{learning_rate: {low: 0, high: 1, log: true}}", "", ["--optuna", "1"], "log (low above 0)"),
        ("{epochs: {low: 0.5, high: 3, type: int}}", "", ["--optuna", "1"], "or low < high"),
        ("{learning_rate: {low: 0.1, high: 1}}", "", [], "learning_rate is a range, which needs --optuna N"),
        ("{test_data: [a, b]}", "", [], "a tuner does not look at the test split"),
        ("{valid_data: TEST}", "", [], "valid_data is the test split"),
        ("{epochs: 1}", "", ["--set", "test_data=x"], "--set test_data: a tuner does not look at the test split"),
        ("{epochs: 1}", "", ["--set", "valid_data=TEST"], "valid_data is the test split"),
        ("{epochs: [1, 2]}", "", ["--set", "epochs=3"], "--set epochs: tuner_space varies it"),
        ("{epochs: 1}", "", ["--set", "seed=3"], "--set seed: expected --seed instead"),
        ("{seed: [1, 2]}", "", ["--seed", "3"], "--seed: tuner_space varies the seed"),
        ("{monitor: [AUC, gAUC]}", "", [], "tuner_space varies monitor"),
        ("{model: [FiBiNET, NoSuch]}", "", [], "model 'NoSuch' is unknown"),
        ("{epochs: 1}", "", ["--tag", "none"], "--tag none: in no experiment ID, they are like FiBiNET_test_001_"),
        ("{epochs: 1}", "", ["--optuna", "0"], "--optuna 0: expected at least 1"),
        ("{epochs: 1}", "", ["--workers", "0"], "--workers 0: expected at least 1"),
        ("{epochs: 1}", "", ["--gpu", "99"], "--gpu 99: found"),
        ("{epochs: 1}", "dataset_id: Nope", [], "dataset_id Nope: not in"),
        (
            "{epochs: 1}",
            "dataset_id: Nope\ndataset_config: {A: {}}",
            [],
            "dataset_config has no Nope, expected one of A",
        ),
        (
            "{epochs: 1}",
            "model_config: {A: {}}",
            [],
            "base_expid FiBiNET_test is not in model_config, expected one of A",
        ),
        ("{hidden_units: [64, 32]}", "", [], "tuner_space: hidden_units is 64, expected a list of whole numbers"),
        ("{net_dropout: [0.1, 1.5]}", "", [], "tuner_space: net_dropout is 1.5, expected a number from 0 to below 1"),
        ("{learning_rate: {low: -1, high: 1}}", "", ["--optuna", "1"], "learning_rate is -1, expected a number above"),
        ("{net_dropout: {low: 0, high: 1}}", "", ["--optuna", "1"], "net_dropout is 1, expected a number from 0 to"),
        (
            "{learnin_rate: [0.1]}",
            "",
            [],
            "tuner_space: learnin_rate: unknown key, did you mean learning_rate or table",
        ),
        ("{epochs: 1}", "tuner_spce: {}", [], "tuner_spce: unknown key, did you mean tuner_space?"),
        ("{group_id: item_id}", "", [], "tuner_space: group_id is 'item_id', expected a column of the split"),
        ("{group_id: [user_id, user]}", "", [], "group_id is 'user'"),
        ("{epochs: 1}", "", ["--set", "group_id=item_id"], "--set: group_id is 'item_id', expected a column"),
        (
            "{feature_specs: [[{name: nope, embedding_dim: 4}]]}",
            "",
            [],
            "tuner_space: feature_specs has 'nope', expected",
        ),
        ("{epochs: 1}", "", ["--set", "feature_specs=[{name: nope}]"], "--set: feature_specs has 'nope', expected"),
        (
            "{epochs: 1}",
            "",
            ["--set", "hiden_units=[8]"],
            "--set: hiden_units: unknown key, did you mean hidden_units?",
        ),
        ("{model: [FiBiNET, LR]}", "", [], "embedding_dim: unknown key with model LR, expected one of"),
        ("{dataset_id: NoSuch}", "", [], "dataset_id NoSuch: not in"),
        ("{dataset_id: 3}", "", [], "dataset_id is 3, expected a name"),
        ("{epochs: 1}", "", ["--set", "dataset_id=NoSuch"], "dataset_id NoSuch: not in"),
        ("{epochs: 1}", "dataset_config: [A]", [], "dataset_config is ['A'], expected a mapping of names to settings"),
        ("{epochs: 1}", "model_config: {FiBiNET_test: 3}", [], "FiBiNET_test is 3, expected a mapping of settings"),
        ("3", "", [], "expected base_expid, and tuner_space"),
        ("{learning_rate: [fast]}", "", ["--optuna", "1"], "learning_rate"),
    ],
)
def test_bad_input(dataset, tmp_path, space, more, arguments, message, capsys):
    if "--optuna" in arguments:
        pytest.importorskip("optuna")
    test = dataset.parent / "TEST_DATA/test.parquet"
    tuner = write_tuner(tmp_path, dataset, space.replace("TEST", str(test)), more)
    arguments = [argument.replace("TEST", str(test)) for argument in arguments]
    arguments = ["--config", tuner, "--out", tmp_path / "out", *arguments]
    code, _, error = run_script("run_param_tuner", *arguments, capsys=capsys)
    assert code == 2 and message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out/runs").exists()
