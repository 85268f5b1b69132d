"""Challenge task 1: the command line of `mm_fibinet.items.build`, which says what is done."""

import argparse

from mm_fibinet.commands import Home
from mm_fibinet.errors import printable
from mm_fibinet.items.build import Built, build, first_names


def run(args: argparse.Namespace, _: Home) -> None:
    """Build, and say what was built."""
    print_summary(build(**vars(args)))


def print_summary(built: Built) -> None:
    """Print what the embedding was made of: items, what was missing or bad, speed, explained variance."""

    def line(label: str, text: str) -> None:
        print(f"{label:<12}{printable(text)}")

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
    line("fusion", fusion_line(built.fusion))
    if built.explained:
        line("explained", ", ".join(f"{name} {share:.1%}" for name, share in built.explained.items()))
    line("output", f"{built.output}, column{'s' * (len(built.columns) > 1)} {', '.join(built.columns)}")


def fusion_line(fusion: dict) -> str:
    """The fusion that was taken, and why."""
    said = fusion["fusion"]
    if tried := fusion.get("chosen_by_auc_on_valid"):
        best_first = sorted(tried.items(), key=lambda each: -each[1])
        said += ", by the AUC of its cosines on valid: " + ", ".join(f"{name} {area:.4f}" for name, area in best_first)
    return said + "".join(f", {name} {value:.4g}" for name, value in fusion.get("fusion_facts", {}).items())
