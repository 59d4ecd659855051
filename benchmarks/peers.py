"""Target `bench_peers`: the Python functions beside what one would write today, and what their calls cost

    python benchmarks/peers.py [--out benchmarks/results] [--plots docs/img]

Every script runs alone, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

import timing

SCRIPTS = (
    ["sample_peers.py"],
    ["patches_peers.py"],
    ["expectation_peers.py"],
    ["call_overhead.py", "--threads", "1"],
    ["demo_profile.py", "--threads", "2"],
    ["growth.py"],
)
NEEDED = ("ats_core", "torch", "matplotlib", "sklearn", "tqdm")  # the last two by the demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=timing.folder, help="folder for tables and numbers")
    parser.add_argument("--plots", type=timing.folder, help="folder for growth.png")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: tells only that everything works")
    args = parser.parse_args()
    missing = [name for name in NEEDED if not importlib.util.find_spec(name)]
    if missing:
        parser.error(
            f"{sys.executable} has no {', '.join(missing)}: configure with -DPython_EXECUTABLE=... for one that has"
        )
    common = ["--smoke"] * args.smoke + (["--out", str(args.out)] if args.out else [])
    for script, *options in SCRIPTS:
        command = [sys.executable, str(Path(__file__).with_name(script)), *options, *common]
        if script == "growth.py" and args.plots:
            command += ["--plot", str(args.plots / "growth.png")]
        status = subprocess.run(command, check=False).returncode
        if status:
            sys.exit(status)
        print(flush=True)


if __name__ == "__main__":
    main()
