"""Target `bench`: makes a table, and numbers without this machine's names, of Google Benchmark's JSON

    python benchmarks/report.py build/bench/bench.json --out benchmarks/results

Paths and the name of the machine stay out.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path

import timing

TITLE = "Every operation of libats beside its floor"
NOTE = """`cmake --build build --target bench`: medians of 15 turns, the operation's and its floor's. The floor moves
the same bytes on as many threads, in the same pattern: a sum of the map for `sample` and `topk`, of the features for
`expectation`, of the pixels covered for patches at several scales; a memcpy for gradients, `locate` and
`estimator_arrays`; a memcpy a row for `extract_patches`, and zeroing the image before it for its gradient.
*ratio*: the operation's time over the floor's. *GB/s*: what the floor reads (backward of patches: the image), over the
operation's time."""


def read(file: Path) -> tuple[timing.Record, list[timing.Record]]:
    """What is known of the library, and a record a benchmark."""
    content = json.loads(file.read_text())
    context, records = content["context"], []
    for run in content["benchmarks"]:
        if run.get("run_type") != "iteration" or run.get("error_occurred"):
            continue
        name, threads = re.fullmatch(r"(.*)/threads:(\d+)/.*", run["name"]).groups()
        operation, _, case = name.partition("/")
        seconds = float(run["median_s"])
        gigabytes = run["bytes_per_second"] * run["real_time"] * 1e-9 / seconds * UNITS[run["time_unit"]]
        records.append(
            {
                "operation": operation,
                "case": case.replace("/", ", "),
                "threads": int(threads),
                "milliseconds": 1e3 * seconds,
                "gigabytes_per_second": gigabytes,
                "ratio": float(run["ratio"]),
            }
        )
    if not all(math.isfinite(x) and x > 0 for r in records for x in list(r.values())[3:]):
        raise ValueError("a time, a rate or a ratio is not a positive number")
    if not records:
        raise ValueError("there is no benchmark in it")
    library = {name: context[name] for name in ("ats_version", "compiler", "libats_build_type") if name in context}
    return library, records


UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def tables(records: list[timing.Record]) -> str:
    parts = []
    for operation in dict.fromkeys(record["operation"] for record in records):
        members = [record for record in records if record["operation"] == operation]
        threads = sorted({record["threads"] for record in members})
        columns = ["case"]
        for count in threads:
            columns += [f"{count} thread{'s' * (count > 1)}, ms", "GB/s", "ratio"]
        rows = []
        for case in dict.fromkeys(record["case"] for record in members):
            row = [case]
            for count in threads:
                found = [record for record in members if (record["case"], record["threads"]) == (case, count)]
                numbers = [(r["milliseconds"], r["gigabytes_per_second"], r["ratio"]) for r in found[-1:]]
                row += [timing.number(x) for x in numbers[0]] if numbers else ["", "", ""]
            rows.append(row)
        parts.append(f"**{operation}**\n\n" + timing.table(columns, rows))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="what --benchmark_out wrote")
    parser.add_argument("--out", type=timing.folder, required=True, help="folder for bench.md and bench.json")
    args = parser.parse_args()
    try:
        library, records = read(args.file)
    except OSError as error:
        parser.error(f"{args.file}: {error.strerror}")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        parser.error(f"{args.file} is not what the benchmarks write: {type(error).__name__}: {error}")
    facts = timing.machine()
    for name in ("python", "packages"):  # they have no part in it
        del facts[name]
    facts.update(library)
    if library.get("libats_build_type") not in ("Release", "RelWithDebInfo"):
        print(
            f"report.py: libats was built as {library.get('libats_build_type')}: its times mean little", file=sys.stderr
        )
    text = f"# {TITLE}\n\n{NOTE}\n\n{timing.describe(facts)}\n\n{tables(records)}"
    timing.write(args.out, "bench", {"title": TITLE, "machine": facts, "results": records}, text)
    print(f"written: {args.out / 'bench.md'}, {args.out / 'bench.json'}")


if __name__ == "__main__":
    main()
