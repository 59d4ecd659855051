"""Megapixel-MNIST on several processes, with a checkpoint every few steps: PyTorch's DistributedDataParallel, torchrun.

    torchrun --nproc-per-node 2 megapixel_mnist_distributed.py --out two-processes
    python megapixel_mnist_distributed.py --out one-process    # the same patches, and the same curve but for rounding

What ends a run, kill -9 included, costs --save-every steps at most: with --resume it goes on within the epoch, on as many
processes as are there then, and on as many as before its curve is that of a run without a stop, bit for bit. How torchrun
restarts it by itself: docs/scaling.md.
"""

import json
import math
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle threads that spin slow down the other processes

import numpy as np
import torch
from command_line import OptionError, Parser, check_ranges, exit_code, make_folder, take_stored
from megapixel_mnist_data import DIGIT, MegapixelMNIST, load_digits
from megapixel_mnist_recipe import CLASSES, FEATURE_LAYERS, FEATURES, warmup_and_cosine
from megapixel_mnist_torch import AttentionNetwork, read_checkpoint, write_checkpoint
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ats_core.torch import AttentionSampling

DOWNSAMPLE = 6
TEST_STREAM = 1 << 40  # first random stream of the test images
NORM_GROUPS = 8
AT_LEAST = {name: 1 for name in ("n_train", "n_test", "n_patches", "epochs", "batch_size", "threads", "save_every")}
AT_LEAST |= {"size": 4 * DIGIT, "patch_size": 8}
AT_MOST = {
    "size": 20_000,
    "n_train": 1_000_000,
    "n_test": 1_000_000,
    "patch_size": 4 * DIGIT,
    "n_patches": 256,
    "epochs": 10_000,
    "batch_size": 10_000,
    "lr": 1.0,
    "seed": 2**31 - 1,
    "threads": 256,
    "save_every": 1_000_000,
}
NOT_TRAINING = {"out", "resume", "threads"}  # options that a resumed run may change


def parser(suppress_defaults=False):
    p = Parser(__doc__, suppress_defaults)
    p.add("--out", Path("distributed-output"), "folder for everything that is written", metavar="FOLDER")
    p.add("--resume", False, "go on with the run in --out, if there is one", action="store_true")
    p.add("--size", 200, "pixels along the side of an image")
    p.add("--n-train", 3000, "training images; what is left over of the last batch is not used")
    p.add("--n-test", 500, "test images")
    p.add("--patch-size", 32, "pixels along the side of a patch")
    p.add("--n-patches", 12, "patches sampled from an image")
    p.add("--epochs", 12, "passes over the training images")
    p.add("--batch-size", 16, "images per optimiser step, on all processes together")
    p.add("--lr", 2e-3, "highest learning rate of Adam")
    p.add("--seed", 0, "decides images, initial weights and every sample")
    p.add("--threads", 1, "CPU threads of a process")
    p.add("--save-every", 25, "steps from one checkpoint to the next")
    return p


class Classifier(nn.Module):
    """Attention sampling, then a linear layer: (x_low, x_high) -> logits (B, 10).

    With normalisation over groups of channels: over a batch it would differ with the number of processes.
    """

    def __init__(self, options):
        super().__init__()
        layers = []
        side, channels = options.patch_size, 1
        for width, kernel in FEATURE_LAYERS:
            layers += [nn.Conv2d(channels, width, kernel, 2, kernel // 2), nn.GroupNorm(NORM_GROUPS, width), nn.ReLU()]
            side, channels = (side + 1) // 2, width
        feature = nn.Sequential(*layers, nn.Conv2d(channels, FEATURES, side), nn.Flatten())
        self.ats = AttentionSampling(
            AttentionNetwork(), feature, options.patch_size, options.n_patches, std=128.0, seed=options.seed
        )
        self.head = nn.Linear(FEATURES, CLASSES)
        nn.init.zeros_(self.head.weight)

    def forward(self, x_low, x_high, rng=None):
        return self.head(self.ats(x_low, x_high, rng=rng).features)


class Run:
    """One process of a training, from the options of the command line and what is stored, or None."""

    def __init__(self, options, stored):
        self.options = options
        self.launched = "RANK" in os.environ  # by torchrun
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if options.batch_size % self.world:
            raise OptionError(f"--batch-size {options.batch_size} cannot be split among {self.world} processes")
        if options.n_train < options.batch_size:
            raise OptionError(f"--n-train {options.n_train} is less than --batch-size {options.batch_size}")
        torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)
        self.device = (
            torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else "cpu"
        )
        self.digits, test_digits = load_digits("sklearn")
        self.test = self.images(test_digits, options.n_test, (options.seed, 1))
        self.model = Classifier(options).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=options.lr)
        self.steps = options.n_train // options.batch_size
        total = options.epochs * self.steps
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: warmup_and_cosine(step, total))
        self.parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        self.history, self.done, self.loss = (
            [],
            0,
            0.0,
        )  # whole epochs; steps of the next one, and the sum of their losses
        if stored is not None:
            self.restore(stored)

    def images(self, digits, n, seed):
        return MegapixelMNIST(digits, n, self.options.size, 0, seed, round(self.options.size / DOWNSAMPLE))

    def restore(self, stored):
        try:
            for name, part in self.parts.items():
                part.load_state_dict(stored["backend"][name])
            self.history = stored["history"]
            self.done, self.loss = stored["backend"]["done"], stored["backend"]["loss"]
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{self.options.out} does not hold a checkpoint of this program") from error

    def save(self):
        if self.rank:
            return
        options = {name: value for name, value in vars(self.options).items() if name not in NOT_TRAINING}
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"done": self.done, "loss": self.loss}
        write_checkpoint(
            self.options.out / "checkpoint.pt", {"options": options, "history": self.history, "backend": state}
        )
        print(f"saved after epoch {len(self.history)} and {self.done} steps", flush=True)

    def sum(self, number):
        """Over all processes."""
        if not self.launched:
            return number
        total = torch.tensor(number, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return total.item()

    def on_device(self, *arrays):
        return [torch.from_numpy(array).to(self.device) for array in arrays]

    def fit(self):
        model = DistributedDataParallel(self.model) if self.launched else self.model
        while len(self.history) < self.options.epochs:
            start = time.perf_counter()
            self.train_epoch(model, len(self.history) + 1)
            entry = {"loss": self.loss / self.steps, "test_error": self.evaluate()}
            if not math.isfinite(self.loss):
                raise OptionError("the training diverged; choose a lower --lr")
            self.history, self.done, self.loss = [*self.history, entry], 0, 0.0
            if self.rank == 0:
                what = f"loss {entry['loss']:.4f}   test error {entry['test_error']:.4f}"
                print(f"epoch {len(self.history)}   {what}   {time.perf_counter() - start:.1f} s", flush=True)
            self.save()

    def train_epoch(self, model, epoch):
        """The steps that are left. Every process has its own rows of each batch, one after the other as their ranks."""
        model.train()
        options = self.options
        data = self.images(self.digits, options.n_train, (options.seed, 0, epoch))
        order = np.random.default_rng((options.seed, 2, epoch)).permutation(options.n_train)
        mine = order[: self.steps * options.batch_size].reshape(self.steps, self.world, -1)[:, self.rank]
        since = 0.0  # the sum of this process's losses since they were last added up
        for step in range(self.done, self.steps):
            x_low, x_high, labels = self.on_device(*data.batch(mine[step]))
            loss = F.cross_entropy(model(x_low, x_high), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            since += loss.item()
            last = step + 1 == self.steps
            if last or (step + 1) % options.save_every == 0:
                self.done, self.loss, since = step + 1, self.loss + self.sum(since) / self.world, 0.0
                if not last:
                    self.save()

    @torch.no_grad()
    def evaluate(self):
        """The test error; image i draws stream i of the test, however many processes there are."""
        self.model.eval()
        rows = np.array_split(np.arange(len(self.test)), self.world)[self.rank]
        wrong = 0
        for first in range(0, len(rows), self.options.batch_size):
            part = rows[first : first + self.options.batch_size]
            x_low, x_high, labels = self.on_device(*self.test.batch(part))
            logits = self.model(x_low, x_high, (self.options.seed, TEST_STREAM + int(part[0])))
            wrong += int((logits.argmax(1) != labels).sum())
        return self.sum(wrong) / len(self.test)


def start(argv):
    options = parser().parse_args(argv)
    path, stored = options.out / "checkpoint.pt", None
    if path.is_file():
        if not options.resume:
            raise OptionError(f"--out {options.out} holds a run: add --resume to go on, or choose another --out")
        stored = read_checkpoint(path)
        if stored["options"].keys() != vars(options).keys() - NOT_TRAINING:
            raise OptionError(f"{path} is not a checkpoint of this program")
        take_stored(options, stored["options"], vars(parser(suppress_defaults=True).parse_args(argv)))
    check_ranges(options, AT_LEAST, AT_MOST)
    make_folder(options.out)
    return Run(options, stored)


def work(run):
    if run.launched:
        if run.device != "cpu":
            torch.cuda.set_device(run.device)
        distributed.init_process_group()  # gloo for CPUs, nccl for GPUs
    try:
        run.fit()
        if run.rank == 0:
            torch.save(run.model.state_dict(), run.options.out / "weights.pt")
            results = {"options": vars(run.options), "processes": run.world, "history": run.history}
            (run.options.out / "results.json").write_text(json.dumps(results, indent=2, default=str) + "\n")
    finally:
        if run.launched:
            distributed.destroy_process_group()


def main(argv=None):
    return exit_code("megapixel_mnist_distributed.py", start, work, argv)


if __name__ == "__main__":
    sys.exit(main())
