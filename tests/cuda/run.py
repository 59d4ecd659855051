"""make test-cuda: everything that needs a GPU, unattended, without a network, in less than ten minutes

    python tests/cuda/run.py [--minutes 9.5] [--out benchmarks/results]

Builds with this Python (which needs PyTorch with CUDA, NumPy and pybind11), CMake and nvcc into build/test-cuda, for the
GPU that is there. Then: the C++ tests of tests/cuda on the GPU; the tests of Python that run on every backend, on
torch-cuda, and those of CUDA alone; the C++ tests under compute-sanitizer. A step that fails does not stop the others.
Every step's output is in build/test-cuda; the summary is printed and written to cuda_tests.md in --out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
HOME = ROOT / "build" / "test-cuda"
BUILD, SITE = HOME / "build", HOME / "site"
sys.path.insert(0, str(ROOT / "benchmarks"))
import timing

PACKAGE = ("ats", "ats_python", "ats_torch", "ats_torch_cuda")
SANITIZERS = {  # what it is run with, so that errors are counted
    "memcheck": ["--leak-check", "no"],
    "racecheck": [],
}


@dataclass
class Step:
    name: str
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    note: str = ""
    seconds: float = 0.0


def missing() -> list[str]:
    """What nothing can be built without, in words."""
    lacks = [f"{name}, on PATH" for name in ("nvcc", "cmake") if not shutil.which(name)]
    if not shutil.which(os.environ.get("CXX", "c++").split()[0]):
        lacks.append("a C++17 compiler (c++, or CXX)")
    lacks += [
        f"Python's module {name}" for name in ("numpy", "pybind11", "torch") if not importlib.util.find_spec(name)
    ]
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        lacks.append("Python.h, Python's C headers")
    if importlib.util.find_spec("torch"):
        import torch

        if not torch.version.cuda:
            lacks.append(f"PyTorch with CUDA (this is {torch.__version__})")
        elif not torch.cuda.is_available():
            lacks.append("a GPU that PyTorch can use (torch.cuda.is_available() is false)")
    return lacks


class Runner:
    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.steps: list[Step] = []

    def run(self, log: str, command: list[object], seconds: float, **environment: str) -> tuple[int | None, str]:
        """Exit status (None: out of time) and output, which is kept in a log."""
        seconds = min(seconds, self.end - time.monotonic())
        words = [str(word) for word in command]
        file = HOME / f"{log}.log"
        if seconds <= 1:
            file.write_text("there was no time left for it\n")
            return None, ""
        with file.open("w") as output:
            process = subprocess.Popen(
                words,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
            try:
                status: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = None
        text = file.read_text(errors="replace")
        if status != 0:
            print(f"$ {' '.join(words)}\n" + "\n".join(text.splitlines()[-40:]), flush=True)
            print("-> " + (f"exit status {status}" if status is not None else "out of time"), flush=True)
        return status, text

    def step(self, name: str) -> Step:
        print(f"== {name}", flush=True)
        self.steps.append(Step(name, seconds=-time.monotonic()))
        return self.steps[-1]

    def finish(self, step: Step) -> bool:
        step.seconds += time.monotonic()
        print(
            f"   {step.passed} passed, {len(step.failed)} failed, {len(step.skipped)} skipped {step.note}", flush=True
        )
        return not step.failed


def compile_targets(*targets: str) -> list[object]:
    """What fails to compile does not keep others from it."""
    jobs = os.environ.get("JOBS") or os.cpu_count()
    keep_going = ["-k", "0"] if shutil.which("ninja") else ["-k"]
    return ["cmake", "--build", BUILD, "--parallel", jobs, "--target", *targets, "--", *keep_going]


def build(runner: Runner) -> bool:
    import torch

    major, minor = torch.cuda.get_device_capability()
    step = runner.step("build")
    options = {
        "SKBUILD": "ON",  # laid out as in a wheel
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_INSTALL_PREFIX": SITE,
        "CMAKE_CUDA_ARCHITECTURES": f"{major}{minor}",
        "ATS_BUILD_CUDA": "ON",
        "ATS_BUILD_TORCH": "ON",
        "ATS_BUILD_TENSORFLOW": "OFF",
        "ATS_BUILD_TESTS": "ON",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": __import__("pybind11").get_cmake_dir(),
        # Which may lie in another folder of this Python's path than its own.
        "ATS_TORCH_SITE": Path(importlib.util.find_spec("torch").origin).parents[1],
    }
    configure: list[object] = [
        "cmake",
        "-S",
        ROOT,
        "-B",
        BUILD,
        *(f"-D{key}={value}" for key, value in options.items()),
    ]
    configure += ["-G", "Ninja"] * bool(shutil.which("ninja"))
    shutil.rmtree(SITE, ignore_errors=True)
    for log, command, seconds in [
        ("configure", configure, 60),
        ("build", compile_targets(*PACKAGE), 300),
        ("install", ["cmake", "--install", BUILD], 30),
    ]:
        status, _ = runner.run(log, command, seconds)
        if status != 0:
            step.failed.append(log)
            break
        step.passed += 1
    for package in ("ats_core", "ats"):
        shutil.copytree(ROOT / "python" / package, SITE / package, dirs_exist_ok=True)
    return runner.finish(step)


def build_programs(runner: Runner) -> None:
    step = runner.step("build of the C++ tests")
    status, _ = runner.run("build_programs", compile_targets("gpu_tests"), 120)
    step.passed, step.failed = (1, []) if status == 0 else (0, ["build_programs"])
    runner.finish(step)


def programs() -> list[Path]:
    return sorted(path for path in (BUILD / "gpu_tests").glob("gpu_*") if os.access(path, os.X_OK))


def run_programs(runner: Runner, name: str, prefix: list[object], seconds: float, at_once: int = 1) -> None:
    step = runner.step(name)

    def run(program: Path) -> int | None:
        return runner.run(f"{program.name}_{name.split()[0]}", [*prefix, program], seconds)[0]

    with ThreadPoolExecutor(at_once) as pool:
        found = list(zip(programs(), pool.map(run, programs()), strict=True))
    for program, status in found:
        if status == 0:
            step.passed += 1
        else:
            step.failed.append(program.name + (" (out of time)" if status is None else ""))
    if not found:
        step.failed.append("no program was built")
    runner.finish(step)


def run_pytest(runner: Runner) -> None:
    step = runner.step("pytest, torch-cuda")
    lacks = [name for name in ("pytest", "hypothesis") if not importlib.util.find_spec(name)]
    if lacks:
        step.note = f"not run: there is no {' and no '.join(lacks)} here"
        step.failed.append(step.note)
        runner.finish(step)
        return
    report = HOME / "pytest.xml"
    report.unlink(missing_ok=True)
    command: list[object] = [sys.executable, "-m", "pytest", "tests", "-k", "torch-cuda or test_torch_cuda", "-q"]
    command += ["--continue-on-collection-errors"]  # a file that needs what is not here does not stop the others
    # Warnings of a PyTorch that this version was not tested with are no failures.
    command += ["-W", "default", "-p", "no:cacheprovider", f"--junitxml={report}"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", "4"]
    status, _ = runner.run(
        "pytest", command, 330, PYTHONPATH=str(SITE), ATS_REQUIRE_BACKENDS="numpy,torch-cuda", PYTHONUNBUFFERED="1"
    )
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{case.get('classname', '').removeprefix('tests.')}::{case.get('name')}"
            kinds = {child.tag for child in case}
            if kinds & {"failure", "error"}:
                step.failed.append(name)
            elif "skipped" in kinds:
                step.skipped.append(name)
            else:
                step.passed += 1
    if status != 0 and not step.failed:
        step.failed.append("out of time" if status is None else f"pytest ended with status {status}")
    runner.finish(step)


def sanitize(runner: Runner) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    for tool, options in SANITIZERS.items():
        name = f"{tool} of the C++ tests"
        if sanitizer:
            prefix: list[object] = [sanitizer, "--tool", tool, "--error-exitcode", "9", *options]
            run_programs(runner, name, prefix, 120, at_once=4)
        else:
            step = runner.step(name)
            step.note = "not run: there is no compute-sanitizer on PATH"
            step.skipped.append(step.note)
            runner.finish(step)


def report(runner: Runner) -> str:
    facts = {**timing.gpu(), **timing.machine()}
    rows = [[s.name, str(s.passed), str(len(s.failed)), str(len(s.skipped)), s.note] for s in runner.steps]
    parts = [
        "# The tests on a GPU",
        "`make test-cuda`",
        timing.describe(facts),
        timing.table(["step", "passed", "failed", "skipped", "note"], rows),
    ]
    for step in runner.steps:
        if step.failed:
            parts.append(f"Failed, {step.name}:\n\n" + "\n".join(f"- `{name}`" for name in step.failed))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything together, default: 9.5")
    parser.add_argument("--out", type=timing.folder, help="folder for cuda_tests.md")
    parser.add_argument("--build-only", action="store_true", help="for the benchmarks: build/test-cuda/site")
    args = parser.parse_args()
    # Where tools are that are not on PATH: Python's own, and the CUDA toolkit's.
    places = [Path(sys.executable).parent, Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")]
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), *map(str, places)])
    lacks = missing()
    if lacks:
        sys.exit("Missing on this machine:\n" + "\n".join(f"  - {item}" for item in lacks))
    HOME.mkdir(parents=True, exist_ok=True)
    runner = Runner(args.minutes)
    if args.build_only:
        sys.exit(not build(runner))
    if build(runner):
        build_programs(runner)
        run_programs(runner, "C++ tests", [], 60)
        run_pytest(runner)
        sanitize(runner)
    text = report(runner)
    print(f"\n{text}\n\nin seconds: " + ", ".join(f"{step.name} {step.seconds:.0f}" for step in runner.steps))
    if args.out:
        (args.out / "cuda_tests.md").write_text(text + "\n")
    sys.exit(any(step.failed for step in runner.steps))


if __name__ == "__main__":
    main()
