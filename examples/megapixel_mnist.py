"""Megapixel-MNIST: find the digit that stands three times on a large dark image, trained from the image's label alone.

    python megapixel_mnist.py --out demo-output                                      # 200 x 200, a few minutes
    python megapixel_mnist.py --out mnist --digits mnist --digits-file mnist.npz     # the real digits
    python megapixel_mnist.py --out paper --paper                                    # the paper's experiment
    python megapixel_mnist.py --out small --paper --size 500 --noise 0               # the same, smaller
    KERAS_BACKEND=tensorflow python megapixel_mnist.py --out keras-output --backend keras

Ctrl-C stops it; the same command with --resume goes on after the last whole epoch. The output folder then holds
curves.png, overlay.png, patches.png, the weights, results.json and table.md, and a checkpoint for --resume.
"""

import importlib
import json
import math
import os
import sys
import time
from argparse import BooleanOptionalAction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from command_line import OptionError, Parser, check_ranges, exit_code, flag, make_folder, take_stored
from megapixel_mnist_data import DIGIT, MegapixelMNIST, load_digits
from megapixel_mnist_recipe import MODELS, PAPER, SAMPLING
from tqdm import tqdm

# Before a framework is loaded: idle OpenMP threads that spin slow everything down on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no remarks of TensorFlow about the CPU it finds


class Files(NamedTuple):
    """Names in the output folder."""

    checkpoint: str
    weights: str


BACKENDS = {
    "torch": Files("checkpoint.pt", "weights.pt"),
    "keras": Files("checkpoint.npz", "model.weights.h5"),  # Keras wants that ending
}
ESTIMATORS = ["murthy", "des_raj", "horvitz_thompson", "iid"]
TEST_STREAM = 1 << 40  # first random stream of the test images; training uses those from 0 on
AT_LEAST = {name: 1 for name in ("n_train", "n_test", "n_patches", "epochs", "batch_size", "threads")}
AT_MOST = {  # far beyond what is useful; more would end in a crash deep inside NumPy or the framework
    "size": 20_000,
    "cost_size": 20_000,
    "noise": 1000,
    "n_train": 1_000_000,
    "n_test": 1_000_000,
    "n_patches": 10_000,
    "first_patches": 10_000,
    "first_epochs": 10_000,
    "epochs": 10_000,
    "batch_size": 10_000,
    "threads": 256,
    "lr": 1.0,
    "entropy": 1000.0,
    "seed": 2**63 - 1,
}
NOT_TRAINING = {"out", "resume", "threads", "cost_size", "digits_file"}  # options that a resumed run may change


# -------------------------------------------------------------------------------------------------------------- options


def parser(suppress_defaults=False):
    """The command line; with `suppress_defaults` the result holds only what was typed."""
    p = Parser(__doc__, suppress_defaults)
    add = p.add
    changed = ", ".join(f"{flag(name)} {value}" for name, value in PAPER.items())
    add("--paper", False, f"the paper's networks and data; sets {changed}, where not given", action="store_true")
    add("--out", Path("megapixel-mnist-output"), "folder for everything that is written", metavar="FOLDER")
    add("--resume", False, "go on after the last whole epoch of the run in --out", action="store_true")
    add("--size", 200, "pixels along the side of an image")
    add("--noise", 0, "short lines per image, as distraction")
    add("--digits", "sklearn", "scikit-learn's bundled digits, or MNIST", choices=["sklearn", "mnist"])
    add(
        "--digits-file",
        None,
        "mnist.npz, or a folder with the idx files (default: the usual caches, else a download)",
        metavar="PATH",
    )
    add("--n-train", 3000, "training images")
    add("--n-test", 500, "test images")
    add("--fresh", True, "compose new training images every epoch", action=BooleanOptionalAction)
    add("--downsample", 6.0, "the attention network sees the image reduced by this factor")
    add("--patch-size", 32, "pixels along the side of a patch")
    add("--n-patches", 12, "patches sampled from an image")
    add("--first-patches", 0, "with --paper: patches in the first epochs, if not 0")
    add("--first-epochs", 0, "with --paper: how many epochs these are")
    add("--model", MODELS[0], "with --paper: what the feature network looks at", choices=MODELS)
    add("--estimator", "murthy", "how the samples are combined", choices=ESTIMATORS)
    add("--entropy", 0.0, "strength of the regulariser that keeps the attention spread out")
    add("--backend", "torch", "framework; keras runs on the one that KERAS_BACKEND names", choices=[*BACKENDS])
    add("--epochs", 12, "passes over the training images")
    add("--batch-size", 16, "images per optimiser step")
    add("--lr", 2e-3, "highest learning rate of Adam")
    add("--seed", 0, "decides images, initial weights and every sample")
    add("--threads", 2, "CPU threads")
    add("--cost-size", 1500, "compare the cost at --size and, if it is larger, at this image size; 0: do not compare")
    return p


def read_options(argv):
    """Checked options, and the checkpoint to resume from or None."""
    options = parser().parse_args(argv)
    typed = vars(parser(suppress_defaults=True).parse_args(argv))
    if options.paper:
        vars(options).update({**PAPER, **typed})
    checkpoint = None
    for backend, files in BACKENDS.items():
        path = options.out / files.checkpoint
        if not path.is_file():
            continue
        options.backend = backend
        checkpoint = backend_module(options).read_checkpoint(path)
        stored = checkpoint["options"]
        if stored.keys() != vars(options).keys() - NOT_TRAINING or stored["backend"] != backend:
            raise OptionError(f"{path} is not a checkpoint of this program")
        if not options.resume:
            raise OptionError(
                f"--out {options.out} holds a run of {len(checkpoint['history'])} epochs: "
                "add --resume to go on, or choose another --out"
            )
        take_stored(options, stored, typed)
        break
    check_options(options)
    return options, checkpoint


def check_options(options):
    """Raise `OptionError` for what cannot work, before any work is done."""
    check_ranges(options, AT_LEAST, AT_MOST)
    if options.lr == 0:
        raise OptionError("--lr must be positive, got 0")
    if options.size < 4 * DIGIT:
        raise OptionError(
            f"--size must be at least {4 * DIGIT} for five digits of {DIGIT} x {DIGIT} pixels, got {options.size}"
        )
    if not 8 <= options.patch_size <= options.size:
        raise OptionError(f"--patch-size must be from 8 to --size {options.size}, got {options.patch_size}")
    if not 1 <= options.downsample <= options.size / 8:
        raise OptionError(
            f"--downsample must be from 1 to {options.size / 8:g} for --size {options.size}, got {options.downsample}"
        )
    cells = low_size(options) ** 2
    for name in ("n_patches", "first_patches"):
        count = getattr(options, name)
        if options.estimator != "iid" and count > cells:
            raise OptionError(f"{flag(name)} {count} is more than the {cells} cells of the attention")
    if options.estimator == "iid" and min(options.n_patches, options.first_patches or 2) < 2:
        raise OptionError("--estimator iid needs --n-patches and --first-patches of at least 2")
    if options.paper and options.backend != "torch":
        raise OptionError(f"--paper needs --backend torch, got {options.backend}")
    for name, plain in (("model", MODELS[0]), ("first_patches", 0)):
        if getattr(options, name) != plain and not options.paper:
            raise OptionError(f"{flag(name)} {getattr(options, name)} needs --paper")
    if options.digits_file is not None and options.digits != "mnist":
        raise OptionError("--digits-file needs --digits mnist")
    if options.digits_file is not None and not Path(options.digits_file).exists():
        raise OptionError(f"--digits-file {options.digits_file} does not exist")


def low_size(options):
    """Pixels along the side of the view that the attention network gets."""
    return round(options.size / options.downsample)


def backend_module(options):
    try:
        if options.backend == "keras":
            importlib.import_module("ats_core.keras")  # first: it says what is wrong with a Keras that does not work
        return importlib.import_module(f"megapixel_mnist_{options.backend}")
    except ImportError as error:
        raise OptionError(f"--backend {options.backend}: {error}") from error


# ------------------------------------------------------------------------------------------------------------- training


class Run:
    """One training: data, backend and history, from the options of the command line; `bar` shows a progress bar."""

    def __init__(self, options, checkpoint=None, bar=True):
        self.options = options
        # None: only on a terminal, not in a log file
        self.no_bar = None if bar else True
        self.train_digits, test_digits = load_digits(options.digits, options.digits_file)
        self.test = self.images(test_digits, options.n_test, "test")
        self.batches = -(-options.n_train // options.batch_size)
        self.module = backend_module(options)
        self.backend = self.module.Backend(options, steps=options.epochs * self.batches)
        self.history = []  # one dictionary per epoch
        if checkpoint is not None:
            try:
                self.backend.restore(checkpoint["backend"])
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                path = options.out / BACKENDS[options.backend].checkpoint
                raise ValueError(f"{path} is not a checkpoint of this program") from error
            self.history = checkpoint["history"]

    def images(self, digits, n, split, epoch=0):
        options = self.options
        seed = (options.seed, ("train", "test").index(split), epoch)
        return MegapixelMNIST(digits, n, options.size, options.noise, seed, low_size(options), options.paper)

    def fit(self, path, after_epoch=lambda run: None):
        """Train the epochs that are left; after each one write the checkpoint `path`, then call `after_epoch(self)`."""
        for epoch in range(len(self.history) + 1, self.options.epochs + 1):
            entry = {"epoch": epoch, **self.train_epoch(epoch), **self.evaluate()}
            history = [*self.history, entry]
            stored = {name: value for name, value in vars(self.options).items() if name not in NOT_TRAINING}
            content = {"options": stored, "history": history, "backend": self.backend.state()}
            self.module.write_checkpoint(path, content)
            self.history = history
            after_epoch(self)

    def train_epoch(self, epoch):
        """One pass over the training images: {"loss", "train_s"}."""
        options = self.options
        data = self.images(self.train_digits, options.n_train, "train", epoch if options.fresh else 0)
        order = np.random.default_rng((options.seed, 2, epoch)).permutation(len(data))
        if options.first_patches:
            self.backend.draw(options.first_patches if epoch <= options.first_epochs else options.n_patches)
        start = time.perf_counter()
        total = 0.0
        with tqdm(
            total=len(data), desc=f"epoch {epoch}/{options.epochs}", unit="img", leave=False, disable=self.no_bar
        ) as bar:
            for first in range(0, len(data), options.batch_size):
                rows = order[first : first + options.batch_size]
                rng = options.seed, (epoch - 1) * len(data) + first
                loss = self.backend.train_step(*data.batch(rows), rng)
                total += loss * len(rows)
                bar.update(len(rows))
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if not math.isfinite(total):
            raise OptionError(f"the training diverged: the loss of epoch {epoch} is {total}; choose a lower --lr")
        return {"loss": total / len(data), "train_s": time.perf_counter() - start}

    def evaluate(self):
        """{"test_error"} over the test images, the same images and samples every time."""
        if self.options.first_patches:
            self.backend.draw(self.options.n_patches)
        wrong = 0
        for first in range(0, len(self.test), self.options.batch_size):
            rows = np.arange(first, min(first + self.options.batch_size, len(self.test)))
            x_low, x_high, labels = self.test.batch(rows)
            logits = self.backend.predict(x_low, x_high, (self.options.seed, TEST_STREAM + first))
            wrong += int((logits.argmax(axis=1) != labels).sum())
        return {"test_error": wrong / len(self.test)}


def print_epoch(run):
    last = run.history[-1]
    progress = f"epoch {last['epoch']:3d}/{run.options.epochs}   loss {last['loss']:.4f}"
    print(f"{progress}   test error {last['test_error']:.4f}   {last['train_s']:.1f} s", flush=True)


def report(run):
    """Write everything but the checkpoint into the output folder; measuring the cost comes last, for it may fail."""
    import megapixel_mnist_measure as measure
    import megapixel_mnist_report as figures

    options, out = run.options, run.options.out
    costs = measure.earlier_costs(options, run.history)
    run.backend.save_weights(out / BACKENDS[options.backend].weights)
    figures.curves(run.history, out / "curves.png")
    if options.model in SAMPLING:
        rows = np.arange(min(8, len(run.test)))
        x_low, x_high, labels = run.test.batch(rows)
        look = run.backend.look(x_low, x_high, (options.seed, TEST_STREAM))
        figures.overlay(x_high[:, 0], labels, look, out / "overlay.png")
        figures.contact_sheet(labels, look, out / "patches.png")
    write_results(run, costs)
    if not costs and options.cost_size:
        costs = measure.cost_rows(options)
        write_results(run, costs)
    table = (out / "table.md").read_text()
    print(
        f"\n{table}\ntest accuracy {1 - run.history[-1]['test_error']:.3f}; figures, weights and numbers are in {out}/"
    )


def write_results(run, costs):
    """results.json and table.md."""
    import megapixel_mnist_report as figures

    results = {
        "options": vars(run.options),
        "test_accuracy": 1 - run.history[-1]["test_error"],
        "history": run.history,
        "costs": costs,
    }
    (run.options.out / "results.json").write_text(json.dumps(results, indent=2, default=str) + "\n")
    (run.options.out / "table.md").write_text(figures.cost_table(costs))


# ----------------------------------------------------------------------------------------------------------------- main


def start(argv):
    """The `Run` that the command line asks for, with its output folder; bad input is an `OptionError`."""
    options, checkpoint = read_options(argv)
    backend_module(options)
    make_folder(options.out)
    run = Run(options, checkpoint)
    if checkpoint:
        left = options.epochs - len(run.history)
        print(
            f"going on after epoch {len(run.history)}" if left else f"all {options.epochs} epochs are done", flush=True
        )
    return run


def work(run):
    run.fit(run.options.out / BACKENDS[run.options.backend].checkpoint, print_epoch)
    report(run)


def main(argv=None):
    return exit_code("megapixel_mnist.py", start, work, argv)


if __name__ == "__main__":
    sys.exit(main())
