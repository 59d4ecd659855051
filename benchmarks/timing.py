"""What the benchmarks share: methods that take turns, the machine in words, tables and numbers, the command line."""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]
TURNS = 15
SHORT = 5.0  # milliseconds
FLOOR = " (floor)"  # ends the name of what is no peer, but the least that any method has to do
PACKAGES = ("ats-core", "numpy", "torch", "torchvision", "tensorflow", "tensorflow-cpu")


def keep_memory() -> None:
    """Let malloc keep what is freed. Otherwise large results come from the system, a page fault for every 4 KB, in the
    turns of whoever happens to allocate after a method that has freed much: that is not the method's own time."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc's
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(trim_threshold, 2**30)
        libc.mallopt(mmap_threshold, 2**30)


keep_memory()  # of every process that measures


def take_turns(methods: dict[str, Callable[[int], object]], turns: int = TURNS) -> dict[str, float]:
    """Median milliseconds of each method. Taking turns, all suffer from a machine that slows down.

    A method is called with the number of the call: by it it may choose inputs that are in no cache. Short calls are
    timed the second time in their turn: those before have emptied the caches of code, which costs any call 0.1 ms.
    """
    times: dict[str, list[float]] = {name: [] for name in methods}
    call = 0
    for turn in range(turns + 1):
        for name, method in methods.items():
            if turn == 0 or times[name][-1] < SHORT:
                method(call)
                call += 1
            start = time.perf_counter()
            method(call)
            times[name].append(1e3 * (time.perf_counter() - start))
            call += 1
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def compare(group: str, case: str, methods: dict[str, Callable[[int], object]], turns: int) -> Record:
    """A row of the table `group`. The first method is ours."""
    return {"group": group, "case": case, "milliseconds": take_turns(methods, turns)}


def machine() -> Record:
    """What the numbers depend on, and nothing that names this machine."""
    processor = platform.machine()
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    caches = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if _read(folder / "type") != "Instruction":
            caches["L" + _read(folder / "level")] = _read(folder / "size")
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": processor,
        "cores": os.cpu_count(),
        "caches": caches,
        "system": platform.system(),
        "compiler": platform.python_compiler(),
        "python": platform.python_version(),
        "packages": versions,
    }


def gpu() -> Record:
    """What numbers of a GPU depend on. Empty where PyTorch has none."""
    import torch

    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "gpu": properties.name,
        "gpus": torch.cuda.device_count(),
        "gpu_memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": _first_line(query),
        "cuda": torch.version.cuda,
        "nvcc": _first_line(["nvcc", "--version"], "release"),
    }


def _first_line(command: list[str], word: str = "") -> str:
    """Of what a program prints, that with the word in it; nothing where there is no such program."""
    try:
        output = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60).stdout
    except OSError:
        return ""
    return next((line.strip() for line in output.splitlines() if word in line), "")


def _read(file: str | Path) -> str:
    try:
        return Path(file).read_text().strip()
    except OSError:
        return ""


def describe(facts: Record) -> str:
    """A machine in a line."""

    def text(value: object) -> str:
        return ", ".join(f"{key} {x}" for key, x in value.items()) if isinstance(value, dict) else str(value)

    return "; ".join(f"{key}: {text(value)}" for key, value in facts.items() if value)


def number(value: float) -> str:
    """Three digits, without powers of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table(columns: list[str], rows: Iterable[list[str]]) -> str:
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(out: Path, name: str, results: Record, markdown: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / f"{name}.md").write_text(markdown.rstrip("\n") + "\n")


def best_peer(times: dict[str, float]) -> str | None:
    """The fastest method that is neither ours (the first) nor a floor."""
    peers = [name for name in list(times)[1:] if not name.endswith(FLOOR)]
    return min(peers, key=lambda name: times[name]) if peers else None


def tables(records: list[Record]) -> str:
    """One table a group: milliseconds, and how often they hold those of the first column."""
    parts = []
    for group in dict.fromkeys(record["group"] for record in records):
        members = [record for record in records if record["group"] == group]
        methods = list(dict.fromkeys(name for record in members for name in record["milliseconds"]))
        rows = []
        for record in members:
            times, ratios = record["milliseconds"], record["ratios"]
            row = [record["case"], str(record["threads"])]
            for name in methods:
                ratio = f" ({number(ratios[name])} x)" if name in ratios else ""
                row.append(number(times[name]) + ratio if name in times else "")
            best = best_peer(times)
            rows.append([*row, f"{number(ratios[best])} x" if best else ""])
        parts.append(f"**{group}**\n\n" + table(["case", "threads", *methods, "faster than the best peer"], rows))
    return "\n\n".join(parts)


def run(
    doc: str,
    name: str,
    measure: Callable[[str, int, bool], Iterator[Record]],
    *,
    frameworks: tuple[str, ...] = ("torch", "tensorflow"),
    threads: tuple[int, ...] = (1, 2),
    turns: int = TURNS,
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> tuple[argparse.Namespace, list[Record]]:
    """The command line of a script that compares. Every framework and number of threads has its own process.

    Args:
        doc: the script's; its first line is the title.
        name: of the files written to --out.
        measure: (framework, turns, smoke) -> records of `compare`, or {"note": text}.
        frameworks: those to choose from with --frameworks; the option is there if there is a choice.
        threads: the default of --threads, which takes several numbers if these are several.
        turns: the default of --turns.
        arguments: adds some to the parser.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    some = "+" if len(threads) > 1 else 1
    default = " ".join(map(str, threads))
    parser.add_argument(
        "--threads", type=whole(1, 256), nargs=some, default=threads, metavar="N", help=f"default: {default}"
    )
    if len(frameworks) > 1:
        parser.add_argument("--frameworks", choices=frameworks, nargs="+", default=frameworks)
    else:
        parser.set_defaults(frameworks=frameworks)
    parser.add_argument("--turns", type=whole(1, 10_000), default=turns, metavar="N", help=f"default: {turns}")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: tells only that everything works")
    parser.add_argument("--out", type=folder, help="folder for the table and the numbers")
    parser.add_argument("--child", choices=frameworks, help=argparse.SUPPRESS)
    if arguments:
        arguments(parser)
    args = parser.parse_args()
    if args.child:
        set_threads(args.child, args.threads[0])
        for record in measure(args.child, args.turns, args.smoke):
            print(json.dumps(record), flush=True)
        sys.exit()
    records, notes = [], []
    for framework in args.frameworks:
        if not importlib.util.find_spec(framework):
            notes.append(f"{framework} is not installed.")
            continue
        for count in args.threads:
            for record in _child(framework, count, args.turns, args.smoke):
                if "note" in record:
                    notes += [record["note"]] * (record["note"] not in notes)
                    continue
                ours = next(iter(record["milliseconds"].values()))
                ratios = {name: time / ours for name, time in list(record["milliseconds"].items())[1:]}
                records.append({"framework": framework, "threads": count, **record, "ratios": ratios})
    facts, title = machine(), doc.splitlines()[0]
    how = f"milliseconds, medians of {args.turns} calls in turn; in brackets, times as long as ours, the first column."
    text = [
        f"# {title}",
        f"`python benchmarks/{Path(sys.argv[0]).name}`: {how}",
        describe(facts),
        *notes,
        tables(records),
    ]
    print("\n\n".join(text))
    if args.out:
        results = {"title": title, "turns": args.turns, "machine": facts, "notes": notes, "results": records}
        write(args.out, name, results, "\n\n".join(text))
    return args, records


def whole(least: int, most: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not (text.isdecimal() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"must be from {least} to {most}, got {text}")
        return int(text)

    return convert


def folder(text: str) -> Path:
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from error
    return Path(text)


def _child(framework: str, threads: int, turns: int, smoke: bool) -> list[Record]:
    command = [sys.executable, sys.argv[0], "--child", framework, "--threads", str(threads)]
    command += ["--turns", str(turns)] + ["--smoke"] * smoke
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "2"}
    result = subprocess.run(command, check=False, env=environment, stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        sys.exit(f"{Path(sys.argv[0]).name}: {framework} on {threads} threads failed")
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def set_threads(framework: str, threads: int) -> None:
    if framework == "torch":
        import torch

        torch.set_num_threads(threads)
    elif framework == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
