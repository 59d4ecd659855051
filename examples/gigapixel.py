"""Gigapixel slides: find which of two kinds of lesions a slide has, trained from the labels of crops alone.

    python gigapixel.py --out demo-gigapixel-output        # six slides of 40,000 x 40,000, some minutes, 1 GB on disk

Slides of made-up tissue are written first, as pyramids of JPEG tiles. Lesions are some hundred pixels wide; seen from
afar both kinds are the same dark spots. A model is trained on crops of 5,120 x 5,120 of four slides, tested on crops of
another, and looks at a last one as a whole. Of all of them only thumbnails and sampled patches are ever read. Its
attention starts from how deeply a place is stained, as both kinds and much else are; the rest it learns from the labels.

Ctrl-C stops it; the same command with --resume goes on after the last whole slide and epoch. The output folder then
holds slides-*/, model.pt (for `ats-core attend SLIDE --model model.pt --out F`), unseen/index.html (the page about the slide
that was looked at as a whole), overview.jpg, results.json, and a checkpoint for --resume.
"""

import json
import math
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from command_line import OptionError, Parser, check_ranges, exit_code, make_folder, take_stored
from tqdm import tqdm

# Before PyTorch is loaded: idle OpenMP threads that spin slow everything down on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

AT_LEAST = {
    "size": 1024,
    "crop": 512,
    "downsample": 8,
    "patch_size": 32,
    **{name: 1 for name in ("slides", "n_train", "n_test", "n_patches", "epochs", "batch_size", "threads")},
}
AT_MOST = {  # far beyond what is useful
    "size": 200_000,
    "crop": 100_000,
    "downsample": 64,
    "patch_size": 1024,
    "slides": 1000,
    "n_train": 1_000_000,
    "n_test": 1_000_000,
    "n_patches": 10_000,
    "epochs": 10_000,
    "batch_size": 1000,
    "threads": 256,
    "lr": 1.0,
    "seed": 2**62,
}
NOT_TRAINING = {"out", "resume", "threads"}  # options that a resumed run may change
CHECKPOINT, UNSEEN = "checkpoint.pt", "unseen"
TEST_STREAM = 1 << 40  # first random stream of the test crops; training uses those from 0 on


# -------------------------------------------------------------------------------------------------------------- options


def parser(suppress_defaults=False):
    """The command line; with `suppress_defaults` the result holds only what was typed."""
    p = Parser(__doc__, suppress_defaults)
    add = p.add
    add("--out", Path("demo-gigapixel-output"), "folder for everything that is written", metavar="FOLDER")
    add("--resume", False, "go on after the last whole epoch of the run in --out", action="store_true")
    add("--size", 40_000, "pixels along the side of a slide, a multiple of 64")
    add("--crop", 5_120, "pixels along the side of a crop, a multiple of 64")
    add("--slides", 4, "slides that training crops are cut from; there are two more")
    add("--n-train", 256, "training crops")
    add("--n-test", 64, "test crops")
    add("--downsample", 32, "the attention network sees a slide reduced by this factor", choices=[8, 16, 32, 64])
    add("--patch-size", 128, "pixels along the side of a patch")
    add("--n-patches", 24, "patches sampled from a crop or slide")
    add("--epochs", 5, "passes over the training crops")
    add("--batch-size", 8, "crops per optimiser step")
    add("--lr", 3e-3, "highest learning rate of Adam")
    add("--seed", 0, "decides slides, crops, initial weights and every sample")
    add("--threads", 2, "CPU threads")
    return p


def read_options(argv):
    """Checked options, and the checkpoint to resume from or None."""
    options = parser().parse_args(argv)
    path, checkpoint = options.out / CHECKPOINT, None
    if path.is_file():
        from torch_checkpoint import read_checkpoint

        checkpoint = read_checkpoint(path)
        stored = checkpoint["options"]
        if stored.keys() != vars(options).keys() - NOT_TRAINING:
            raise OptionError(f"{path} is not a checkpoint of this program")
        if not options.resume:
            raise OptionError(
                f"--out {options.out} holds a run of {len(checkpoint['history'])} epochs: "
                "add --resume to go on, or choose another --out"
            )
        take_stored(options, stored, vars(parser(suppress_defaults=True).parse_args(argv)))
    check_options(options)
    unseen = options.out / UNSEEN
    if unseen.exists() and not (unseen / "prediction.json").exists():
        raise OptionError(f"--out {options.out} has a folder {UNSEEN} of something else: choose another --out")
    return options, checkpoint


def check_options(options):
    """Raise `OptionError` for what cannot work, before any work is done."""
    check_ranges(options, AT_LEAST, AT_MOST)
    if options.lr == 0:
        raise OptionError("--lr must be positive, got 0")
    for name in ("size", "crop"):
        if getattr(options, name) % 64:
            raise OptionError(f"--{name} must be a multiple of 64, got {getattr(options, name)}")
    if options.size < 3 * options.crop:
        raise OptionError(f"--crop must be at most a third of --size {options.size}, got {options.crop}")
    if options.patch_size > options.crop:
        raise OptionError(f"--patch-size must be at most --crop {options.crop}, got {options.patch_size}")
    cells = (options.crop // options.downsample // 2) ** 2
    if options.n_patches > cells:
        raise OptionError(f"--n-patches {options.n_patches} is more than the {cells} cells of the attention on a crop")


# --------------------------------------------------------------------------------------------------------------- slides


class Slides:
    """What is on the slides, and where their files are: `training`, one for `test`, and one `unseen` with one kind."""

    def __init__(self, options):
        from gigapixel_data import make_plan

        self.seed, self.threads = options.seed, options.threads
        names = [*(f"training-{number}" for number in range(options.slides)), "test", "unseen"]
        # With their number: the last two are planned after as many others.
        folder = options.out / f"slides-{options.size}-{options.crop}-{options.slides}-{options.seed}"
        self.paths = [folder / f"{name}.ome.tif" for name in names]
        kinds = [None] * (options.slides + 1) + [options.seed % 2]
        self.plans = [make_plan(options.size, options.crop, options.seed, *item) for item in enumerate(kinds)]

    def write(self, no_bar):
        """Write those that are not there."""
        from gigapixel_data import TILE, lesion_textures, tissues
        from gigapixel_slides import write_slide

        missing = [item for item in zip(self.paths, self.plans, strict=True) if not item[0].exists()]
        if not missing:
            return
        self.paths[0].parent.mkdir(parents=True, exist_ok=True)
        textures, lesions = tissues(self.seed), lesion_textures(self.seed)
        for path, plan in missing:
            start = time.perf_counter()
            rows = -(-plan.size // TILE)
            with tqdm(total=rows, desc=path.name, unit="row", leave=False, disable=no_bar) as bar:
                write_slide(path, plan, textures, lesions, self.threads, bar.update)
            size, seconds = path.stat().st_size / 1e6, time.perf_counter() - start
            print(f"{path}: {plan.size:,} x {plan.size:,}, {size:.0f} MB, {seconds:.0f} s", flush=True)


# ------------------------------------------------------------------------------------------------------------- training


class Run:
    """One training, from the options of the command line; `bar` shows progress bars on a terminal."""

    def __init__(self, options, checkpoint=None, bar=True):
        from gigapixel_model import Backend

        self.options = options
        self.no_bar = None if bar else True  # None: only on a terminal, not in a log file
        self.slides = Slides(options)
        self.batches = -(-options.n_train // options.batch_size)
        self.backend = Backend(options, steps=options.epochs * self.batches)
        self.history = []  # one dictionary per epoch
        self.train = self.test = None
        if checkpoint is not None:
            try:
                self.backend.restore(checkpoint["backend"])
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(f"{options.out / CHECKPOINT} is not a checkpoint of this program") from error
            self.history = checkpoint["history"]

    def prepare(self):
        """Write the slides, and cut the crops."""
        options = self.options
        self.slides.write(self.no_bar)
        *training, test, _ = zip(self.slides.paths, self.slides.plans, strict=True)
        self.train = self.crops(training, options.n_train)
        self.test = self.crops([test], options.n_test)

    def crops(self, slides, count):
        """A dataset of `count` crops of slides, (path, plan) each; slides take turns, and so do their kinds."""
        from gigapixel_data import crop_places

        from ats_core.sources import open_source
        from ats_core.torch import SourceDataset

        sources, targets = [None] * count, [0] * count
        for number, (path, plan) in enumerate(slides):
            slide = open_source(path)
            mine = [2 * len(slides) * (i // 2) + 2 * number + i % 2 for i in range(count)]
            mine = [place for place in mine if place < count]
            for place, (corner, kind) in zip(mine, crop_places(plan, len(mine)), strict=True):
                sources[place], targets[place] = slide.crop(corner, plan.crop), kind
        return SourceDataset(sources, targets=targets, downsample=self.options.downsample)

    def loader(self, data, order):
        from torch.utils.data import DataLoader

        from ats_core.torch import collate_sources

        return DataLoader(data, self.options.batch_size, sampler=order, collate_fn=collate_sources)

    def fit(self, path, after_epoch=lambda run: None):
        """Train the epochs that are left; after each one write the checkpoint `path`, then call `after_epoch(self)`."""
        from torch_checkpoint import write_checkpoint

        for epoch in range(len(self.history) + 1, self.options.epochs + 1):
            entry = {"epoch": epoch, **self.train_epoch(epoch), "test_accuracy": self.evaluate()}
            history = [*self.history, entry]
            stored = {name: value for name, value in vars(self.options).items() if name not in NOT_TRAINING}
            write_checkpoint(path, {"options": stored, "history": history, "backend": self.backend.state()})
            self.history = history
            after_epoch(self)

    def train_epoch(self, epoch):
        """One pass over the training crops: {"loss", "accuracy", "train_s"}."""
        options, count = self.options, len(self.train)
        # Kinds take turns among the crops, and so they do in every batch.
        generator = np.random.default_rng((options.seed, 4, epoch))
        order = np.empty(count, int)
        for kind in range(2):
            order[kind::2] = generator.permutation(np.arange(kind, count, 2))
        start = time.perf_counter()
        total = right = done = 0
        with tqdm(
            total=count, desc=f"epoch {epoch}/{options.epochs}", unit="crop", leave=False, disable=self.no_bar
        ) as bar:
            for batch in self.loader(self.train, order.tolist()):
                loss, correct = self.backend.train_step(batch, (options.seed, (epoch - 1) * count + done))
                total, right, done = total + loss * len(batch.sources), right + correct, done + len(batch.sources)
                bar.update(len(batch.sources))
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if not math.isfinite(total):
            raise OptionError(f"the training diverged: the loss of epoch {epoch} is {total}; choose a lower --lr")
        return {"loss": total / count, "accuracy": right / count, "train_s": time.perf_counter() - start}

    def evaluate(self):
        """Accuracy over the test crops, the same crops and samples every time."""
        right = done = 0
        for batch in self.loader(self.test, range(len(self.test))):
            right += self.backend.count_right(batch, (self.options.seed, TEST_STREAM + done))
            done += len(batch.sources)
        return right / done


# --------------------------------------------------------------------------------------------------------------- report


def print_epoch(run):
    last = run.history[-1]
    print(
        f"epoch {last['epoch']:3d}/{run.options.epochs}   loss {last['loss']:.4f}   accuracy {last['accuracy']:.3f}   "
        f"test accuracy {last['test_accuracy']:.3f}   {last['train_s']:.1f} s",
        flush=True,
    )


def report(run):
    """Save the model, look at the unseen slide with it, and write the page, a picture and the numbers."""
    from gigapixel_data import KINDS
    from gigapixel_report import hits, overview
    from torch_checkpoint import save

    from ats_core.attend.outputs import write_results
    from ats_core.attend.torch_model import TorchModel
    from ats_core.attend.work import Settings, to_rng
    from ats_core.sources import open_source

    options, out = run.options, run.options.out
    path, plan = run.slides.paths[-1], run.slides.plans[-1]
    save(run.backend.model, out / "model.pt")
    settings = Settings(str(out / "model.pt"), str(out), seed=options.seed, classes=KINDS, threads=options.threads)
    start = time.perf_counter()
    with open_source(path) as source:
        attended = TorchModel.load(settings).attend(source, to_rng(options.seed, UNSEEN))
        shutil.rmtree(out / UNSEEN, ignore_errors=True)  # of another run
        summary = write_results(attended, source, out / UNSEEN, settings)
        overview(attended, source, out / "overview.jpg")
    seconds = time.perf_counter() - start
    on_lesions = hits(attended, plan.lesions)
    results = {
        "options": vars(options),
        "test_accuracy": run.history[-1]["test_accuracy"],
        "history": run.history,
        "unseen": {
            "kind": KINDS[plan.kinds[0]],
            "prediction": summary["class"],
            "patches": len(on_lesions),
            "patches_on_lesions": int(on_lesions.sum()),
        },
    }
    (out / "results.json").write_text(json.dumps(results, indent=2, default=str) + "\n")
    print(
        f"\ntest accuracy {results['test_accuracy']:.3f}\n"
        f"unseen slide of {plan.size:,} x {plan.size:,} with {KINDS[plan.kinds[0]]}: predicted {summary['class']}, "
        f"{on_lesions.sum()} of {len(on_lesions)} patches on lesions ({seconds:.0f} s)\n"
        f"the page: {out / UNSEEN / 'index.html'}\n"
        f"the model, for any slide: ats-core attend {path} --model {out / 'model.pt'} --out {out / 'attended'}"
    )


# ----------------------------------------------------------------------------------------------------------------- main


def start(argv):
    """The `Run` that the command line asks for, with its output folder; bad input is an `OptionError`."""
    options, checkpoint = read_options(argv)
    make_folder(options.out)
    run = Run(options, checkpoint)
    if checkpoint:
        left = options.epochs - len(run.history)
        print(
            f"going on after epoch {len(run.history)}" if left else f"all {options.epochs} epochs are done", flush=True
        )
    return run


def work(run):
    run.prepare()
    run.fit(run.options.out / CHECKPOINT, print_epoch)
    report(run)


def main(argv=None):
    return exit_code("gigapixel.py", start, work, argv)


if __name__ == "__main__":
    sys.exit(main())
