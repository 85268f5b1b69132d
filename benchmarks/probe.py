"""Measurements that need a process of their own; prints one line of JSON.

python benchmarks/probe.py memory ours|reference|imports FOLDER SIZES   peak memory of training a few steps
python benchmarks/probe.py ray FOLDER SIZES                             rows/s of FuxiCTR's parquet loader
"""

# ruff: noqa: E402 (the repository must be on sys.path before its modules are imported)

import json
import resource
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks import contenders
from benchmarks.synthetic import feature_map

RAY_SECONDS = 60


def memory(which: str, task: contenders.Task) -> dict[str, float]:
    """Peak of the resident memory, and of the GPU's, in bytes."""
    if which != "imports":
        contender = {"ours": contenders.Ours, "reference": contenders.Reference}[which]
        contender("FiBiNET", task).train(2, warm_up=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"cpu": peak, "gpu": torch.cuda.max_memory_allocated() if task.gpu >= 0 else 0}


def ray_rows_per_second(task: contenders.Task) -> dict[str, float]:
    """FuxiCTR's parquet loader over one shuffled pass, as training makes it; it joins no items. Ray runs already."""
    import ray
    from fuxictr.pytorch.dataloaders.parquet_dataloader import ParquetDataLoader

    columns = feature_map(task.sizes)
    for name in [name for name, spec in columns.features.items() if spec.get("source") == "item"]:
        if name != "item_id":
            del columns.features[name]
    path = str(task.folder / "train.parquet")
    loader = ParquetDataLoader(columns, path, batch_size=task.batch_size, shuffle=True)
    rows, started = 0, time.perf_counter()
    for batch in loader:
        rows += len(batch["item_id"])
        if time.perf_counter() - started > RAY_SECONDS:
            break
    seconds = time.perf_counter() - started
    ray.shutdown()
    return {"rows_per_second": rows / seconds}


def main() -> None:
    """Run one measurement."""
    task = contenders.Task.from_json(sys.argv[-1])
    found = ray_rows_per_second(task) if sys.argv[1] == "ray" else memory(sys.argv[2], task)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
