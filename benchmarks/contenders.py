"""Ours, the challenge's way and FuxiCTR's loader, set up alike: the same data, hyper-parameters and batch size."""

import logging
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from fuxictr.pytorch.torch_utils import seed_everything

import model_zoo
from benchmarks import reference
from benchmarks.measure import TimedBatches, pass_rows_per_second, step_flops
from benchmarks.synthetic import Sizes, feature_map
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.memory import keep_freed_memory
from mm_fibinet.memory import peak_memory as peak_resident
from mm_fibinet.options import DEFAULT_IMAGE, DEFAULT_TEXT
from mm_fibinet.scoring import predict
from mm_fibinet.training import Trainer

SEED = 2025
# FiBiNET_MicroLens_1M_x1 of config/ with the layers of 2019, which published code has; the organisers' DIN.
OFFICIAL = {
    "FiBiNET": {
        "embedding_dim": 64,
        "hidden_units": [1024, 512, 256],
        "bilinear_type": "field_interaction",
        "reduction_ratio": 3,
        "history_levels": True,
        "net_dropout": 0.1,
        "batch_norm": True,
        "embedding_regularizer": 1e-6,
        "learning_rate": 1e-3,
    },
    "DIN": {
        "embedding_dim": 64,
        "dnn_hidden_units": [1024, 512, 256],
        "attention_hidden_units": [512, 256],
        "attention_hidden_activations": "ReLU",
        "attention_dropout": 0.1,
        "net_dropout": 0.1,
        "batch_norm": True,
        "embedding_regularizer": 1e-6,
        "learning_rate": 1e-3,
    },
}
SMALL = {
    "FiBiNET": {"embedding_dim": 8, "hidden_units": [16]},
    "DIN": {"embedding_dim": 8, "dnn_hidden_units": [16], "attention_hidden_units": [8]},
}


@dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
        folder: of write_data.
        sizes: of the data.
        batch_size: rows a batch.
        gpu: GPU index, -1 = CPU.
        workers: of the row-wise loader.
        small: small models instead of the official sizes, for tests and for the cost curves.
        threads: of torch on CPU, 0 = its default.
        text_encoder, image_encoder: build_item_emb.py's names of the encoders.
    """

    folder: Path
    sizes: Sizes = field(default_factory=Sizes)
    batch_size: int = 4096
    gpu: int = -1
    workers: int = 0
    small: bool = False
    threads: int = 0
    text_encoder: str = DEFAULT_TEXT
    image_encoder: str = DEFAULT_IMAGE

    @property
    def device(self) -> torch.device:
        """Where the models run."""
        return torch.device("cuda", self.gpu) if self.gpu >= 0 else torch.device("cpu")

    @property
    def item_info(self) -> str:
        """The items' file."""
        return str(self.folder / "item_info.parquet")

    def encoder(self, modality: str) -> str:
        """A modality's encoder."""
        return {"text": self.text_encoder, "image": self.image_encoder}[modality]

    def data_path(self, split: str) -> str:
        """A split's file."""
        return str(self.folder / f"{split}.parquet")

    def hyper_parameters(self, name: str) -> dict:
        """Of a model, for both sides."""
        return {**OFFICIAL[name], **(SMALL[name] if self.small else {}), "gpu": self.gpu}

    def feature_map(self, name: str):
        """Of a model; DIN takes the embedding field in its own width, FiBiNET needs equal widths."""
        return feature_map(self.sizes, self.sizes.emb_dim if name == "DIN" else None)


class Contender:
    """One side of a comparison.

    Args:
        name: of the model.
        task: what is measured.
    """

    def __init__(self, name: str, task: Task):
        self.memory_before = peak_memory(task)
        if task.threads:
            torch.set_num_threads(task.threads)
        seed_everything(SEED)
        self.name, self.task = name, task
        self.hyper_parameters = task.hyper_parameters(name)
        self.columns = task.feature_map(name)

    def memory(self) -> dict[str, float]:
        """Peak of the process so far, beyond what its imports take: {"cpu" and "gpu": bytes}."""
        return {kind: bytes_ - self.memory_before[kind] for kind, bytes_ in peak_memory(self.task).items()}


class Ours(Contender):
    """A model of the zoo on MMCTRDataLoader, trained by our loop."""

    def __init__(self, name: str, task: Task):
        super().__init__(name, task)
        self.settings = {"precision": "fp32"}
        self.graphs = "no CUDA graphs"
        if task.gpu < 0:
            keep_freed_memory()  # as run_expid.py does
        self.model = getattr(model_zoo, name)(self.columns, **self.hyper_parameters)
        self.loader = self.load("train", shuffle=True)

    def use(self, **settings) -> None:
        """How to train and score from here on: precision, and what else the loop takes (cuda_graphs, compile)."""
        self.settings = settings

    def load(self, split: str, batch_format: str = "indices", **options) -> MMCTRDataLoader:
        """A split's loader."""
        task = self.task
        options = {"max_len": task.sizes.max_len, "gpu": task.gpu, "item_info": task.item_info, **options}
        options["history_levels"] = self.hyper_parameters.get("history_levels", False)
        return MMCTRDataLoader(
            self.columns, task.data_path(split), split, task.batch_size, batch_format=batch_format, **options
        )

    def pass_over(self, batch_format: str, batches: int) -> float:
        """Rows/s of loading alone, after one batch that does not count."""
        loader = self.load("train", batch_format, shuffle=True, item_info=self.loader.item_table)
        pass_rows_per_second(loader, 1, self.task.batch_size, self.task.device)
        return pass_rows_per_second(loader, batches, self.task.batch_size, self.task.device)

    def train(self, count: int | None = None, warm_up: int = 1) -> float:
        """Rows/s of `count` steps, or of an epoch, loading included."""
        task = self.task
        timed = TimedBatches(self.loader, count or len(self.loader), warm_up, 1, task.batch_size, task.device)
        trainer = Trainer(self.model, checkpoint=task.folder / f"{self.name}.model", **self.settings)
        trainer.fit(timed, None)
        if trainer.graph is not None:
            self.graphs = "CUDA graphs" if trainer.graph.captured else f"no CUDA graphs ({trainer.graph.reason})"
        return timed.rows_per_second

    def graphs_used(self) -> str:
        """Whether the last training replayed graphs, for the reader: a fallback must not be taken for one."""
        return self.graphs

    def score(self, count: int | None = None) -> float:
        """Rows/s of scoring `count` batches of the test split, or all of it."""
        loader = self.load("test")
        timed = TimedBatches(loader, count or len(loader), 1, 0, self.task.batch_size, self.task.device)
        predict(self.model, timed, self.settings["precision"])
        return timed.rows_per_second

    def flops_per_row(self) -> float:
        """FLOPs of forward and backward, see `step_flops`."""
        return step_flops(self.model, next(iter(self.loader))) / self.task.batch_size

    def profile(self, path: Path, steps: int) -> None:
        """Write where the time of a few steps goes, operator by operator."""
        activities, sort_by = [torch.profiler.ProfilerActivity.CPU], "self_cpu_time_total"
        if self.task.gpu >= 0:
            activities, sort_by = [*activities, torch.profiler.ProfilerActivity.CUDA], "self_device_time_total"
        with torch.profiler.profile(activities=activities) as profiler:
            self.train(steps, warm_up=0)
        path.write_text(profiler.key_averages().table(sort_by=sort_by, row_limit=40, max_name_column_width=160))


class Reference(Contender):
    """The same model on FuxiCTR's layers and the row-wise loader, trained by FuxiCTR's loop.

    Args:
        keep_memory: set malloc up as run_expid.py does, to tell what that alone brings.
    """

    def __init__(self, name: str, task: Task, keep_memory: bool = False):
        super().__init__(name, task)
        if keep_memory:
            keep_freed_memory()
        self.model = getattr(reference, f"Stock{name}")(self.columns, **self.hyper_parameters)
        self.loader = self.load("train", shuffle=True)

    def load(self, split: str, shuffle: bool = False):
        """A split's loader."""
        task = self.task
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores
        return reference.row_wise_loader(
            self.columns,
            task.data_path(split),
            task.item_info,
            task.batch_size,
            task.sizes.max_len,
            shuffle=shuffle,
            num_workers=task.workers,
            history_levels=self.hyper_parameters.get("history_levels", False),
            labels=split != "test",
        )

    def pass_over(self, batches: int, warm_up: int = 0) -> float:
        """Rows/s of loading alone."""
        timed = TimedBatches(self.loader, batches, warm_up, 0, self.task.batch_size, torch.device("cpu"))
        for _ in timed:
            pass
        return timed.rows_per_second

    def train(self, count: int, warm_up: int = 1) -> float:
        """Rows/s of `count` steps, loading included."""
        timed = TimedBatches(self.loader, count, warm_up, 0, self.task.batch_size, self.task.device)
        self.model.train_epoch(timed)
        return timed.rows_per_second

    def score(self, count: int, warm_up: int) -> float:
        """Rows/s of scoring `count` batches of the test split."""
        timed = TimedBatches(self.load("test"), count, warm_up, 0, self.task.batch_size, self.task.device)
        self.model.predict(timed)
        return timed.rows_per_second


class FuxiCTRLoader(Contender):
    """FuxiCTR's own parquet loader, which starts Ray and joins no items."""

    def pass_over(self, seconds: float) -> float:
        """Rows/s of one shuffled pass, cut off after some seconds; a short pass before it starts Ray's workers."""
        import ray
        from fuxictr.pytorch.dataloaders.parquet_dataloader import ParquetDataLoader

        logging.disable(logging.WARNING)
        features = self.columns.features
        joined = [name for name, spec in features.items() if spec.get("source") == "item" and name != "item_id"]
        self.columns.features = {name: spec for name, spec in features.items() if name not in joined}
        path, rows_a_batch = self.task.data_path("train"), self.task.batch_size
        loader = ParquetDataLoader(self.columns, path, batch_size=rows_a_batch, shuffle=True)
        next(iter(loader))
        rows, started = 0, time.perf_counter()
        for batch in loader:
            rows += len(batch["item_id"])
            if time.perf_counter() - started > seconds:
                break
        rate = rows / (time.perf_counter() - started)
        ray.shutdown()
        return rate


def peak_memory(task: Task) -> dict[str, float]:
    """Peaks of this process, in bytes."""
    return {"cpu": peak_resident(), "gpu": torch.cuda.max_memory_allocated(task.device) if task.gpu >= 0 else 0}
