"""The training loop: FuxiCTR's rules, without its waits.

A step never asks the device for a number: losses add up on the device and are read when an epoch ends or a checkpoint
is due, so a GPU always has work queued. The optimizer is fused, gradients are clipped as one list, and the L2 term of
FuxiCTR's regularization_loss enters as its gradient, lambda times the weight, instead of through autograd. The loss
that is shown is therefore the data's alone.

The state of a run is saved every epoch and every `checkpoint_every` steps; a run that was killed at any moment and
resumed ends with the weights of one that was not (bit for bit on CPU), because everything random is a function of
saved state: the permutation of seed and epoch, dropout of the saved generator states.
"""

import contextlib
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mm_fibinet import distributed, losses, signals, step_graph
from mm_fibinet.checkpoint import RunCheckpoints, generator_states, load_weights, save_weights, set_generator_states
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError, first_line
from mm_fibinet.fuxictr_adapter import refuse_untrained, shows_progress, training_rules
from mm_fibinet.memory import peak_memory
from mm_fibinet.metrics import undefined_metrics
from mm_fibinet.objective import Objective
from mm_fibinet.precision import Precision, Scaling
from mm_fibinet.progress import log_lines_above_bars, track
from mm_fibinet.scoring import evaluate
from mm_fibinet.table_optimizer import ROW_OPTIMIZERS, TABLE_OPTIMIZERS, LazyTables, set_table_rate
from mm_fibinet.weight_average import WeightAverage

LR_SCHEDULES = ("plateau", "linear")
MIN_DELTA = 1e-6  # FuxiCTR's: a smaller gain is no improvement
MIN_LR = 1e-6
STEPS_BETWEEN_LOSS_CHECKS = 100  # reading the loss makes a GPU wait
ONE_ROW = "Expected more than 1 value per channel when training"  # says torch's batch norm
LEAST_SHARE = 1e-9  # of a step's rows; less is rounding
STEPS_BETWEEN_SIGNAL_CHECKS = 20  # with several processes, which must agree on when to stop


class Interrupted(KeyboardInterrupt):
    """SIGTERM or Ctrl-C came; the state was saved where the run has a folder for it."""


class Trainer:
    """Trains one model; owns its optimizer, precision, best weights' file and the rules of judging it.

    Args:
        model: a FuxiCTR model, with the rules its constructor took (monitor, patience, ...); compiled here when it has
            no optimizer yet.
        checkpoint: the file of the best weights; None for the model's own `checkpoint`, FuxiCTR's place.
        optimizer, learning_rate: of a model that is not compiled.
        loss: its loss; a mapping, or one with pos_weight or focal_gamma, is any model's (see mm_fibinet.losses).
        pos_weight, focal_gamma: see MixedLoss.
        max_gradient_norm: gradients are clipped to this norm, over all parameters.
        accumulation_steps: batches a step of the optimizer, each counted by its rows; the last step of an epoch may
            have fewer.
        table_optimizer: "dense" trains all rows of the embedding tables at every step, as FuxiCTR does; "lazy" those of
            large tables that the step touches, by Adam, "rowwise_adagrad" the same by Adagrad with one number of state
            a row (see mm_fibinet.table_optimizer); both need Adam for all else.
        table_learning_rate: of the embedding tables, small and large; None for that of all else.
        precision: what products are computed in (see mm_fibinet.precision); weights stay fp32.
        compile: run the model through torch.compile.
        cuda_graphs: replay forward and backward of full batches as one CUDA graph; "auto" where that can be done.
        lr_schedule: "plateau" lowers the learning rate when an evaluation is no better, as FuxiCTR does; "linear"
            lowers it at every step, from the first to nothing at the end of the last epoch.
        lr_decay_factor: on a plateau the learning rate is multiplied by it.
        ema_decay: evaluate and keep a moving average of the weights with this decay; 0 for the weights themselves.
        checkpoints: where to save and resume the run's state; None for neither.
        checkpoint_every: steps between two saved states; None saves at every evaluation only.
        on_evaluation: each is called with the history so far after every evaluation, in no particular order.
        kwargs: further FuxiCTR parameters, which the model has read already.

    Raises:
        UserError: a setting is out of its range, the device does not have the precision, the model overrides a step of
            FuxiCTR's loop, or has parameters that its optimizer does not know.
    """

    def __init__(
        self,
        model: nn.Module,
        /,
        checkpoint: str | Path | None = None,
        optimizer: str = "adam",
        loss: str | Mapping[str, float] = "binary_crossentropy",
        pos_weight: float = 1.0,
        focal_gamma: float = 2.0,
        learning_rate: float = 1e-3,
        max_gradient_norm: float = 10.0,
        accumulation_steps: int = 1,
        table_optimizer: str = "dense",
        table_learning_rate: float | None = None,
        precision: str = "fp32",
        compile: bool = False,
        cuda_graphs: step_graph.CudaGraphs = "auto",
        lr_schedule: str = "plateau",
        lr_decay_factor: float = 0.1,
        ema_decay: float = 0.0,
        checkpoints: RunCheckpoints | None = None,
        checkpoint_every: int | None = None,
        on_evaluation: Sequence[Callable[[list[dict]], None]] = (),
        **kwargs,
    ):
        if lr_schedule not in LR_SCHEDULES:
            raise UserError(f"lr_schedule is {lr_schedule!r}, expected one of {', '.join(LR_SCHEDULES)}")
        if table_optimizer not in TABLE_OPTIMIZERS:
            expected = ", ".join(TABLE_OPTIMIZERS)
            raise UserError(f"table_optimizer is {table_optimizer!r}, expected one of {expected}")
        if not 0 <= ema_decay < 1:
            raise UserError(f"ema_decay is {ema_decay}, expected a number from 0 to below 1")
        self.model = model
        self.precision = Precision.on(precision, model.device)
        self.scaling = Scaling(self.precision)
        self.objective = Objective(model, self.precision.is_half)
        if getattr(model, "optimizer", None) is None:
            model.compile(optimizer, losses.name_of(loss), learning_rate)
        mixed = losses.resolve(loss, pos_weight, focal_gamma)
        if isinstance(mixed, losses.MixedLoss):
            model.loss_fn = mixed
        refuse_untrained(model)
        of_rows = ROW_OPTIMIZERS.get(table_optimizer)
        self.tables = LazyTables(model, of_rows is not None)
        if of_rows and type(model.optimizer) is not of_rows:
            model.optimizer = of_rows(model.optimizer)
        if table_learning_rate is not None:
            set_table_rate(model, table_learning_rate)
        self.optimizer = model.optimizer
        self.rules = training_rules(model)
        self.checkpoint = Path(checkpoint or model.checkpoint)
        self.world = distributed.current()
        distributed.draw_apart()
        self.max_gradient_norm = max_gradient_norm
        self.accumulation_steps = max(int(accumulation_steps), 1)
        self.lr_schedule = lr_schedule
        self.lr_decay_factor = lr_decay_factor
        self.first_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.planned_steps = 0
        self.average = WeightAverage(model, ema_decay) if ema_decay else None
        self.checkpoints = checkpoints
        self.checkpoint_every = checkpoint_every
        self.on_evaluation = on_evaluation
        lazy = self.tables.parameters
        self.forward = distributed.parallel(torch.compile(model) if compile else model, lazy.values())
        self.graph = step_graph.plan(
            cuda_graphs, self._gradients, model, self.world.size, self.accumulation_steps, compile
        )
        self.parameters = [p for name, p in model.named_parameters() if p.requires_grad and name not in lazy]
        self.epoch = 0
        self.step = 0
        self.total_steps = 0
        self.best = -math.inf if self.rules.monitor_mode == "max" else math.inf
        self.bad_evaluations = 0
        self.stopped = False
        self.history: list[dict] = []
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=model.device)
        self.loss_steps = 0
        self._signals: list[int] = []
        self._gradients_seen = False
        self._checked = False

    def check(self, valid_data) -> None:
        """Before the first step: a metric that the validation labels leave undefined is refused, or named in the log.

        Args:
            valid_data: a loader, or None. Labels of another than ours are seen at the first evaluation only.

        Raises:
            UserError: the metric is monitored.
        """
        self._checked = True
        if not isinstance(valid_data, MMCTRDataLoader):
            return
        labels, groups = valid_data.labels_and_groups()
        undefined = undefined_metrics(self._metrics(), labels, groups)
        for metric, reason in undefined.items():
            if metric in self.rules.monitored:
                raise UserError(f"{valid_data.path}: monitor {metric}: {reason}")
            logging.warning("%s: %s", valid_data.path, reason)

    def resume(self) -> bool:
        """Go on from the run's newest sound state; False when there is none.

        Raises:
            UserError: there are states, but none that this run can go on from.
        """
        state = self.checkpoints.load() if self.checkpoints else None
        if state is None:
            return False
        if state["history"] and not self.checkpoint.exists():
            raise UserError(
                f"{self.checkpoint}: the best weights are gone, the run's state alone does not hold them; put them "
                "back, or start anew without --resume"
            )
        self._restore(state)
        return True

    def fit(self, train_data, valid_data, epochs: int = 1) -> list[dict]:
        """Train until early stopping or for `epochs`, then load the best weights.

        Args:
            train_data, valid_data: loaders; valid_data may be None, then the last weights are the best.
            epochs: at most this many.

        Returns:
            one dictionary an evaluation: epoch, step, loss, learning rate, rows/s, peak memory in MiB, metrics.

        Raises:
            UserError: the loss, a score or the monitored metric is not a number, or a file cannot be written.
            Interrupted: a signal came; the state is saved.
        """
        if not self._checked:
            self.check(valid_data)
        if self.total_steps:
            logging.info("Resumed at epoch %d, step %d", self.epoch + 1, self.step)
        steps = len(train_data)
        self.planned_steps = epochs * steps
        logging.info("Precision: %s", self.precision)
        logging.info("Start training: %d batches/epoch", steps)
        lines_above_bars = log_lines_above_bars(sys.stdout, shown=self.world.is_main)
        with signals.noted(react=_insist) as self._signals, lines_above_bars, self.precision.products():
            while self.epoch < epochs and not self.stopped:
                self._train_epoch(train_data, valid_data, steps)
                self.epoch, self.step = self.epoch + 1, 0
                self._save_state()
                if distributed.any_rank(bool(self._signals), self.model.device):
                    raise Interrupted
        if not self.history or valid_data is None:
            with self._judged_weights():
                self._save_best()
        distributed.barrier()
        load_weights(self.model, self.checkpoint)
        logging.info("Training finished. Best weights: %s", self.checkpoint)
        return self.history

    def _train_epoch(self, train_data, valid_data, steps: int) -> None:
        self.model.train()
        eval_steps = self.rules.eval_steps
        if hasattr(train_data, "set_position"):
            train_data.set_position(self.epoch, self.step)
        progress = track(
            train_data,
            f"epoch {self.epoch + 1}",
            total=steps,
            initial=self.step,
            unit="batch",
            file=sys.stdout,
            leave=False,
            shown=shows_progress(self.model) and self.world.is_main,
        )
        started, rows = time.perf_counter(), 0
        interrupted = save_due = False
        for batch in progress:
            self.step += 1
            self.total_steps += 1
            rows += self._train_step(batch, train_data, last=self.step == steps)
            is_due = self.total_steps % eval_steps == 0 if eval_steps else self.step == steps
            if is_due:
                with self._judged_weights():
                    self._evaluate(valid_data, rows, started)
                self.model.train()
                started, rows = time.perf_counter(), 0
                if self.stopped:
                    break
            if self.total_steps % STEPS_BETWEEN_LOSS_CHECKS == 0:
                self._mean_loss()
            interrupted = interrupted or self._interrupted()
            if self.checkpoint_every and self.total_steps % self.checkpoint_every == 0:
                save_due = True
            if (interrupted or save_due) and self.step % self.accumulation_steps == 0 and self.step < steps:
                self._save_state()
                save_due = False
                if interrupted:
                    progress.close()
                    raise Interrupted

    def _train_step(self, batch, data, last: bool) -> int:
        """Forward, backward and, when enough batches have come, the optimizer; returns the rows of all ranks."""
        updates = self.step % self.accumulation_steps == 0 or last
        labels = self.model.get_labels(batch)
        rows = len(labels) if self.world.size == 1 else data.rows_in_batch(self.step - 1)
        if self.graph is not None:
            loss = self.graph(batch, labels)
        else:
            rows_of_step = rows if self.accumulation_steps == 1 else self._rows_of_step(data, rows)
            share = len(labels) * self.world.size / rows_of_step  # the mean over ranks of these is one over all rows
            exchanged = self.world.size == 1 or updates  # once a step: with the gradients of its last batch
            with contextlib.nullcontext() if exchanged else self.forward.no_sync():
                loss = self._gradients(batch, labels, share)
        if not self._gradients_seen:
            distributed.require_gradients(self.model)
            self._gradients_seen = True
        self.loss_sum += self.scaling.counted(loss, len(labels) / rows)
        self.loss_steps += 1
        if updates:
            self._update()
            if self.average:
                self.average.update(self._steps_taken(len(data)))
        return rows

    def _steps_taken(self, batches: int) -> int:
        """Steps of the optimizer so far, this one included, where an epoch has so many batches."""
        of_epoch, of_this = (math.ceil(count / self.accumulation_steps) for count in (batches, self.step))
        return self.epoch * of_epoch + of_this

    def _rows_of_step(self, data, rows: int) -> int:
        """Rows of all batches that the optimizer's step is of; of a loader that cannot tell, those of this one each."""
        first = (self.step - 1) // self.accumulation_steps * self.accumulation_steps
        batches = range(first, min(first + self.accumulation_steps, len(data)))
        if not hasattr(data, "rows_in_batch"):
            return rows * len(batches)
        return sum(map(data.rows_in_batch, batches))

    def _gradients(self, batch, labels: Tensor, factor: float = 1.0) -> Tensor:
        """Add `factor` times the gradients of a batch's loss to the parameters'; returns the loss, a scalar."""
        try:
            loss = self.objective(self.forward, batch, labels, self.precision.autocast())
        except ValueError as error:
            if len(labels) > 1 or not str(error).startswith(ONE_ROW):
                raise
            each = " a process" if self.world.size > 1 else ""
            raise UserError(
                f"a batch has one row{each}, of which {type(self.model).__name__}'s batch norm has no statistics, "
                "expected at least two; raise batch_size, or leave batch norm out"
            ) from error
        if not loss.requires_grad:
            raise UserError(
                f"{type(self.model).__name__}: its loss depends on no parameter, so that nothing can be trained; "
                "expected a y_pred that forward neither detaches nor rounds"
            )
        self.scaling.backward(loss * factor)
        return loss.detach()

    def _update(self) -> None:
        self.tables.collect()
        self.scaling.unscale(self.optimizer)
        self.objective.add_penalty_gradients()
        if self.lr_schedule == "linear":
            for group, first in zip(self.optimizer.param_groups, self.first_rates, strict=True):
                group["lr"] = first * (1 - (self.total_steps - 1) / self.planned_steps)
        clipped = [*self.parameters, *self.tables.clippable()]
        nn.utils.clip_grad_norm_(clipped, self.max_gradient_norm, foreach=True)
        self.scaling.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)

    def _judged_weights(self):
        """The weights that are evaluated and kept: their average, where there is one."""
        return self.average.applied() if self.average else contextlib.nullcontext()

    def _evaluate(self, valid_data, rows: int, started: float) -> None:
        """Read the loss, score the validation split and judge; `rows` were trained on since the time `started`."""
        loss = self._read_loss()  # waits for the device: only then is the time that of the steps
        rows_per_second = rows / (time.perf_counter() - started)
        distributed.share_buffers(self.model)
        entry = {
            "epoch": self.epoch + 1,
            "step": self.total_steps,
            "loss": loss,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "rows_per_second": round(rows_per_second, 1),
            **_peak_memory(self.model.device),
        }
        logging.info("Train loss: %.6f - %d rows/s", loss, rows_per_second)
        if valid_data is not None:
            metrics = self._metrics()
            entry.update(evaluate(self.model, valid_data, metrics, self.precision.name, True))
            logging.info("[Metrics] %s", " - ".join(f"{name}: {entry[name]:.6f}" for name in metrics))
            self._judge(self.rules.monitor.get_value(entry))
        else:
            self._save_best()
        self.history.append(entry)
        for observe in self.on_evaluation if self.world.is_main else ():
            observe(self.history)

    def _judge(self, value: float) -> None:
        """Best weights, learning rate on plateau and early stopping, by FuxiCTR's rules.

        Raises:
            UserError: the value is NaN or infinite, so that no weights are better than others.
        """
        rules = self.rules
        if not math.isfinite(value):
            raise UserError(
                f"the monitored metric ({' and '.join(rules.monitored)}) is {value} at epoch {self.epoch + 1}: the "
                "validation labels leave it undefined (all of one class, or in every group); monitor another metric"
            )
        better = value >= self.best + MIN_DELTA if rules.monitor_mode == "max" else value <= self.best - MIN_DELTA
        if better:
            self.best, self.bad_evaluations = value, 0
            logging.info("Save best model: monitor(%s)=%.6f", rules.monitor_mode, value)
            self._save_best()
            return
        self.bad_evaluations += 1
        logging.info("Monitor(%s)=%.6f STOP!", rules.monitor_mode, value)
        if rules.reduce_lr_on_plateau and self.lr_schedule == "plateau":
            for group in self.optimizer.param_groups:
                group["lr"] = min(group["lr"], max(group["lr"] * self.lr_decay_factor, MIN_LR))
            logging.info("Reduce learning rate on plateau: %.6f", self.optimizer.param_groups[0]["lr"])
        if not rules.save_best_only:
            self._save_best()
        if self.bad_evaluations >= rules.early_stop_patience:
            self.stopped = True
            logging.info("********* Epoch=%d early stop *********", self.epoch + 1)

    def _save_best(self) -> None:
        if self.world.is_main:
            save_weights(self.model, self.checkpoint)

    def _metrics(self) -> list[str]:
        """What is computed at an evaluation: the monitored metrics, then those of the config."""
        return list(dict.fromkeys([*self.rules.monitored, *self.model.validation_metrics]))

    def _read_loss(self) -> float:
        """The mean loss since the last reading.

        Raises:
            UserError: it is NaN or infinite; no checkpoint is written after that.
        """
        loss = self._mean_loss()
        self.loss_sum.zero_()
        self.scaling.lost.zero_()
        self.loss_steps = 0
        return loss

    def _mean_loss(self) -> float:
        total, lost = self._loss_sums().tolist()
        counted = self.loss_steps - lost
        if self.loss_steps and counted < LEAST_SHARE:
            total = math.nan
        if not math.isfinite(total):
            kept = f". The best weights before are kept: {self.checkpoint}" if self.checkpoint.exists() else ""
            half = "set precision to bf16 or fp32, " if self.precision.name == "fp16" else ""
            raise UserError(
                f"the training loss is {total} at epoch {self.epoch + 1}, step {self.step}; {half}lower learning_rate, "
                f"or check the embeddings' scale{kept}"
            )
        self.scaling.require_room()
        return total / counted if self.loss_steps else 0.0

    def _loss_sums(self) -> Tensor:
        """float64 [2], over all ranks: the losses since the last reading, and how many of them fp16 has lost."""
        return distributed.sum_over_ranks(torch.stack([self.loss_sum, self.scaling.lost]))

    def _save_state(self) -> None:
        """Save the run's state; the loss is read first, so that a broken state is never saved."""
        if self.checkpoints is None:
            return
        self._mean_loss()
        losses = self._loss_sums()
        generators = distributed.gather_objects(generator_states(self.model.device))
        if not self.world.is_main:
            return
        self.checkpoints.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generators": generators,
                "precision": self.precision.name,
                "scaling": self.scaling.state(),
                "losses": losses,
                "average": self.average.averaged if self.average else [],
                **{name: getattr(self, name) for name in STATE},
            }
        )

    def _restore(self, state: dict) -> None:
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            for name in STATE:
                setattr(self, name, state[name])
            if self.average:
                self.average.load(state["average"])
        except (KeyError, RuntimeError, ValueError) as error:  # settings and data are the run's, as its states say
            raise UserError(
                f"--resume: the run's state is not of this {type(self.model).__name__} ({first_line(error)}): the code "
                "has changed since; go on with the version that began the run, or start anew without --resume"
            ) from error
        self.precision = self.precision.resumed(state["precision"])
        self.scaling = Scaling(self.precision)
        self.scaling.load(state["scaling"])
        losses = state["losses"] if self.world.is_main else torch.zeros(2)
        self.loss_sum.copy_(losses[0])
        self.scaling.lost.copy_(losses[1])
        if self.world.rank < len(state["generators"]):
            set_generator_states(state["generators"][self.world.rank], self.model.device)

    def _interrupted(self) -> bool:
        if self.world.size == 1:
            return bool(self._signals)
        if self.total_steps % STEPS_BETWEEN_SIGNAL_CHECKS:
            return False
        return distributed.any_rank(bool(self._signals), self.model.device)


def _insist(came: list[int]) -> None:
    """A second Ctrl-C stops at once, without saving."""
    if len(came) > 1 and came[-1] == signal.SIGINT:
        raise KeyboardInterrupt


STATE = ("epoch", "step", "total_steps", "best", "bad_evaluations", "stopped", "history", "loss_steps")


def _peak_memory(device: torch.device) -> dict[str, int]:
    """The process's peaks so far, in MiB."""
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {"peak_memory_mb": round(peak_memory() / 2**20), "peak_gpu_memory_mb": round(gpu / 2**20)}
