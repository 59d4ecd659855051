"""What audio_events.py and volume_lesions.py share: the classifier and what it is compared with, training, table, picture."""

import json
import os
import time
from pathlib import Path

os.environ.setdefault(
    "OMP_WAIT_POLICY", "passive"
)  # before PyTorch is loaded: its idle threads slow down a shared machine

import numpy as np
import torch
from command_line import OptionError, Parser, check_ranges, make_folder
from megapixel_mnist_recipe import warmup_and_cosine
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from ats_core import plot
from ats_core.torch import AttentionSampling, MultinomialEntropy, SampleSoftmax

SAMPLING, UNIFORM, WHOLE = VARIANTS = "attention sampling", "uniform patches", "whole signal"
FEATURES = 32  # length of a patch's feature vector
WIDTH = 8  # channels of the attention network
ENTROPY = 0.003
AT_LEAST = {name: 1 for name in ("n_train", "n_test", "n_patches", "epochs", "batch_size", "threads")}
AT_MOST = {
    "n_train": 1_000_000,
    "n_test": 1_000_000,
    "n_patches": 256,
    "epochs": 10_000,
    "batch_size": 1000,
    "lr": 1.0,
    "threads": 256,
    "seed": 2**31 - 1,
}


class Task:
    """What an example defines. Data are x_low (B, C, *low) float32, x_high (B, 1, *high), labels (B,) int64."""

    classes = ()  # names
    channels = 1  # C; the first one shows what stands out, with mean 0 and variance 1 or so
    conv = nn.Conv1d
    patch_size = 1
    prior = 1.0  # what the attention makes of what stands out before it has learned: exp(prior * the first channel)

    def data(self, options, n, seed):
        """A data set of n examples: `batch(rows)` -> (x_low, x_high, labels)."""
        raise NotImplementedError

    def feature(self):
        """The network (N, 1, *any size) -> (N, FEATURES)."""
        raise NotImplementedError

    def picture(self, x_high, attention, origins, probabilities):
        """One example, the attention over it and the patches as boxes: an image (H, W, 3) uint8."""
        raise NotImplementedError


def parser(text, n_train, epochs, n_patches, out):
    """A command line with the options that the tasks share."""
    p = Parser(text)
    p.add("--out", Path(out), "folder for everything that is written", metavar="FOLDER")
    p.add("--n-train", n_train, "training examples")
    p.add("--n-test", 256, "test examples")
    p.add("--n-patches", n_patches, "patches sampled from an example")
    p.add("--epochs", epochs, "passes over the training examples")
    p.add("--batch-size", 16, "examples per optimiser step")
    p.add("--lr", 3e-3, "highest learning rate of Adam")
    p.add("--whole", False, "train the network on whole signals too, not only measure its time", action="store_true")
    p.add("--seed", 0, "decides examples, initial weights and every sample")
    p.add("--threads", 2, "CPU threads")
    return p


def check_options(options, at_least, at_most, cells):
    """Raise `OptionError` for what cannot work; make the output folder. `cells(options)` are those of the attention."""
    check_ranges(options, AT_LEAST | at_least, AT_MOST | at_most)
    if options.lr == 0:
        raise OptionError("--lr must be positive, got 0")
    if options.n_patches > cells(options):
        raise OptionError(f"--n-patches {options.n_patches} is more than the {cells(options)} cells of the attention")
    make_folder(options.out)


class AttentionNetwork(nn.Module):
    """x_low (B, C, *low) -> attention (B, *low).

    It begins at what stands out (`Task.prior`, which is learned): patches drawn evenly show what is looked for too seldom
    to learn from them.
    """

    def __init__(self, task):
        super().__init__()
        self.layers = nn.Sequential(
            task.conv(task.channels, WIDTH, 3, padding=1),
            nn.ReLU(),
            task.conv(WIDTH, WIDTH, 3, padding=1),
            nn.ReLU(),
            task.conv(WIDTH, 1, 1),
        )
        self.prior = nn.Parameter(torch.tensor(task.prior))
        self.softmax = SampleSoftmax(smooth=0.01)

    def forward(self, x_low):
        return self.softmax(self.layers(x_low) + self.prior * x_low[:, :1])


class Uniform(nn.Module):
    """The same attention everywhere."""

    def forward(self, x_low):
        return torch.ones_like(x_low[:, 0])


class Classifier(nn.Module):
    """(x_low, x_high) -> logits. `variant` says what the feature network looks at."""

    def __init__(self, task, options, variant):
        super().__init__()
        self.whole = variant == WHOLE
        self.ats = AttentionSampling(
            AttentionNetwork(task) if variant == SAMPLING else Uniform(),
            task.feature(),
            task.patch_size,
            options.n_patches,
            dtype=torch.float32,
            attention_regularizer=MultinomialEntropy(ENTROPY) if variant == SAMPLING else None,
            seed=options.seed,
        )
        self.head = nn.Linear(FEATURES, len(task.classes))

    def forward(self, x_low, x_high):
        return self.head(self.ats.feature(x_high.float()) if self.whole else self.ats(x_low, x_high).features)


class Run:
    """One run of a program: `rows` are those of the table, one a variant."""

    def __init__(self, task, options):
        torch.set_num_threads(options.threads)
        self.task, self.options = task, options
        self.test = task.data(options, options.n_test, (options.seed, 1))
        self.rows, self.history = [], []

    def batches(self, data, order):
        for first in range(0, len(order), self.options.batch_size):
            yield [torch.from_numpy(array) for array in data.batch(order[first : first + self.options.batch_size])]

    def work(self):
        for variant in VARIANTS:
            torch.manual_seed(self.options.seed)
            model = Classifier(self.task, self.options, variant)
            trained = variant != WHOLE or self.options.whole
            start = time.process_time()
            if trained:
                self.train(model, variant)
            seconds = time.process_time() - start
            row = {"variant": variant, "test_accuracy": self.accuracy(model) if trained else None}
            self.rows.append({**row, "training_s": seconds if trained else None, **self.times(model)})
            if variant == SAMPLING:
                self.draw(model)
        results = {"options": vars(self.options), "rows": self.rows, "history": self.history}
        (self.options.out / "results.json").write_text(json.dumps(results, indent=2, default=str) + "\n")
        text = table(self.rows)
        (self.options.out / "table.md").write_text(text)
        print(
            f"\n{text}\nchance is {1 / len(self.task.classes):.3f}; the picture and the numbers are in {self.options.out}/"
        )

    def train(self, model, variant):
        options = self.options
        optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
        steps = options.epochs * -(-options.n_train // options.batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_and_cosine(step, steps))
        for epoch in range(1, options.epochs + 1):
            data = self.task.data(options, options.n_train, (options.seed, 0, epoch))
            bar = tqdm(total=options.n_train, desc=f"{variant}, epoch {epoch}", leave=False, disable=None)
            model.train()
            total = 0.0
            for x_low, x_high, labels in self.batches(data, np.arange(options.n_train)):
                loss = F.cross_entropy(model(x_low, x_high), labels)
                optimizer.zero_grad()
                (loss + model.ats.regularization).backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(labels)
                bar.update(len(labels))
            bar.close()
            entry = {"variant": variant, "epoch": epoch, "loss": total / options.n_train}
            self.history.append({**entry, "test_accuracy": self.accuracy(model)})
            last = self.history[-1]
            print(
                f"{variant}, epoch {epoch}: loss {last['loss']:.3f}, accuracy {last['test_accuracy']:.3f}", flush=True
            )

    @torch.no_grad()
    def accuracy(self, model):
        model.eval()
        batches = self.batches(self.test, np.arange(self.options.n_test))
        return sum((model(low, high).argmax(1) == y).sum().item() for low, high, y in batches) / self.options.n_test

    def times(self, model):
        """Milliseconds of CPU time of a training step and of inference, an example."""
        x_low, x_high, labels = next(self.batches(self.test, np.arange(min(self.options.n_test, 8))))

        def step():
            model.train()
            model.zero_grad()
            F.cross_entropy(model(x_low, x_high), labels).backward()

        def infer():
            model.eval()
            with torch.inference_mode():
                model(x_low, x_high)

        return {"step_ms": least(step) * 1000 / len(labels), "inference_ms": least(infer) * 1000 / len(labels)}

    @torch.no_grad()
    def draw(self, model):
        """overlay.png: some test examples, with what their attention is and the patches that were drawn."""
        model.eval()
        x_low, x_high, labels = next(self.batches(self.test, np.arange(min(self.options.n_test, 4))))
        attention = model.ats.attention(x_low)
        drawn = model.ats.sampler(attention, x_high, low_shape=x_low.shape[2:])
        arrays = (x_high, attention, drawn.origins, drawn.attention)
        pictures = [self.task.picture(*example) for example in zip(*(array.numpy() for array in arrays), strict=True)]
        picture = plot.montage(pictures, columns=1 if pictures[0].shape[1] > 600 else 2)
        (self.options.out / "overlay.png").write_bytes(plot.to_png(picture))
        print("overlay.png shows: " + ", ".join(self.task.classes[label] for label in labels), flush=True)


def least(function, times=3):
    """CPU seconds of the cheapest of some calls, after one more."""
    function()
    taken = []
    for _ in range(times):
        start = time.process_time()
        function()
        taken.append(time.process_time() - start)
    return min(taken)


def table(rows):
    lines = [
        "| variant | test accuracy | training, CPU s | training step, CPU ms/example | inference, CPU ms/example |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        accuracy = "not trained" if row["test_accuracy"] is None else f"{row['test_accuracy']:.3f}"
        seconds = "" if row["training_s"] is None else f"{row['training_s']:.0f}"
        lines.append(
            f"| {row['variant']} | {accuracy} | {seconds} | {row['step_ms']:.1f} | {row['inference_ms']:.1f} |"
        )
    return "\n".join(lines) + "\n"
