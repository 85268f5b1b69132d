"""Ours and the challenge's way, set up alike: the same data, hyper-parameters and batch size, one class for each."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from fuxictr.pytorch.torch_utils import seed_everything

import model_zoo
from benchmarks import reference
from benchmarks.measure import TimedBatches, now, shipped_malloc
from benchmarks.synthetic import Sizes, feature_map
from mmctr.dataloader import MMCTRDataLoader
from mmctr.training import Trainer, predict

SEED = 2025
# FiBiNET_MicroLens_1M_x1 of config/ and the organisers' DIN.
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
    """

    folder: Path
    sizes: Sizes = field(default_factory=Sizes)
    batch_size: int = 4096
    gpu: int = -1
    workers: int = 0
    small: bool = False

    @property
    def device(self) -> torch.device:
        """Where the models run."""
        return torch.device("cuda", self.gpu) if self.gpu >= 0 else torch.device("cpu")

    @property
    def item_info(self) -> str:
        """The items' file."""
        return str(self.folder / "item_info.parquet")

    def data_path(self, split: str) -> str:
        """A split's file."""
        return str(self.folder / f"{split}.parquet")

    def hyper_parameters(self, name: str) -> dict:
        """Of a model, for both sides."""
        return {**OFFICIAL[name], **(SMALL[name] if self.small else {}), "gpu": self.gpu}

    def feature_map(self, name: str):
        """Of a model; DIN takes the embedding field in its own width, FiBiNET needs equal widths."""
        return feature_map(self.sizes, self.sizes.emb_dim if name == "DIN" else None)

    def to_json(self) -> str:
        """For another process."""
        return json.dumps({**dataclasses.asdict(self), "folder": str(self.folder)})

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """Of `to_json`."""
        values = json.loads(text)
        return cls(**{**values, "folder": Path(values["folder"]), "sizes": Sizes(**values["sizes"])})


class Ours:
    """A model of the zoo on MMCTRDataLoader, trained by our loop.

    Args:
        name: of the model.
        task: what is measured.
        precision: "fp32" or "bf16".
    """

    def __init__(self, name: str, task: Task, precision: str = "fp32"):
        seed_everything(SEED)
        self.task, self.precision = task, precision
        self.hyper_parameters = task.hyper_parameters(name)
        self.columns = task.feature_map(name)
        self.model = getattr(model_zoo, name)(self.columns, **self.hyper_parameters)
        self.model.checkpoint = str(task.folder / f"{name}.model")
        self.loader = self.load("train", shuffle=True)

    def load(self, split: str, batch_format: str = "indices", **options) -> MMCTRDataLoader:
        """A split's loader."""
        task = self.task
        options = {"max_len": task.sizes.max_len, "gpu": task.gpu, "item_info": task.item_info, **options}
        options["history_levels"] = self.hyper_parameters.get("history_levels", False)
        return MMCTRDataLoader(
            self.columns, task.data_path(split), split, task.batch_size, batch_format=batch_format, **options
        )

    def train(self, count: int, warm_up: int = 1) -> float:
        """Rows/s of `count` steps, loading included."""
        task = self.task
        timed = TimedBatches(self.loader, count, warm_up, 1, task.batch_size, task.device)
        Trainer(self.model, precision=self.precision).fit(timed, None)
        return timed.rows_per_second

    def score(self, loader) -> float:
        """Rows/s of scoring a whole split."""
        started = now(self.task.device)
        predict(self.model, loader)
        return loader.num_samples / (now(self.task.device) - started)


class Reference:
    """The same model on FuxiCTR's layers and the row-wise loader, trained by FuxiCTR's loop."""

    def __init__(self, name: str, task: Task):
        seed_everything(SEED)
        self.task = task
        self.hyper_parameters = task.hyper_parameters(name)
        self.columns = task.feature_map(name)
        self.model = getattr(reference, f"Stock{name}")(self.columns, **self.hyper_parameters)
        self.loader = self.load("train", shuffle=True)

    def load(self, split: str, **options):
        """A split's loader."""
        task = self.task
        options = {"num_workers": task.workers, "shuffle": False, **options}
        options["history_levels"] = self.hyper_parameters.get("history_levels", False)
        return reference.row_wise_loader(
            self.columns,
            task.data_path(split),
            task.item_info,
            task.batch_size,
            task.sizes.max_len,
            labels=split != "test",
            **options,
        )

    def train(self, count: int, warm_up: int = 1) -> float:
        """Rows/s of `count` steps, loading included."""
        timed = TimedBatches(self.loader, count, warm_up, 0, self.task.batch_size, self.task.device)
        with shipped_malloc():
            self.model.train_epoch(timed)
        return timed.rows_per_second

    def score(self, loader, count: int, warm_up: int = 0) -> float:
        """Rows/s of scoring `count` batches."""
        timed = TimedBatches(loader, count, warm_up, 0, self.task.batch_size, self.task.device)
        with shipped_malloc():
            self.model.predict(timed)
        return timed.rows_per_second


def first_batch(loader):
    """One batch of a loader."""
    return next(iter(loader))
