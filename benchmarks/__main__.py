"""`python -m benchmarks NAME --out DIR`: measures, prints a table, writes result.json beside it."""

import argparse
import importlib
import os
import sys
from pathlib import Path

from jaxalign.errors import InputError
from jaxalign.files import check_output

NAMES = (
    "all",
    "report",
    "ceilings",
    "models",
    "logprob",
    "adapters",
    "compiled",
    "checks",
    "palm_regret",
    "palm",
    "palm_portfolio",
    "moc_bandits",
    "moc_smollm2",
    "moc_memory",
    "mrm",
    "moc",
    "mrm_adaptation",
    "loop",
    "serve",
    "mrm_ask",
    "mrm_best_of",
    "mrm_calibration",
    "mrm_feedback",
    "mrm_million",
    "mrm_observe",
    "mrm_ratings",
    "mrm_serving",
    "mrm_compare",
    "pplug",
    "serve_vllm",
    "serve_start",
    "pplug_jester",
    "pplug_vllm",
    "pplug_ablation",
)


def main() -> int:
    """Run one benchmark."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="name", metavar="NAME")
    requested = sys.argv[1:2]
    for name in requested if requested and requested[0] in NAMES else NAMES:
        try:
            module = importlib.import_module(f"benchmarks.{name}")
        except ModuleNotFoundError as error:  # the others need not wait for that package
            commands.add_parser(name, help=f"needs {error.name}").set_defaults(needs=error.name)
            continue
        command = commands.add_parser(name, help=(module.__doc__ or "").partition("\n")[0])
        command.add_argument("--out", type=Path, default=Path("benchmarks/results") / name)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments, _ = parser.parse_known_args()
    if "needs" in arguments:
        print(f"{arguments.name} needs {arguments.needs}: install it.", file=sys.stderr)
        return 2
    arguments = parser.parse_args()
    try:
        check_output(arguments.out, "folder")
        return int(arguments.run(arguments) or 0)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except InputError as error:
        print(f"{arguments.name}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
