"""Install MM-FiBiNET into a copy of a place where users work, and see that nothing there is replaced and all runs.

    python3.12 tests/replicas/replica.py kaggle --folder /tmp/kaggle

The place is a new environment of the Python that runs this, with the releases of NAME.txt. `pip freeze` before and
after the installation is compared; then come the demo's steps, through the installed command in a folder that is no
clone, and the parts of the suite that lean most on other packages. Anything amiss ends it with exit code 1.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from mm_fibinet.extras import EXTRAS  # noqa: E402 (of this clone)

PLACES = sorted(path.stem for path in HERE.glob("*.txt"))
TOOLS = ["pytest>=8.2", "pytest-timeout>=2.3", "hypothesis>=6.100"]
SUITE = [
    "test_encoders", "test_feature_store", "test_fusion", "test_layers", "test_plus_layers", "test_golden_models",
    "test_model_contract", "test_dataloader", "test_training", "test_weights", "test_metrics", "test_schema",
    "test_settings", "test_settings_schema", "test_submission", "test_devices", "test_table_optimizer", "test_interest",
    "test_pictures", "test_served",
]  # fmt: skip
TINY = "data/demo"
ALL_EXTRAS = ("server",)  # where not only encoders are tried


def demo_commands(python: Path) -> list[list[str]]:
    """The steps of `make demo`, small, as one does them who installed with pip."""
    console, module = [str(python.with_name("mm-fibinet"))], [str(python), "-m"]
    return [
        [*console, "list"],
        [*module, "mm_fibinet.demo.data", "--size", "tiny", "--items", "150", "--output", TINY],
        [*console, "check", TINY],
        [*console, "embed", "--item_info", f"{TINY}/MMCTR_demo/item_info.parquet", "--item_feature",
         f"{TINY}/item_feature.parquet", "--images", f"{TINY}/item_images",
         "--output", f"{TINY}/embedded/item_info.parquet"],
        [*console, "train", "--expid", "FiBiNET_demo", "--set", "epochs=1", "batch_size=256"],
        [*console, "predict", "--expid", "FiBiNET_demo"],
        [*module, "mm_fibinet.demo.score", "--data", TINY, "--expid", "FiBiNET_demo"],
        [*console, "benchmark", "--expids", "LR_demo", "--set", "epochs=1", "batch_size=256"],
    ]  # fmt: skip


def freeze(python: Path) -> dict[str, str]:
    """{package: version} of an environment, pip and this project left out."""
    printed = subprocess.run([python, "-m", "pip", "freeze", "--all"], check=True, capture_output=True, text=True)
    lines = [line.partition("==") for line in printed.stdout.splitlines() if "==" in line]
    return {name.lower().replace("_", "-"): version for name, _, version in lines if name not in ("pip", "mm-fibinet")}


def run(command: list[str | Path], cwd: Path = ROOT, **variables: str) -> None:
    """Run one step aloud; a failure ends the script."""
    print("$", *command, flush=True)
    code = subprocess.run(command, cwd=cwd, env={**os.environ, **variables}).returncode
    if code:
        sys.exit(f"exit code {code}: {' '.join(map(str, command))}")


def install(name: str, python: Path) -> None:
    """Make the place, install into it, and end where something of it was replaced."""
    pip = [python, "-m", "pip", "install", "--quiet"]
    run([*pip, "-r", HERE / f"{name}.txt"])
    before = freeze(python)
    run([*pip, f".[{','.join(EXTRAS) if name in ALL_EXTRAS else 'encoders'}]"])
    after = freeze(python)
    replaced = {name: (was, after.get(name)) for name, was in before.items() if after.get(name) != was}
    print(f"{len(before)} packages were there; {len(after) - len(before)} came:")
    print(" ", ", ".join(f"{name} {version}" for name, version in after.items() if name not in before))
    if replaced:
        sys.exit(f"replaced: {replaced}")
    print("nothing was replaced")
    run([python, "-m", "pip", "check"])


def main() -> None:
    """All steps, or those asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=PLACES)
    parser.add_argument("--folder", type=Path, required=True, help="of the environment; made if need be")
    parser.add_argument(
        "--steps", nargs="+", choices=["install", "demo", "suite"], default=["install", "demo", "suite"]
    )
    args = parser.parse_args()
    folder = args.folder.resolve()
    python = folder / "bin" / "python"
    if "install" in args.steps:
        run([sys.executable, "-m", "venv", folder])
        install(args.name, python)
    if "demo" in args.steps:
        work = folder / "elsewhere"
        work.mkdir(exist_ok=True)
        for command in demo_commands(python):
            run(command, cwd=work)
    if "suite" in args.steps:
        run([python, "-m", "pip", "install", "--quiet", *TOOLS])
        run([python, "-m", "pytest", *(f"tests/{part}.py" for part in SUITE)], OMP_NUM_THREADS="1")


if __name__ == "__main__":
    main()
