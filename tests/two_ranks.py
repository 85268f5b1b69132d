"""What a process of a run does in tests/test_distributed.py: `python two_ranks.py CONFIG FOLDER`, RANK and so on set.

Each case trains a few steps with the library's own trainer and leaves its weights, or its error, in FOLDER.
"""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from fuxictr.pytorch.torch_utils import seed_everything

import model_zoo
from mm_fibinet import dataloader, distributed, storage, table_optimizer
from mm_fibinet.checkpoint import RunCheckpoints
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.settings import load_params
from mm_fibinet.training import Interrupted, Trainer

TABLE_ROWS = 20_000  # of users, far more than a batch touches
CASES = {
    "dense": {},
    "lazy": {"table_optimizer": "lazy"},
    "accumulated": {"accumulation_steps": 3},
    "rowwise": {"table_optimizer": "rowwise_adagrad", "table_learning_rate": 0.02},
    "lazy_accumulated": {"table_optimizer": "lazy", "accumulation_steps": 3},
}


class Unused(model_zoo.FiBiNET):
    """Has a layer that its forward does not use."""

    def __init__(self, feature_map, **kwargs):
        super().__init__(feature_map, **kwargs)
        self.spare = torch.nn.Linear(3, 1)


def make_trainer(config, folder, model_class=model_zoo.FiBiNET, **settings):
    """(trainer, loader) of a small experiment whose tables are all large enough to be lazy."""
    table_optimizer.MIN_ROWS = 5
    overrides = ["net_dropout=0", "batch_size=30", "epochs=1", "user_id_field=True", "embedding_regularizer=1e-3"]
    params = load_params(config, "FiBiNET_test", model_zoo, overrides, model_root=str(folder))
    params = {**params, "batch_format": "indices", **settings}
    seed_everything(params["seed"])
    feature_map = build_feature_map(params)
    feature_map.features["user_id"]["vocab_size"] = TABLE_ROWS
    world = distributed.current()
    loader = MMCTRDataLoader(
        feature_map, params["train_data"], **{**params, "rank": world.rank, "world_size": world.size}
    )
    model = model_class(feature_map, **params)
    return Trainer(model, **{**params, "checkpoint": Path(folder) / "best.model", "max_gradient_norm": 0.5}), loader


def train(config, folder, **settings):
    """(weights after one epoch, training losses, all-reduces of gradients, numbers in the largest message, copies).

    A copy is a gradient that is not sent from where it is.
    """
    trainer, loader = make_trainer(config, folder, **settings)
    reductions, largest, copies = [0], [0], [0]
    if distributed.current().size > 1:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        def counted(state, bucket):
            reductions[0] += 1
            largest[0] = max(largest[0], bucket.buffer().numel())
            sent = zip(bucket.parameters(), bucket.gradients(), strict=True)
            copies[0] += sum(own.grad.data_ptr() != gradient.data_ptr() for own, gradient in sent)
            return allreduce_hook(None, bucket)

        trainer.forward.register_comm_hook(None, counted)
    gather = dist.all_gather

    def noted(parts, value):
        largest[0] = max(largest[0], value.numel())
        return gather(parts, value)

    dist.all_gather = noted
    history = trainer.fit(loader, None, 1)
    dist.all_gather = gather
    losses = [entry["loss"] for entry in history]
    return (
        {name: value.clone() for name, value in trainer.model.state_dict().items()},
        losses,
        reductions[0],
        largest[0],
        copies[0],
    )


def stop_and_resume(config, folder):
    """The second rank alone is told to stop; the weights after going on."""
    trainer, loader = make_trainer(config, folder, table_optimizer="lazy")
    trainer.checkpoints = RunCheckpoints(folder, "test")
    step = trainer._train_step

    def stopping(*arguments, **named):
        if trainer.total_steps == 3 and distributed.current().rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments, **named)

    trainer._train_step = stopping
    try:
        trainer.fit(loader, None, 1)
        return "was not stopped"
    except Interrupted:
        stopped_at = trainer.total_steps
    distributed.barrier()
    trainer, loader = make_trainer(config, folder, table_optimizer="lazy")
    trainer.checkpoints = RunCheckpoints(folder, "test")
    if not trainer.resume() or trainer.total_steps != stopped_at:
        return "was not saved"
    trainer.fit(loader, None, 1)
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def no_access(places, described):
    """As where a container keeps its processes apart."""
    raise PermissionError(13, "permission denied", next(iter(places.values())))


def shared_memory(config, folder, **settings):
    """(reads of the split here, the other rank's note in this rank's matrix, what the split holds)."""
    reads, plain = [0], dataloader.read_split

    def counted(*arguments):
        reads[0] += 1
        return plain(*arguments)

    dataloader.read_split = counted
    loader = make_trainer(config, folder / "shared", **settings)[1]
    dataloader.read_split = plain
    rows = loader.data.integers.clone()
    distributed.barrier()
    loader.data.integers[distributed.current().rank, 0] = 77 + distributed.current().rank
    distributed.barrier()
    return reads[0], loader.data.integers[1 - distributed.current().rank, 0].item(), rows


def shared_users(config, folder, **settings):
    """(the other rank's note in this rank's users, the items of this rank's share of an epoch)."""
    loader = make_trainer(config, folder, shuffle=True, **settings)[1]
    items = torch.cat([batch.item_index for batch in loader])
    rank = distributed.current().rank
    distributed.barrier()
    loader.users.sequences[rank] = 77 + rank
    distributed.barrier()
    return loader.users.sequences[1 - rank].item(), items


def shared_items(config, folder):
    """(the other rank's note in this rank's items, how many there are, whether they are those of the file)."""
    table = make_trainer(config, folder)[1].item_table
    as_read = torch.equal(table["item_id"], torch.arange(table.num_items, dtype=torch.int32))
    rank = distributed.current().rank
    distributed.barrier()
    table["item_id"][rank] = 77 + rank
    distributed.barrier()
    return table["item_id"][1 - rank].item(), table.num_items, as_read


def drawn(config, folder):
    """What dropout would draw first."""
    make_trainer(config, folder)
    return torch.rand(8)


def error_of(compute):
    """What a UserError of it says."""
    try:
        compute()
    except UserError as error:
        return str(error)
    return "none"


def missing_file():
    """Called on the first rank alone, or the error would name the second."""
    raise UserError(f"no file, says rank {distributed.current().rank}")


def main(config, folder):
    """All cases, as one rank of two."""
    world = distributed.start(-1)
    results = {name: train(config, folder / name, **settings) for name, settings in CASES.items()}
    results["stopped"] = stop_and_resume(config, folder / "stopped")
    results["asked"] = (
        distributed.once_a_machine(lambda: world.rank),
        error_of(lambda: distributed.once_a_machine(missing_file)),
    )

    results["shared"] = [shared_memory(config, folder, storage=kind) for kind in ("memory", "memmap")]
    forms = folder / "forms" / "users" / "config"
    results["users"] = [shared_users(forms, folder / "users", storage=kind) for kind in ("memory", "memmap")]
    results["items"] = shared_items(config, folder / "items")
    results["drawn"] = drawn(config, folder / "drawn")
    results["one_row"] = error_of(lambda: make_trainer(config, folder / "one_row", batch_size=1))
    storage._mapped = no_access
    results["apart"] = shared_memory(config, folder)

    def unused():
        trainer, loader = make_trainer(config, folder / "unused", model_class=Unused)
        trainer.fit(loader, None, 1)

    results["unused"] = error_of(unused)  # the last: its gradients are still on their way
    torch.save(results, folder / f"rank{world.rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(Path, sys.argv[1:]))
