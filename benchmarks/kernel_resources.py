"""What every CUDA kernel takes of a multiprocessor, as ptxas says

    python benchmarks/kernel_resources.py [--architectures 90] [--out benchmarks/results]

Compiles the kernels into a new folder with -DATS_CUDA_VERBOSE=ON; needs nvcc, CMake and Ninja, no GPU. Shared memory is
what a kernel declares; what a launch adds is in the header of its .cu file.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import timing

ROOT = Path(__file__).parents[1]
COLUMNS = ["kernel", "file", "architecture", "registers", "shared memory, bytes", "stack, bytes", "spilled, bytes"]


def build(architectures: str) -> str:
    """What the compiler says."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["-DATS_BUILD_CUDA=ON", "-DATS_CUDA_VERBOSE=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architectures}"]
        text = _run("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", *options)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count()))
        return text + _run("cmake", "--build", folder, "--target", "ats_kernels", "--parallel", jobs)


def _run(*command: object) -> str:
    words = [str(word) for word in command]
    result = subprocess.run(words, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(words)}\n{result.stdout}")
    return result.stdout


def read(text: str) -> list[timing.Record]:
    """A record a kernel and architecture."""
    records: list[timing.Record] = []
    file = ""
    for line in text.splitlines():
        if found := re.search(r"Building CUDA object .*/(\w+\.cu)\.o", line):
            file = found[1]
        elif found := re.search(r"Compiling entry function '(\w+)' for 'sm_(\w+)'", line):
            records.append({"kernel": found[1], "file": file, "architecture": found[2]})
        elif records and (found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", line)):
            records[-1].setdefault("stack", int(found[1]))  # of the kernel; of what it calls afterwards
            records[-1].setdefault("spilled", int(found[2]) + int(found[3]))
        elif records and (found := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            records[-1] |= {"registers": int(found[1]), "shared": int(shared[1]) if shared else 0}
    for record, name in zip(records, demangle([record["kernel"] for record in records]), strict=True):
        record["kernel"] = name
    return sorted(records, key=lambda record: (record["file"], record["kernel"], record["architecture"]))


def demangle(names: list[str]) -> list[str]:
    """run_kernel<ats::cuda::(anonymous namespace)::Locate> as Locate."""
    result = subprocess.run(["c++filt"], check=True, input="\n".join(names), capture_output=True, text=True)
    readable = []
    for name in result.stdout.splitlines():
        kernel = re.search(r"run_kernel<(.*)>\(", name)
        text = kernel[1].strip() if kernel else name
        readable.append(re.sub(r"\(anonymous namespace\)::|\bats::(cuda::)?", "", text))
    return readable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", default="90", help="as CMake names them, default: 90")
    parser.add_argument("--out", type=timing.folder, help="folder for cuda_kernels.md")
    args = parser.parse_args()
    text = build(args.architectures)
    records = read(text)
    if not records:
        sys.exit(f"ptxas said nothing of any kernel:\n{text}")
    keys = ("kernel", "file", "architecture", "registers", "shared", "stack", "spilled")
    rows = [[str(record.get(key, "")) for key in keys] for record in records]
    rows = [[f"`{kernel}`", file, f"sm_{architecture}", *rest] for kernel, file, architecture, *rest in rows]
    nvcc = re.search(r"release ([\w.]+)", _run("nvcc", "--version"))
    how = f"`python benchmarks/kernel_resources.py --architectures '{args.architectures}'`, nvcc {nvcc[1] if nvcc else ''}"
    page = "\n\n".join([f"# {__doc__.splitlines()[0]}", how, timing.table(COLUMNS, rows)])
    print(page)
    if args.out:
        (args.out / "cuda_kernels.md").write_text(page + "\n")


if __name__ == "__main__":
    main()
