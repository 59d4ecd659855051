"""How soon does each estimator, and each training recipe, learn the paper's Megapixel-MNIST? And what do others cost?

    python megapixel_mnist_paper_study.py --digits-file mnist.npz --out results --work work --jobs 2
    python megapixel_mnist_paper_study.py --digits-file mnist.npz --out results --work work --runs murthy --seeds 0 1 2

The setting: the paper's networks and data (`megapixel_mnist.py --paper`) at 500 x 500, low resolution 60 x 60, without
noise, 10 patches of 50, 2,000 training images of real MNIST digits (the same in every epoch), 500 test images. Features
come from crops around the digits (`megapixel_mnist_crops`): the same numbers as from whole patches, sooner.

The numbers after each epoch go to a file a run in --out, what is needed to go on to --work: stopped, the same command goes
on. `megapixel_mnist_paper_report.py` makes the tables and figures of them.
"""

import argparse
import json
import os
import sys
import time
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import megapixel_mnist_paper as paper
import numpy as np
import torch
from megapixel_mnist import ESTIMATORS, TEST_STREAM
from megapixel_mnist_crops import Batch, crop_images, features
from megapixel_mnist_data import MegapixelMNIST, load_digits
from megapixel_mnist_recipe import MODELS, PAPER, PAPER_WARMUP, SAMPLING, warmup_and_cosine
from torch.nn import functional as F

from ats_core.torch import MultinomialEntropy, expectation, patch_origins, sample

SIZE, LOW = 500, 60
N_TRAIN, N_TEST = 2000, 500
BIASED = "reference"  # the estimator of the paper's code: its gradient is not that of the value's expectation
NOISE_DRAWS, NOISE_IMAGES = 8, 32  # for the variance of the gradient


@dataclass(frozen=True)
class Setting:
    """One way to train; the defaults are those of `megapixel_mnist.py --paper`."""

    model: str = "attention"
    estimator: str = "murthy"
    epochs: int = 14
    n_patches: int = PAPER["n_patches"]
    batch_size: int = PAPER["batch_size"]
    lr: float = PAPER["lr"]
    head_rate: float = paper.HEAD_RATE
    attention_rate: float = paper.ATTENTION_RATE
    warmup: float = PAPER_WARMUP  # share of the training, with `cosine`
    cosine: bool = True  # warm up, then fall along a cosine; otherwise the rate is constant
    clip: float = 0.0  # largest norm of the gradient; 0: any
    entropy: float = PAPER["entropy"]
    entropy_at_first: float = 0.0  # this strength at the start, falling to `entropy` within the first half, if not 0
    smooth_at_first: float = 0.0  # this share of even attention at the start, falling to the paper's, if not 0
    first_patches: int = PAPER["first_patches"]  # so many in the first epochs, if not 0
    first_epochs: int = PAPER["first_epochs"]


OURS = Setting()
# Adam, 128 images a step, rate 1e-3, gradients of norm 1 at most: the defaults of the paper's code
REFERENCE = Setting(
    estimator=BIASED,
    epochs=60,
    batch_size=128,
    lr=1e-3,
    head_rate=1,
    attention_rate=1,
    cosine=False,
    clip=1.0,
    first_patches=0,
)
# With 10 patches throughout: small batches and large steps of the head and the attention
HASTY = replace(OURS, batch_size=16, first_patches=0)
RUNS = {
    **{name: replace(OURS, estimator=name) for name in ESTIMATORS},
    "reference": REFERENCE,
    "reference_gradient": replace(OURS, estimator=BIASED),
    "reference_murthy": replace(REFERENCE, estimator="murthy"),
    "first_patches_10": replace(OURS, first_patches=0),
    "head_rate_4": replace(OURS, head_rate=4, attention_rate=1),
    "head_rate_1": replace(OURS, head_rate=1, attention_rate=1),
    "batch_128": replace(OURS, batch_size=128),
    "entropy_0.01_at_first": replace(OURS, entropy_at_first=0.01),
    "smooth_0.5_at_first": replace(OURS, smooth_at_first=0.5),
    "patches_5": replace(OURS, n_patches=5),
    "patches_20": replace(OURS, n_patches=20),
    "hasty": HASTY,
    "hasty_horvitz_thompson": replace(HASTY, estimator="horvitz_thompson"),
    "hasty_attention": replace(HASTY, attention_rate=5),
    "hasty_attention_entropy": replace(HASTY, attention_rate=5, entropy_at_first=0.01),
    "hasty_slow_head": replace(HASTY, head_rate=4, attention_rate=1, warmup=0.2),
    **{name: replace(OURS, model=name) for name in MODELS[1:]},
}


class BiasedExpectation(torch.autograd.Function):
    """The value of `des_raj`, with the gradient to the attention that the paper's code has (2019, without replacement).

    features (B, n, C), attention (B, n) -> (B, C).
    """

    @staticmethod
    def forward(ctx, features, attention):
        ctx.save_for_backward(features, attention)
        return (BiasedExpectation.weights(attention)[..., None] * features).sum(1)

    @staticmethod
    def backward(ctx, grad):
        features, attention = ctx.saved_tensors
        n = attention.shape[1]
        h = (features * grad[:, None]).sum(2)  # what a unit of each feature is worth
        left = 1 - _before(attention)
        estimates = _before(attention * h) + left * h
        d_attention = (estimates * left / attention + _before(h) - torch.arange(n) * h) / n
        return BiasedExpectation.weights(attention)[..., None] * grad[:, None], d_attention

    @staticmethod
    def weights(attention):
        n = attention.shape[1]
        return (1 - _before(attention) + attention * torch.arange(n - 1, -1, -1)) / n


def _before(values):
    """Sums of what comes before each entry of (B, n)."""
    return values.cumsum(1) - values


@lru_cache(maxsize=2)  # one process trains several runs of a seed
def load_crops(digits_file, seed, shrink):
    """The training and the test images of a seed."""
    digits, counts = load_digits("mnist", digits_file), (N_TRAIN, N_TEST)
    return tuple(
        crop_images(MegapixelMNIST(part, n, SIZE, 0, (seed, split, 0), LOW, paper=True), shrink)
        for split, (part, n) in enumerate(zip(digits, counts, strict=True))
    )


class Training:
    """One model and its optimiser on the crops; `history` has a dictionary per epoch."""

    def __init__(self, setting, seed, digits_file=None):
        self.setting, self.seed = setting, seed
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        estimator = "des_raj" if setting.estimator == BIASED else setting.estimator
        options = {"estimator": estimator, "patch_size": PAPER["patch_size"]}
        self.model = paper.Classifier(Namespace(**{**asdict(setting), **options}))
        self.model.feature.to(memory_format=torch.channels_last)
        shrink = paper.SHRINK if setting.model == "downsampled" else 1
        self.side = SIZE // shrink
        self.train, self.test = load_crops(digits_file, seed, shrink)
        rates = setting.lr, setting.head_rate, setting.attention_rate
        self.optimizer = paper.optimizer(self.model, *rates)
        steps = setting.epochs * -(-N_TRAIN // setting.batch_size)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warmup_and_cosine(step, steps, setting.warmup) if setting.cosine else 1.0
        )
        self.history = []
        self.begin(0.0)

    def begin(self, progress):
        """Set what changes in the course of a training; `progress` is the number of epochs done."""
        setting = self.setting
        early = progress < setting.first_epochs and setting.first_patches
        self.n_patches = setting.first_patches if early else setting.n_patches
        share = max(0.0, 1 - 2 * progress / setting.epochs)
        self.entropy = setting.entropy + share * max(0.0, setting.entropy_at_first - setting.entropy)
        self.smooth(max(share * setting.smooth_at_first, paper.SMOOTH))

    def smooth(self, share):
        if self.setting.model == "attention":
            self.model.ats.attention[-1].smooth = share

    def forward(self, batch, rng, estimator=None):
        """(logits (B, 10), the attention map or None)."""
        kind, model = self.setting.model, self.model
        attention = None
        if kind in SAMPLING:
            attention = model.ats.attention(batch.x_low)
            estimator = estimator or self.setting.estimator
            drawn = sample(attention, self.n_patches, replace=estimator == "iid", rng=rng)
            low = attention.shape[1:]
            origins = patch_origins(drawn.indices, low, (SIZE, SIZE), model.patch_size)
            seen = features(model.feature, batch, origins, model.patch_size)
            if estimator == BIASED:
                expected = BiasedExpectation.apply(seen, drawn.attention)
            else:
                expected = expectation(seen, drawn.attention, estimator=estimator, threshold=drawn.threshold)
        elif kind == "mil":
            origins = paper.grid_origins(SIZE, model.patch_size).expand(len(batch.labels), -1, -1)
            expected = model.pool(features(model.feature, batch, origins, model.patch_size))
        else:
            origins = torch.zeros(len(batch.labels), 1, 2, dtype=torch.int64)
            expected = features(model.feature, batch, origins, self.side)[:, 0]
        return model.head(expected), attention

    def train_epoch(self, epoch):
        setting = self.setting
        self.model.train()
        order = np.random.default_rng((self.seed, 2, epoch)).permutation(N_TRAIN)
        start, used = time.perf_counter(), time.process_time()
        total = 0.0
        for first in range(0, N_TRAIN, setting.batch_size):
            self.begin(epoch - 1 + first / N_TRAIN)
            batch = take(self.train, order[first : first + setting.batch_size])
            logits, attention = self.forward(batch, (self.seed, (epoch - 1) * N_TRAIN + first))
            loss = F.cross_entropy(logits, batch.labels)
            total += loss.item() * len(batch.labels)
            if setting.model == "attention":
                loss = loss + MultinomialEntropy(self.entropy)(attention)
            self.optimizer.zero_grad()
            loss.backward()
            if setting.clip:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), setting.clip)
            self.optimizer.step()
            self.schedule.step()
        seconds = {"train_s": time.perf_counter() - start, "cpu_s": time.process_time() - used}
        return {"epoch": epoch, "loss": total / N_TRAIN, **seconds}

    @torch.no_grad()
    def evaluate(self):
        """The test error, what share of the attention lies on digits, and its entropy in nats."""
        self.model.eval()
        self.smooth(paper.SMOOTH)
        self.n_patches = self.setting.n_patches
        wrong, on_digits, entropy = 0, 0.0, 0.0
        for first in range(0, N_TEST, 100):
            batch = take(self.test, slice(first, first + 100))
            logits, attention = self.forward(batch, (self.seed, TEST_STREAM + first))
            wrong += int((logits.argmax(1) != batch.labels).sum())
            if self.setting.model == "attention":
                on_digits += float(attention[batch.x_low[:, 0] > 0.02].sum()) / N_TEST
                entropy -= float((attention * attention.log()).sum()) / N_TEST
        looked = {"on_digits": on_digits, "entropy": entropy} if self.setting.model == "attention" else {}
        return {"test_error": wrong / N_TEST, **looked}

    def gradient_noise(self):
        """Per estimator and network: variance of the gradient over the draws of patches, relative to the squared norm
        of murthy's mean gradient, and the cosine between the two mean gradients."""
        self.model.train()
        self.n_patches = self.setting.n_patches
        batch = take(self.train, slice(0, NOISE_IMAGES))
        networks = {"attention": self.model.ats.attention, "feature": self.model.feature}
        parameters = {name: list(network.parameters()) for name, network in networks.items()}
        draws = {}
        for estimator in ("murthy", "horvitz_thompson", "des_raj", "iid", BIASED):
            for draw in range(NOISE_DRAWS):
                rng = self.seed, 2 * TEST_STREAM + draw * NOISE_IMAGES
                loss = F.cross_entropy(self.forward(batch, rng, estimator)[0], batch.labels)
                left = iter(torch.autograd.grad(loss, [p for own in parameters.values() for p in own]))
                for name, own in parameters.items():
                    flat = torch.cat([next(left).flatten() for _ in own])
                    draws.setdefault((estimator, name), []).append(flat)
        result = {}
        for (estimator, name), values in draws.items():
            mean, reference = torch.stack(values).mean(0), torch.stack(draws["murthy", name]).mean(0)
            spread = torch.stack([(value - mean).square().sum() for value in values]).sum() / (NOISE_DRAWS - 1)
            cosine = float(F.cosine_similarity(mean, reference, dim=0))
            result.setdefault(estimator, {})[name] = {
                "variance": float(spread / reference.square().sum()),
                "cosine": cosine,
            }
        return result

    def parts(self):
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}


def take(batch, rows):
    return Batch(*(tensor[rows] for tensor in batch))


def done(record, until):
    history = record["history"]
    return len(history) >= record["setting"]["epochs"] or (history and history[-1]["test_error"] <= until)


def read_record(name, seed, command):
    """{"setting", "history"} of a run as an earlier call left it, or without history."""
    path, setting = command.out / f"{name}-{seed}.json", asdict(RUNS[name])
    record = json.loads(path.read_text()) if path.is_file() else {"setting": setting, "history": []}
    if record["setting"] != setting:
        raise SystemExit(f"{path} holds a run of another setting, {record['setting']}; choose another --out")
    return record


def restore(name, seed, command, history):
    """The `Training` of a run where it is."""
    training = Training(RUNS[name], seed, command.digits_file)
    training.history = history
    if history:
        state = torch.load(command.work / f"{name}-{seed}.pt", weights_only=True)
        for part, thing in training.parts().items():
            thing.load_state_dict(state[part])
    return training


def train(name, seed, command):
    """Train one run from where it is to its end."""
    record = read_record(name, seed, command)
    if done(record, command.until):
        return
    training = restore(name, seed, command, record["history"])
    while not done(record, command.until):
        epoch = len(training.history) + 1
        entry = {**training.train_epoch(epoch), **training.evaluate()}
        training.history.append(entry)
        state = {part: thing.state_dict() for part, thing in training.parts().items()}
        torch.save(state, command.work / f"{name}-{seed}.pt")
        write(command.out / f"{name}-{seed}.json", record)
        print(f"{name} {seed}: epoch {epoch}, loss {entry['loss']:.3f}, error {entry['test_error']:.3f}", flush=True)


def take_noise(name, seed, command):
    """Add the variance of the gradient, where the run is, to its file."""
    path = command.out / "noise" / f"{name}-{seed}.json"
    path.parent.mkdir(exist_ok=True)
    taken = json.loads(path.read_text()) if path.is_file() else {}
    training = restore(name, seed, command, read_record(name, seed, command)["history"])
    write(path, {**taken, str(len(training.history)): training.gradient_noise()})


def write(path, content):
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)


def read_command(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--digits-file", help="mnist.npz, or a folder with the idx files (default: as megapixel_mnist.py)")
    p.add_argument(
        "--out", type=Path, default=Path("paper-study"), help="folder for the numbers (default: paper-study)"
    )
    p.add_argument("--work", type=Path, help="folder for what is needed to go on (default: as --out)")
    p.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--noise", action="store_true", help="only take the variance of the runs' gradients where they are")
    p.add_argument("--until", type=float, default=0.0, help="stop a run at this test error (default: train to the end)")
    p.add_argument("--jobs", type=int, default=1, help="trainings at a time, one thread each (default: 1)")
    command = p.parse_args(argv)
    command.work = command.work or command.out
    if command.jobs < 1:
        p.error(f"--jobs must be at least 1, got {command.jobs}")
    if min(command.seeds) < 0:
        p.error(f"--seeds must not be negative, got {min(command.seeds)}")
    if command.digits_file is not None and not Path(command.digits_file).exists():
        p.error(f"--digits-file {command.digits_file} does not exist")
    try:
        for folder in (command.out, command.work):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        p.error(f"--out, --work: {error}")
    return command


def main(argv=None):
    command = read_command(argv)
    # spawned, not forked: a framework's thread pool does not survive a fork
    with ProcessPoolExecutor(command.jobs, mp_context=get_context("spawn")) as pool:
        work = take_noise if command.noise else train
        futures = [pool.submit(work, name, seed, command) for seed in command.seeds for name in command.runs]
        try:
            for future in as_completed(futures):
                future.result()
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            print("\nstopped; the same command goes on from here", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
