"""Challenge task 1: the command line of `mm_fibinet.items.build`, which says what is done."""

import argparse
import dataclasses

import torch

from mm_fibinet import distributed, ranks
from mm_fibinet.commands import Home
from mm_fibinet.errors import UserError, printable
from mm_fibinet.items.build import Built, build
from mm_fibinet.items.filling import first_names, together
from mm_fibinet.memory import keep_freed_memory


def run(args: argparse.Namespace, _: Home) -> None:
    """Build, and say what was built; of several processes each encodes a share, and the first then builds."""
    options = vars(args)
    devices = options.pop("rank_devices")
    world = distributed.start(-1)
    options["device"] = own_device(devices, world)
    if options["device"] == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()
    if world.size == 1:
        print_summary(build(**options))
        return
    if args.shard or args.engine != "local":
        raise UserError("--shard and --engine divide the items, as several processes do already; drop them")
    own = build(**options | {"shard": f"{world.rank + 1}/{world.size}"})
    distributed.wait_for_all()
    shares = distributed.gather_objects(own.modalities)
    if not world.is_main:
        distributed.leave()
    distributed.stop()
    built = build(**options)
    print_summary(dataclasses.replace(built, modalities=together(built.modalities, shares)))


def own_device(devices: list[str], world: distributed.World) -> str:
    """This process's of those --device names; under torchrun, which is given one, its own GPU."""
    if len(devices) > 1:
        return devices[world.local_rank]
    [device] = devices
    if ranks.is_rank() and (device == "cuda" or (device == "auto" and torch.cuda.is_available())):
        return f"cuda:{world.local_rank}"
    return device


def print_summary(built: Built) -> None:
    """Print what the embedding was made of: items, what was missing or bad, speed, explained variance."""

    def line(label: str, text: str) -> None:
        print(f"{printable(label):<11} {printable(text)}")

    line("items", f"{built.items:,}")
    for name, encoded in built.modalities.items():
        line(name, ", ".join(f"{kind} {number:,}" for kind, number in encoded.counts.items()))
        for note in encoded.notes:
            line("", note)
        speed = f", {encoded.computed / encoded.seconds:,.1f} items/s" if encoded.computed else ""
        done = f"encoded {encoded.computed:,}, reused {encoded.reused:,} from the store"
        line("", f"{done}, {encoded.seconds:,.1f} s{speed}")
        if encoded.bad:
            line("", f"bad: {first_names(encoded.bad)}")
    if built.output is None:
        line("output", "none, only features in the store; when all shards are done, run the command without --shard")
        return
    line("fusion", fusion_line(built.fusion))
    for name, facts in built.fusion.get("also", {}).items():
        line("also", fusion_line({"fusion": name, "fusion_facts": facts}))
    if codes := built.fusion.get("semantic_ids"):
        line("codes", codes_line(codes))
    if built.explained:
        line("explained", ", ".join(f"{name} {share:.1%}" for name, share in built.explained.items()))
    if built.levels:
        line("levels", f"{' and '.join(built.levels)}, from the catalogue")
    line("output", f"{built.output}, column{'s' * (len(built.columns) > 1)} {', '.join(built.columns)}")


def fusion_line(fusion: dict) -> str:
    """The fusion that was taken, and why."""
    said = fusion["fusion"]
    if tried := fusion.get("chosen_by_auc_on_valid"):
        best_first = sorted(tried.items(), key=lambda each: -each[1])
        said += ", by the AUC of its cosines on valid: " + ", ".join(f"{name} {area:.4f}" for name, area in best_first)
    return said + "".join(f", {name} {value:.4g}" for name, value in fusion.get("fusion_facts", {}).items())


def codes_line(codes: dict) -> str:
    """How well semantic ids tell items apart, and how much of the embedding they keep."""
    used = ", ".join(map(str, codes["used"]))
    return (
        f"{codes['levels']} levels of {codes['size']}, used {used}; {1 - codes['unexplained'][-1]:.1%} of the "
        f"embedding kept, {codes['collisions']:.1%} of the items share all codes with another"
    )
