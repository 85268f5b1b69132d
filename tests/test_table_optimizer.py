"""Lazy tables: the slow form is a loop over rows in float64, on dense gradients of a model that knows nothing of it."""

import copy

import numpy as np
import pytest
import torch
from test_training import OwnComputeLoss, Run, assert_equal_weights, weights
from torch.utils._python_dispatch import TorchDispatchMode

import model_zoo
from benchmarks import tables
from mm_fibinet import memory, table_optimizer
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.settings import load_params
from mm_fibinet.table_optimizer import LazyAdam, LazyTable, LazyTables, RowwiseAdagrad, TouchedRows, set_table_rate
from mm_fibinet.training import Trainer

TABLE_NAMES = ("item_id", "item_tags", "likes_level", "views_level")


@pytest.fixture
def small_tables(monkeypatch):
    """Every table is large enough to be lazy."""
    monkeypatch.setattr(table_optimizer, "MIN_ROWS", 5)


def is_table(name):
    return any(f"embedding_layers.{table}." in name for table in TABLE_NAMES)


class SlowAdam:
    """Adam, weight by weight in float64; of a table only rows whose gradient is other than zero.

    Args:
        model: whose `grad`s are dense and without penalty.
        penalty: L2 of the tables; l1: L1 of them.
        table_rate: of the tables; rowwise: they are trained by row-wise Adagrad.
    """

    def __init__(self, model, rate, max_norm, penalty, l1, table_rate, rowwise):
        self.model, self.rate, self.max_norm, self.penalty, self.l1 = model, rate, max_norm, penalty, l1
        self.table_rate, self.rowwise = table_rate, rowwise
        self.first, self.second, self.steps = {}, {}, 0

    @torch.no_grad()
    def step(self):
        self.steps += 1
        parameters = dict(self.model.named_parameters())
        moved, squares = {}, 0.0
        for name, parameter in parameters.items():
            values, gradient = parameter.double().numpy(), parameter.grad.double().numpy()
            rows = [row for row in range(len(values)) if not is_table(name) or np.any(gradient[row] != 0)]
            decay = self.penalty if "embedding_layer.embedding_layer" in name else 0.0
            sign = self.l1 if decay else 0.0
            moved[name] = {row: gradient[row] + decay * values[row] + sign * np.sign(values[row]) for row in rows}
            squares += sum(np.sum(np.square(of_row)) for of_row in moved[name].values())
        clip = min(1.0, self.max_norm / (np.sqrt(squares) + 1e-6))
        for name, parameter in parameters.items():
            values = parameter.double().numpy()
            first = self.first.setdefault(name, np.zeros_like(values))
            second = self.second.setdefault(name, np.zeros_like(values))
            for row, gradient in moved[name].items():
                rate = self.table_rate if is_table(name) else self.rate
                if is_table(name) and self.rowwise:  # FBGEMM's loop over a row, one sum of mean squares
                    second[row] += np.mean((clip * gradient) ** 2)
                    values[row] -= rate * clip * gradient / (np.sqrt(second[row]) + 1e-8)
                    continue
                first[row] = 0.9 * first[row] + 0.1 * clip * gradient
                second[row] = 0.999 * second[row] + 0.001 * (clip * gradient) ** 2
                scale = np.sqrt(second[row] / (1 - 0.999**self.steps)) + 1e-8
                values[row] -= rate * first[row] / (1 - 0.9**self.steps) / scale
            parameter.copy_(torch.from_numpy(values))
        return clip


@pytest.mark.parametrize("batch_format", ["indices", "triple"])  # each item once, or every occurrence
@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("regularizer", ["l2(0.01)", "l1_l2(0.001,0.01)"])
@pytest.mark.parametrize(("mode", "table_rate"), [("lazy", None), ("rowwise_adagrad", 0.02)])
def test_a_step_is_adam_or_adagrad_on_the_touched_rows(
    dataset, tmp_path, small_tables, batch_format, accumulation_steps, regularizer, mode, table_rate
):
    run = Run(dataset, tmp_path, net_dropout=0, embedding_regularizer=f'"{regularizer}"', batch_size=3)
    arguments = {**run.params, "batch_format": batch_format}
    train = MMCTRDataLoader(run.model.feature_map, run.params["train_data"], split="train", **arguments)
    l1 = 0.001 if "l1_" in regularizer else 0.0
    rate = run.params["learning_rate"]
    slow_rates = table_rate or rate, mode == "rowwise_adagrad"
    slow = SlowAdam(copy.deepcopy(run.model).train(), rate, 0.05, 0.01, l1, *slow_rates)
    settings = {"max_gradient_norm": 0.05, "accumulation_steps": accumulation_steps, "table_optimizer": mode}
    trainer = run.trainer(**settings, table_learning_rate=table_rate)
    assert len(trainer.tables.parameters) == 8  # four features, each in the fields and in the linear part
    run.model.train()
    clips, untouched = [], 0
    for number, batch in zip(range(12), train, strict=False):
        trainer.step += 1
        trainer._train_step(batch, train, last=False)
        labels = slow.model.get_labels(batch)
        loss = torch.nn.functional.binary_cross_entropy(slow.model(batch)["y_pred"], labels)
        (loss / accumulation_steps).backward()
        if (number + 1) % accumulation_steps == 0:
            gradient = slow.model.get_parameter("embedding_layer.embedding_layer.embedding_layers.item_id.weight").grad
            untouched += int((gradient[1:] == 0).all(1).sum())
            clips.append(slow.step())
            slow.model.zero_grad()
    assert max(clips) < 1 and untouched > 20
    for (name, got), want in zip(run.model.named_parameters(), slow.model.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", ["FiBiNET", "LR", "DIN", "xDeepFM", "Transformer_DCN"])
def test_sparse_gradients_are_the_dense_ones(dataset, tmp_path, small_tables, name):
    params = load_params(dataset, "FiBiNET_test", model_zoo, [], model_root=str(tmp_path))
    feature_map = build_feature_map({**params, "user_id_field": True})
    feature_map.features["views_level"]["share_embedding"] = "likes_level"  # a table that is looked up twice
    loader = MMCTRDataLoader(feature_map, params["train_data"], **{**params, "batch_format": "triple"})
    dense = getattr(model_zoo, name)(feature_map, **{**params, "embedding_regularizer": None}).eval()
    lazy = copy.deepcopy(dense)
    tables = LazyTables(lazy)
    batch = next(iter(loader))
    for model in (dense, lazy):
        torch.nn.functional.binary_cross_entropy(model(batch)["y_pred"], model.get_labels(batch)).backward()
    tables.collect()
    assert any("user_id" in parameter for parameter in tables.parameters)
    found = dict(lazy.named_parameters())
    for parameter, value in dense.named_parameters():
        assert found[parameter].grad.is_sparse == (parameter in tables.parameters)
        torch.testing.assert_close(found[parameter].grad.to_dense(), value.grad, rtol=1e-5, atol=1e-8, msg=parameter)
    norms = [
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for parameters in (
            dense.parameters(),
            [*tables.clippable(), *(value for key, value in found.items() if key not in tables.parameters)],
        )
    ]
    torch.testing.assert_close(norms[0], norms[1])  # rows that are not there are zeros
    assert_equal = torch.testing.assert_close
    for parameter, value in dense.named_parameters():  # and the gradients themselves are clipped
        assert_equal(found[parameter].grad.to_dense(), value.grad, rtol=1e-5, atol=1e-8, msg=parameter)


def test_with_every_row_touched_it_is_torchs_adam():
    torch.manual_seed(0)
    dense = torch.nn.Parameter(torch.randn(7, 3))
    lazy = torch.nn.Parameter(dense.detach().clone())
    adam = torch.optim.Adam([dense], lr=0.1, fused=True)
    own = LazyAdam(torch.optim.Adam([lazy], lr=0.1, fused=True))
    for _ in range(30):
        dense.grad = torch.randn(7, 3)
        rows = torch.cat([torch.arange(7), torch.tensor([2, 2])])  # a third of row 2's gradient each
        parts = dense.grad[rows]
        parts[rows == 2] /= 3
        lazy.grad = TouchedRows(rows, parts).merged().as_sparse(lazy.shape)
        adam.step()
        own.step()
    torch.testing.assert_close(lazy, dense, rtol=1e-5, atol=1e-5)
    for name, value in adam.state[dense].items():  # a checkpoint of one could be one of the other
        torch.testing.assert_close(own.state[lazy][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chain", [None, 2, 7, 1024])  # as on a CPU; as on a GPU, by that many at once
def test_repeats_of_a_row_are_summed_where_it_comes_first(monkeypatch, chain):
    rng = np.random.default_rng(0)
    if chain:
        monkeypatch.setattr(
            table_optimizer, "_sums_of_rows", lambda *rows: table_optimizer._sums_in_parts(*rows, chain)
        )
    for rows in ([], [3], [5, 5, 5], rng.integers(0, 20, 200).tolist()):
        gradients = rng.normal(size=(len(rows), 4)).astype(np.float32)
        found = TouchedRows(torch.tensor(rows, dtype=torch.int64), torch.from_numpy(gradients)).merged()
        assert found.rows.tolist() == sorted(rows)
        for row in set(rows):
            mine = found.gradients[found.rows == row]
            np.testing.assert_allclose(mine[0], gradients[np.array(rows) == row].sum(0), rtol=1e-5, atol=1e-6)
            assert not mine[1:].any()


def test_rowwise_adagrad_is_torchs_adagrad_where_a_row_has_one_column():
    torch.manual_seed(0)
    dense = torch.nn.Parameter(torch.randn(7, 1))
    own = torch.nn.Parameter(dense.detach().clone())
    theirs = torch.optim.Adagrad([dense], lr=0.1, eps=1e-8)
    rowwise = RowwiseAdagrad(torch.optim.Adam([own], lr=0.1, fused=True))
    for step in range(20):
        rows = torch.tensor([1, 4, 4, 6])[: 1 + step % 4]
        own.grad = TouchedRows(rows, torch.randn(len(rows), 1)).merged().as_sparse(own.shape)
        dense.grad = own.grad.to_dense()
        theirs.step()
        rowwise.step()
        torch.testing.assert_close(own, dense, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rowwise.state[own]["sum"], theirs.state[dense]["sum"], rtol=1e-6, atol=1e-6)


def test_a_repeat_of_a_row_is_added_elsewhere_as_zero():
    found = TouchedRows(torch.tensor([0, 0, 0, 0, 2, 2, 3]), torch.ones(7, 1)).merged()
    assert found.apart(4).tolist() == [0, 1, 2, 3, 2, 1, 3]
    table = torch.zeros(4, 1).index_add_(0, found.apart(4), found.gradients)
    assert table.flatten().tolist() == [4, 0, 2, 1]


@pytest.mark.parametrize("mode", ["dense", "lazy", "rowwise_adagrad"])
def test_tables_have_a_learning_rate_of_their_own(dataset, tmp_path, small_tables, mode):
    run = Run(dataset, tmp_path, learning_rate=0.002)
    trainer = run.trainer(table_optimizer=mode, table_learning_rate=0.01, lr_schedule="linear")
    names = {id(value): name for name, value in run.model.named_parameters()}
    rates = {names[id(value)]: group["lr"] for group in trainer.optimizer.param_groups for value in group["params"]}
    assert set(rates) == set(names.values())
    assert {name for name, rate in rates.items() if rate == 0.01} == set(filter(is_table, rates))
    assert {rate for name, rate in rates.items() if not is_table(name)} == {0.002}
    run.model.train()
    trainer.planned_steps = 4
    for batch, _ in zip(run.train, range(3), strict=False):
        trainer.total_steps += 1
        trainer.step += 1
        trainer._train_step(batch, run.train, last=True)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.001, 0.005]  # half of the way
    again = run.trainer(table_optimizer=mode, table_learning_rate=0.03)
    assert [group["lr"] for group in again.optimizer.param_groups] == [0.001, 0.03]


class LargestResult(TorchDispatchMode):
    """Notes how many numbers the largest new tensor has; views and results in place are not new."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        before = {tensor.untyped_storage().data_ptr() for tensor in _dense(arguments)}
        result = function(*arguments, **(named or {}))
        for tensor in _dense([result]):
            if tensor.untyped_storage().data_ptr() not in before:
                self.largest = max(self.largest, tensor.numel())
        return result


def _dense(values):
    for value in values:
        if isinstance(value, list | tuple):
            yield from _dense(value)
        elif isinstance(value, torch.Tensor) and value.layout == torch.strided:
            yield value


@pytest.mark.parametrize(("mode", "allocates"), [("dense", True), ("lazy", False), ("rowwise_adagrad", False)])
def test_nothing_of_the_tables_height_is_allocated(dataset, tmp_path, mode, allocates):
    height = 150_000
    run = Run(dataset, tmp_path, net_dropout=0, embedding_regularizer=1e-3, user_id_field=True)
    feature_map = copy.deepcopy(run.model.feature_map)
    feature_map.features["user_id"]["vocab_size"] = height
    run.model = model_zoo.FiBiNET(feature_map, **run.params)
    trainer = run.trainer(table_optimizer=mode)
    run.model.train()
    batches = iter(run.train)
    trainer._train_step(next(batches), run.train, last=True)  # makes the moments
    with LargestResult() as results:
        trainer._train_step(next(batches), run.train, last=True)
    assert (results.largest >= height) == allocates


@pytest.mark.parametrize("settings", [{}, {"accumulation_steps": 3, "ema_decay": 0.9, "lr_schedule": "linear"}])
@pytest.mark.parametrize(
    "of_tables",
    [{"table_optimizer": "lazy"}, {"table_optimizer": "rowwise_adagrad", "table_learning_rate": 0.02}],
    ids=["lazy", "rowwise_adagrad"],
)
def test_resume_is_exact(dataset, tmp_path, small_tables, monkeypatch, settings, of_tables):
    settings = {**settings, "batch_size": 40, **of_tables}
    whole = Run(dataset, tmp_path / "whole", **settings)
    expected = whole.fit(checkpoint_every=4)

    class Stop(Exception):
        pass

    step, left = Trainer._train_step, 22

    def stopping(self, *arguments, **named):
        nonlocal left
        left -= 1
        if not left:
            raise Stop
        return step(self, *arguments, **named)

    monkeypatch.setattr(Trainer, "_train_step", stopping)
    with pytest.raises(Stop):
        Run(dataset, tmp_path / "stopped", **settings).fit(checkpoint_every=4)
    run = Run(dataset, tmp_path / "stopped", **settings)
    history = run.fit(resume=True, checkpoint_every=4)
    assert_equal_weights(weights(run.model), weights(whole.model))
    assert [entry["loss"] for entry in history] == [entry["loss"] for entry in expected]


def test_it_differs_from_dense_and_learns_as_well(dataset, tmp_path, small_tables):
    results = {}
    for mode in ("dense", "lazy", "rowwise_adagrad"):
        run = Run(dataset, tmp_path / mode, table_optimizer=mode, epochs=6, embedding_regularizer=1e-3)
        results[mode] = run.fit(checkpoints=None)[-1]["AUC"], weights(run.model)
    name = "embedding_layer.embedding_layer.embedding_layers.item_id.weight"
    for mode in ("lazy", "rowwise_adagrad"):
        assert results[mode][0] > results["dense"][0] - 0.03
        assert not torch.equal(results[mode][1][name], results["dense"][1][name])
        assert not results[mode][1][name][0].any()  # padding


@pytest.mark.parametrize("kind", [LazyAdam, RowwiseAdagrad])
def test_a_grad_scalers_skipped_step_changes_nothing(kind):
    """Fused kernels are handed the overflow and skip by themselves."""
    torch.manual_seed(0)
    table = torch.nn.Parameter(torch.randn(6, 2))
    other = torch.nn.Parameter(torch.randn(3))
    optimizer = kind(torch.optim.Adam([table, other], lr=0.1, fused=True))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(gradient):
        ids = torch.tensor([1, 4, 4])
        loss = (table[ids].detach() * 0).sum() + (other * gradient).sum()
        scaler.scale(loss).backward()
        table.grad = TouchedRows(ids, torch.full((3, 2), gradient) * scaler.get_scale()).merged().as_sparse(table.shape)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    before = table.detach().clone(), other.detach().clone()
    step(float("inf"))
    assert torch.equal(table, before[0]) and torch.equal(other, before[1])
    step(0.5)
    torch.testing.assert_close(other, before[1] - 0.1)  # Adam's first step: the rate, in the gradient's direction
    torch.testing.assert_close(table[[1, 4]], before[0][[1, 4]] - 0.1)  # and Adagrad's
    assert torch.equal(table[[0, 2, 3, 5]], before[0][[0, 2, 3, 5]])


class TwoLookups(torch.nn.Module):
    """Rows of a table, and sums of rows, through a layer."""

    def __init__(self, table):
        super().__init__()
        self.table = table
        self.linear = torch.nn.Linear(8, 1)

    def forward(self, ids):
        if type(self.table) is LazyTable:
            summed = self.table.sum_rows(ids)
        else:
            summed = (self.table(ids) * (ids > 0).unsqueeze(2)).sum(1)
        return self.linear(torch.cat([self.table(ids[:, 0]), summed], dim=1).tanh())


def test_lookups_and_sums_have_the_gradient_of_a_plain_table_compiled_too():
    torch.manual_seed(0)
    plain = TwoLookups(torch.nn.Embedding(20, 4, padding_idx=0))
    lazy = copy.deepcopy(plain)
    lazy.table = LazyTable(lazy.table)
    ids = torch.tensor([[3, 3, 0], [0, 0, 0], [7, 1, 19], [0, 3, 5]])
    expected = plain(ids)
    expected.square().sum().backward()
    assert plain.table.weight.grad[3].any() and not plain.table.weight.grad[0].any()
    for model in (lazy, torch.compile(lazy, backend="aot_eager")):
        lazy.zero_grad()
        scores = model(ids)
        torch.testing.assert_close(scores, expected)
        scores.square().sum().backward()
        assert lazy.table.weight.grad.is_sparse
        torch.testing.assert_close(lazy.table.weight.grad.to_dense(), plain.table.weight.grad)


def test_only_large_trained_tables_are_lazy_and_shared_ones_once(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(table_optimizer, "MIN_ROWS", 11)
    run = Run(dataset, tmp_path)
    feature_map = copy.deepcopy(run.model.feature_map)
    feature_map.features["views_level"]["share_embedding"] = "likes_level"
    model = model_zoo.FiBiNET(feature_map, **run.params)
    before = set(model.state_dict())
    tables = LazyTables(model)
    layers = model.embedding_layer.embedding_layer.embedding_layers
    assert {name for name, table in layers.items() if type(table) is LazyTable} == set(TABLE_NAMES) - {"item_tags"}
    assert layers["likes_level"] is layers["views_level"]
    assert len(tables.parameters) == 5  # the linear part shares nothing
    assert set(model.state_dict()) == before


def test_what_lazy_cannot_do_is_refused(dataset, tmp_path, small_tables):
    with pytest.raises(UserError, match=r"--set.*table_optimizer is lazy, .* optimizer is AdamW; set optimizer: adam"):
        load_params(dataset, "FiBiNET_test", model_zoo, ["table_optimizer=lazy", "optimizer=AdamW"])
    run = Run(dataset, tmp_path, optimizer="SGD")
    with pytest.raises(UserError, match="lazy and the optimizer SGD, expected a plain Adam"):
        run.trainer(table_optimizer="lazy")
    run = Run(dataset, tmp_path)
    run.model.optimizer = torch.optim.Adam(run.model.parameters(), weight_decay=0.1)
    with pytest.raises(UserError, match="expected a plain Adam"):
        run.trainer(table_optimizer="lazy")
    with pytest.raises(UserError, match="table_optimizer is 'sparse', expected one of dense, lazy, rowwise_adagrad"):
        run.trainer(table_optimizer="sparse")
    with pytest.raises(UserError, match="table_learning_rate is 0, expected a number above 0"):
        load_params(dataset, "FiBiNET_test", model_zoo, ["table_learning_rate=0"])
    run = Run(dataset, tmp_path, optimizer="SGD")
    with pytest.raises(UserError, match="table_optimizer is rowwise_adagrad and the optimizer SGD, expected a plain"):
        run.trainer(table_optimizer="rowwise_adagrad")
    with pytest.raises(UserError, match=r"table_learning_rate is 0\.1, but Linear has no embedding tables"):
        set_table_rate(torch.nn.Linear(2, 1), 0.1)
    run = Run(dataset, tmp_path)
    run.model = OwnComputeLoss(run.model.feature_map, **run.params)
    run.model.regularization_loss = lambda: sum(value.square().sum() for value in run.model.parameters())
    run.model.add_loss = lambda outputs, labels: run.model.regularization_loss() + outputs["y_pred"].sum()
    with pytest.raises(
        UserError, match=r"likes_level\.weight has a gradient in every row, .*set table_optimizer: dense"
    ):
        run.fit(checkpoints=None, table_optimizer="lazy")


def test_a_model_goes_on_as_it_was_trained(dataset, tmp_path, small_tables):
    run = Run(dataset, tmp_path, epochs=1)
    run.fit(checkpoints=None, table_optimizer="lazy")
    optimizer = run.model.optimizer
    run.fit(checkpoints=None, table_optimizer="lazy")
    with pytest.raises(UserError, match="table_optimizer is rowwise_adagrad and the optimizer LazyAdam"):
        run.fit(checkpoints=None, table_optimizer="rowwise_adagrad")
    assert run.model.optimizer is optimizer and len(optimizer.state) == len(list(run.model.parameters()))
    with pytest.raises(UserError, match="FiBiNET was trained with table_optimizer: lazy before"):
        run.fit(checkpoints=None)


def test_the_benchmarks_sides_train(monkeypatch):
    monkeypatch.setenv(memory.SWITCH, "0")
    monkeypatch.setattr(tables, "SMALL", 30)
    monkeypatch.setattr(table_optimizer, "MIN_ROWS", 100)
    for name in tables.SIDES:
        side = tables.Side(name, 200, 4, 16, -1)
        assert side.step(2) > 0 and side.memory() >= 0
        sizes = {len(value) for value in side.trainer.tables.parameters.values()}
        assert sizes == ({200, tables.ITEMS} if name in ("lazy", "rowwise_adagrad") else set())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_repeats_of_a_row_are_summed_on_a_gpu_in_one_order():
    rows = torch.randint(0, 1000, (100_000,)) * (torch.rand(100_000) < 0.5)  # half of them are row 0
    gradients = torch.randn(100_000, 8)
    expected = TouchedRows(rows, gradients.double()).merged()
    first, again = (TouchedRows(rows.cuda(), gradients.cuda()).merged() for _ in range(2))
    assert torch.equal(first.gradients, again.gradients)
    torch.testing.assert_close(first.gradients.cpu().double(), expected.gradients, rtol=1e-5, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", [LazyAdam, RowwiseAdagrad])
def test_a_step_on_a_gpu_waits_for_nothing(kind):
    table = LazyTable(torch.nn.Embedding(1000, 4, padding_idx=0, device="cuda"))
    model = torch.nn.ModuleList([table])
    tables = LazyTables(model)
    optimizer = kind(torch.optim.Adam(model.parameters(), fused=True))
    ids = torch.randint(0, 1000, (64,), device="cuda")
    torch.cuda.synchronize()
    for mode in ("default", "error"):  # the first step makes the state
        torch.cuda.set_sync_debug_mode(mode)
        try:
            table(ids).square().sum().backward()
            tables.collect()
            torch.nn.utils.clip_grad_norm_(tables.clippable(), 1.0, foreach=True)
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
