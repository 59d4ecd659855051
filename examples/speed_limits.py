"""Speed limits: which limit does a photograph of a road show, 50, 70, 80 or none? Trained from the images' labels alone.

    python speed_limits.py --made-up --out made-up-output      # small made-up pictures, some minutes
    python speed_limits.py --out speed-limits-output           # the Swedish Traffic Signs, a download of 3.6 GB

Needs Keras 3 on TensorFlow or PyTorch (KERAS_BACKEND). With the real set and the default options the training takes 4 GB
of memory on TensorFlow and 6 GB on PyTorch, half of that with half the --batch-size, and a GPU's speed.

Ctrl-C stops it, also during the download; the same command with --resume goes on after the last whole epoch. The output
folder then holds curves.png, overlay.png, model.weights.h5, results.json, and checkpoint.npz for --resume.

The experiment of Katharopoulos and Fleuret, "Processing Megapixel Images with Deep Attention-Sampling Models", ICML 2019.
"""

import importlib
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import speed_limits_data
import speed_limits_made_up
from command_line import OptionError, Parser, check_ranges, exit_code, make_folder, take_stored
from speed_limits_data import CLASSES, SETS, SpeedLimitImages, fetch

# Before a framework is loaded: idle OpenMP threads that spin slow everything down on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no remarks of TensorFlow about the CPU it finds

ESTIMATORS = ["murthy", "des_raj", "horvitz_thompson", "iid"]
# defaults with --made-up: the pictures are a quarter as wide, and have to be learned in minutes
MADE_UP = {"patch_size": 40, "pan": 20, "epochs": 30, "batch_size": 16, "lr": 5e-3, "lr_drop": 22}
AT_LEAST = {"patch_size": 8, **{name: 1 for name in ("n_patches", "epochs", "batch_size", "threads")}}
AT_MOST = {  # far beyond what is useful; more would end in a crash deep inside the framework
    "scale": 1.0,
    "patch_size": 1000,
    "n_patches": 10_000,
    "pan": 10_000,
    "entropy": 1000.0,
    "epochs": 100_000,
    "batch_size": 10_000,
    "lr": 1.0,
    "lr_drop": 100_000,
    "clipnorm": 1e6,
    "seed": 2**31 - 1,
    "threads": 256,
}
NOT_TRAINING = {"out", "resume", "threads", "data", "url"}  # options that a resumed run may change


# -------------------------------------------------------------------------------------------------------------- options


def parser(suppress_defaults=False):
    """The command line; with `suppress_defaults` the result holds only what was typed."""
    p = Parser(__doc__, suppress_defaults)

    def add(name, default, text, **more):
        made_up = MADE_UP.get(name[2:].replace("-", "_"))
        p.add(name, default, text if made_up is None else f"{text}; {made_up} with --made-up", **more)

    add("--out", Path("speed-limits-output"), "folder for everything that is written", metavar="FOLDER")
    add("--resume", False, "go on after the last whole epoch of the run in --out", action="store_true")
    add("--made-up", False, "a small made-up set, drawn into --out", action="store_true")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ats" / "speed-limits"
    add("--data", cache, "folder with the Swedish Traffic Signs; what it lacks is downloaded", metavar="FOLDER")
    add("--url", speed_limits_data.URL, "where Set1 and Set2 are downloaded from")
    add("--scale", 0.3, "the attention network sees the image reduced to this share of its sides")
    add("--patch-size", 100, "pixels along the side of a patch")
    add("--n-patches", 5, "patches sampled from an image")
    add("--estimator", "murthy", "how the samples are combined", choices=ESTIMATORS)
    add("--entropy", 1e-4, "strength of the regulariser that keeps the attention spread out")
    add("--pan", 100, "pixels that a training image is shifted by at most")
    add("--epochs", 500, "passes over the training images")
    add("--batch-size", 32, "images per optimiser step")
    add("--lr", 1e-3, "learning rate of Adam")
    add("--lr-drop", 250, "epochs after which the learning rate falls to a tenth")
    add("--clipnorm", 1.0, "longest gradient, of all weights together, that is not shortened; 0: any")
    add("--seed", 0, "decides initial weights, the order of the images and every sample")
    add("--threads", 2, "CPU threads")
    return p


def read_options(argv):
    """Checked options, and the checkpoint to resume from or None."""
    options = parser().parse_args(argv)
    typed = vars(parser(suppress_defaults=True).parse_args(argv))
    if options.made_up:
        vars(options).update({name: value for name, value in MADE_UP.items() if name not in typed})
    path = options.out / "checkpoint.npz"
    checkpoint = None
    if path.is_file():
        checkpoint = keras_module("keras_training").read_checkpoint(path)
        if checkpoint["options"].keys() != vars(options).keys() - NOT_TRAINING:
            raise OptionError(f"{path} is not a checkpoint of this program")
        if not options.resume:
            raise OptionError(
                f"--out {options.out} holds a run of {len(checkpoint['history'])} epochs: "
                "add --resume to go on, or choose another --out"
            )
        take_stored(options, checkpoint["options"], typed)
    check_options(options, typed)
    return options, checkpoint


def check_options(options, typed):
    """Raise `OptionError` for what cannot work, before any work is done."""
    check_ranges(options, AT_LEAST, AT_MOST)
    for name in ("lr", "scale"):
        if getattr(options, name) == 0:
            raise OptionError(f"--{name} must be positive, got 0")
    if options.estimator == "iid" and options.n_patches < 2:
        raise OptionError("--estimator iid needs --n-patches of at least 2")
    if not options.url.startswith(("http://", "https://")):
        raise OptionError(f"--url must begin with http:// or https://, got {options.url}")
    for name in ("data", "url"):
        if options.made_up and name in typed:
            raise OptionError(f"--{name} is for the real set, and --made-up takes another")


def keras_module(name):
    """A module of ours that needs Keras; without a Keras that works it is the input that is bad."""
    try:
        importlib.import_module("ats_core.keras")  # first: it says what is wrong with a Keras that does not work
        return importlib.import_module(name)
    except ImportError as error:
        raise OptionError(str(error)) from error


# ------------------------------------------------------------------------------------------------------------- training


class Run:
    """One training: data, model and history (a dictionary per epoch), from the options of the command line."""

    def __init__(self, options, checkpoint=None):
        self.options = options
        self.training = keras_module("keras_training")
        model = keras_module("speed_limits_model")
        folder = self._prepared_data()
        self.train, self.test = (SpeedLimitImages(folder, split) for split in SETS)
        if self.train.shape != self.test.shape:
            raise ValueError(f"the images of {folder} have two sizes, {self.train.shape} and {self.test.shape}")
        self.low_shape = model.low_shape(self.train.shape, options.scale)
        rows, columns = model.grid(self.train.shape, options.scale)
        if min(rows, columns) < 1:
            raise OptionError(f"--scale {options.scale} makes images of {self.train.shape} too small for the attention")
        if options.estimator != "iid" and options.n_patches > rows * columns:
            raise OptionError(
                f"--n-patches {options.n_patches} is more than the {rows * columns} cells of the attention"
            )
        self.training.set_up(options)
        self.classifier = model.Classifier(self.train.shape, options)
        self.history = []
        if checkpoint is not None:
            try:
                self.training.restore(self.classifier.model, checkpoint["backend"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{options.out / 'checkpoint.npz'} is not a checkpoint of this program") from error
            self.history = checkpoint["history"]

    def _prepared_data(self):
        if not self.options.made_up:
            fetch(self.options.data, self.options.url)
            return self.options.data
        folder = self.options.out / "data"
        if not (folder / SETS["test"] / "annotations.txt").is_file():  # it is written last
            speed_limits_made_up.write(folder)
        return folder

    def fit(self):
        """Train the epochs that are left, with a checkpoint after each."""
        import keras
        from speed_limits_model import Elements

        from ats_core.keras import Batcher

        options, done = self.options, len(self.history)
        if done == options.epochs:
            return
        train = Batcher(Elements(self.train), options.batch_size, seed=options.seed, workers=options.threads)
        test = Batcher(Elements(self.test), options.batch_size, shuffle=False, workers=options.threads)
        for _ in range(done):
            train.on_epoch_end()  # the orders of the epochs that are done

        def learning_rate(epoch):
            return options.lr * (0.1 if epoch >= options.lr_drop else 1)

        self.classifier.model.fit(
            train,
            validation_data=test,
            epochs=options.epochs,
            initial_epoch=done,
            class_weight=self.train.class_weights(),
            callbacks=[
                keras.callbacks.LearningRateScheduler(learning_rate),
                self.training.AfterEpoch(lambda epoch, logs: self._keep(_entry(epoch, logs))),
            ],
            shuffle=False,  # the Batcher does; Keras would take the batches in an order that no seed of ours decides
            verbose=1 if sys.stdout.isatty() else 2,
        )

    def _keep(self, entry):
        if not math.isfinite(entry["loss"]):
            raise OptionError(
                f"the training diverged: the loss of epoch {entry['epoch']} is {entry['loss']}; choose a lower --lr"
            )
        history = [*self.history, entry]
        stored = {name: value for name, value in vars(self.options).items() if name not in NOT_TRAINING}
        content = {"options": stored, "history": history, "backend": self.training.state(self.classifier.model)}
        self.training.write_checkpoint(self.options.out / "checkpoint.npz", content)
        self.history = history


def _entry(epoch, logs):
    """What an epoch leaves, from Keras's number of it and Keras's logs."""
    names = {"loss": "loss", "accuracy": "accuracy", "val_loss": "test_loss", "val_accuracy": "test_accuracy"}
    entry = {ours: float(logs[theirs]) for theirs, ours in names.items()}
    return {"epoch": epoch + 1, **entry, "test_error": 1 - entry["test_accuracy"], "seconds": logs["seconds"]}


def report(run):
    """Write everything but the checkpoint into the output folder."""
    import speed_limits_report as figures
    from speed_limits_model import RECEPTIVE_FIELD

    options, out = run.options, run.options.out
    run.classifier.model.save_weights(out / "model.weights.h5")
    figures.curves(run.history, out / "curves.png")
    rows = run.test.some_of_each(8)
    images = np.stack([run.test.read(i) for i in rows])
    look = run.classifier.look(images, (options.seed, 0))
    figures.overlay(
        images,
        run.test.classes[rows],
        look,
        RECEPTIVE_FIELD,
        run.low_shape,
        options.patch_size,
        out / "overlay.png",
    )
    results = {
        "options": vars(options),
        "test_accuracy": run.history[-1]["test_accuracy"],
        "images": {
            split: dict(zip(CLASSES, map(int, data.counts), strict=True))
            for split, data in (("train", run.train), ("test", run.test))
        },
        "history": run.history,
    }
    (out / "results.json").write_text(json.dumps(results, indent=2, default=str) + "\n")
    print(f"\ntest accuracy {results['test_accuracy']:.3f}; figures, weights and numbers are in {out}/")


# ----------------------------------------------------------------------------------------------------------------- main


def start(argv):
    """The `Run` that the command line asks for, with its output folder; bad input is an `OptionError`."""
    options, checkpoint = read_options(argv)
    keras_module("speed_limits_model")
    make_folder(options.out)
    run = Run(options, checkpoint)
    done = len(run.history)
    if done:
        print(f"going on after epoch {done}" if done < options.epochs else f"all {done} epochs are done", flush=True)
    else:
        print(f"{len(run.train)} training and {len(run.test)} test images of {run.train.shape} pixels", flush=True)
    return run


def work(run):
    run.fit()
    report(run)


def main(argv=None):
    return exit_code("speed_limits.py", start, work, argv)


if __name__ == "__main__":
    sys.exit(main())
