"""How soon does each estimator learn Megapixel-MNIST? A table of test accuracies over estimators and seeds.

    python megapixel_mnist_study.py --digits-file mnist.npz --out results

The setting: real MNIST, 200 x 200 images without noise, 3,000 training images (the same in every epoch), 12 patches of
32, everything else as `megapixel_mnist.py` has it by default. Stopped, the same command goes on where it was.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from megapixel_mnist import ESTIMATORS, OptionError, Run, backend_module, check_options, parser

NAME = "megapixel_mnist_study"
EARLY = 4  # the epoch of the table's first column; the second is the last epoch
GOAL = 0.90  # test accuracy whose epoch is reported
SETTING = {
    "size": 200,
    "noise": 0,
    "patch_size": 32,
    "n_patches": 12,
    "n_train": 3000,
    "n_test": 1000,
    "fresh": False,
    "threads": 1,
}


def read_command(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--digits-file", help="mnist.npz, or a folder with the idx files (default: as in megapixel_mnist.py)"
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("study-output"),
        help=f"folder for {NAME}.json and {NAME}.md (default: study-output)",
    )
    p.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=ESTIMATORS)
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--jobs", type=int, default=1, help="trainings at a time, one thread each (default: 1)")
    command = p.parse_args(argv)
    if command.epochs < EARLY:
        p.error(f"--epochs must be at least {EARLY}")
    if command.jobs < 1:
        p.error(f"--jobs must be at least 1, got {command.jobs}")
    try:
        for seed in command.seeds:
            check_options(run_options(command, ESTIMATORS[0], seed))
        (command.out / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OptionError as error:
        p.error(str(error))
    except OSError as error:
        p.error(f"--out: {error}")
    return command


def run_options(command, estimator, seed):
    """Options of one training: the defaults of `megapixel_mnist.py` but for the setting."""
    base = vars(parser().parse_args([]))
    more = {
        "digits": "mnist",
        "digits_file": command.digits_file,
        "epochs": command.epochs,
        "estimator": estimator,
        "seed": seed,
    }
    return Namespace(**{**base, **SETTING, **more})


def train(options, checkpoint_path):
    """Train one setting, from its checkpoint if there is one; returns the history."""
    stored = backend_module(options).read_checkpoint(checkpoint_path) if checkpoint_path.is_file() else None
    run = Run(options, stored, bar=False)

    def say(run):
        last = run.history[-1]
        accuracy = 1 - last["test_error"]
        name = f"{options.estimator:18s} seed {options.seed}"
        print(f"{name}  epoch {last['epoch']:2d}  loss {last['loss']:.3f}  accuracy {accuracy:.3f}", flush=True)

    run.fit(checkpoint_path, say)
    return run.history


def main(argv=None):
    command = read_command(argv)
    jobs = {
        f"{estimator} {seed}": run_options(command, estimator, seed)
        for estimator in command.estimators
        for seed in command.seeds
    }
    checkpoints = command.out / "checkpoints"
    results = read_results(command)
    # spawned, not forked: a framework's thread pool does not survive a fork
    with ProcessPoolExecutor(min(command.jobs, len(jobs)), mp_context=get_context("spawn")) as pool:
        futures = {}
        for name, options in jobs.items():
            if name not in results["runs"]:
                futures[pool.submit(train, options, checkpoints / f"{name.replace(' ', '-')}.pt")] = name
        try:
            for future in as_completed(futures):
                results["runs"][futures[future]] = future.result()
                write_results(command, results)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            print("\nstopped; the same command goes on from here", file=sys.stderr)
            return 130
    shutil.rmtree(checkpoints)
    print((command.out / f"{NAME}.md").read_text())
    return 0


def read_results(command):
    """{"setting", "runs": name -> history} as an earlier call with the same setting left it, or without runs."""
    path = command.out / f"{NAME}.json"
    recipe = {
        name: value
        for name, value in vars(parser().parse_args([])).items()
        if name in ("batch_size", "downsample", "entropy", "lr")
    }
    setting = {**recipe, **SETTING, "epochs": command.epochs}
    if not path.is_file():
        return {"setting": setting, "runs": {}}
    results = json.loads(path.read_text())
    if results["setting"] != setting:
        raise SystemExit(f"{path} holds results of another setting, {results['setting']}; choose another --out")
    return results


def write_results(command, results):
    """The JSON file, and the Markdown table of all runs that are done."""
    path = command.out / f"{NAME}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(part, path)
    (command.out / f"{NAME}.md").write_text(table(results))


def table(results):
    """Markdown: a row per estimator, a number per seed."""
    setting = results["setting"]
    last = setting["epochs"]
    seconds = statistics.median(entry["train_s"] for history in results["runs"].values() for entry in history)
    side, patch = setting["size"], setting["patch_size"]
    header = (
        f"Megapixel-MNIST, {side} x {side}, {setting['n_patches']} patches of {patch}, {setting['n_train']} training\n"
        f"and {setting['n_test']} test images of real MNIST digits, one thread, {seconds:.1f} s per epoch (median).\n"
        "One number per seed, in the order of the seeds."
    )
    columns = f"seeds | test accuracy, epoch {EARLY} | mean | test accuracy, epoch {last} | mean | epochs to {GOAL:.2f}"
    lines = [header, "", f"| estimator | {columns} |", "|---|---|---|---:|---|---:|---|"]
    for estimator in ESTIMATORS:
        histories = {
            int(name.split()[1]): history for name, history in results["runs"].items() if name.split()[0] == estimator
        }
        if not histories:
            continue
        seeds = sorted(histories)
        accuracies = [[1 - entry["test_error"] for entry in histories[seed]] for seed in seeds]
        cells = [estimator, _join(seeds, "d")]
        for epoch in (EARLY, last):
            values = [curve[epoch - 1] for curve in accuracies]
            cells += [_join(values, ".3f"), f"{statistics.mean(values):.3f}"]
        reached = [
            next((str(e) for e, value in enumerate(curve, 1) if value >= GOAL), f"> {last}") for curve in accuracies
        ]
        lines.append("| " + " | ".join([*cells, _join(reached, "s")]) + " |")
    return "\n".join(lines) + "\n"


def _join(values, form):
    return ", ".join(format(value, form) for value in values)


if __name__ == "__main__":
    sys.exit(main())
