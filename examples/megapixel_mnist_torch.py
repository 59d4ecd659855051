"""The Megapixel-MNIST classifier in PyTorch: the networks, and what the training loop asks of a backend."""

from argparse import Namespace

import megapixel_mnist_paper as paper
import torch
from megapixel_mnist_recipe import (
    CLASSES,
    FEATURE_LAYERS,
    FEATURE_NORM,
    FEATURES,
    PAPER_WARMUP,
    UNIFORM_SHARE,
    WIDTH,
    Look,
    warmup_and_cosine,
)
from torch import nn
from torch.nn import functional as F
from torch_checkpoint import read_checkpoint, save, write_checkpoint

from ats_core.torch import AttentionSampling, MultinomialEntropy, SampleSoftmax

__all__ = ["Backend", "read_checkpoint", "write_checkpoint"]


class AttentionNetwork(nn.Sequential):
    """x_low (B, 1, h, w) in [0, 1] -> attention (B, h, w), positive, summing to 1 over an image."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, 1, 1),
            SampleSoftmax(smooth=UNIFORM_SHARE),
        )


class FeatureNetwork(nn.Module):
    """Patches (N, 1, p, p) uint8 -> features (N, 64), all of length `FEATURE_NORM`.

    Convolutions only, so that `dense` can run the same network over an image of any size.
    """

    def __init__(self, patch_size):
        super().__init__()
        layers = []
        side, channels = patch_size, 1
        for width, kernel in FEATURE_LAYERS:
            layers += [nn.Conv2d(channels, width, kernel, 2, kernel // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            side, channels = (side + 1) // 2, width
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, FEATURES, side))

    def dense(self, images):
        """Images (N, 1, H, W) uint8 -> features (N, 64, h, w), one for every patch at a step of 8 pixels."""
        return FEATURE_NORM * F.normalize(self.layers(images.float() / 128), dim=1)

    def forward(self, patches):
        return self.dense(patches).flatten(1)


class Classifier(nn.Module):
    """Attention sampling, then a linear layer: (x_low, x_high) -> logits (B, 10)."""

    def __init__(self, options):
        super().__init__()
        self.ats = AttentionSampling(
            AttentionNetwork(),
            FeatureNetwork(options.patch_size),
            options.patch_size,
            options.n_patches,
            estimator=options.estimator,
            replace=options.estimator == "iid",
            attention_regularizer=MultinomialEntropy(options.entropy) if options.entropy else None,
        )
        self.head = nn.Linear(FEATURES, CLASSES)
        # start from "every class alike": with features this long, random logits would be confidently wrong
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def regularization(self):
        return self.ats.regularization

    def forward(self, x_low, x_high, rng=None):
        return self.head(self.ats(x_low, x_high, rng=rng).features)

    def whole_image(self, x_low, x_high):
        """What attention sampling saves: the same feature network over all of x_high, averaged, classified."""
        return self.head(self.ats.feature.dense(x_high).mean(dim=(2, 3)))


class Backend:
    """What the training loop needs of a framework. Takes NumPy batches; `rng` is (seed, number of the first image).

    `options` are those of the command line; `steps` is the length of the whole training, for the learning rate.
    """

    def __init__(self, options, steps):
        torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)
        self.options = options
        warmup = None
        if options.paper:
            warmup = PAPER_WARMUP
            self.model = paper.Classifier(options)
            self.optimizer = paper.optimizer(self.model, options.lr)
        else:
            self.model = Classifier(options)
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=options.lr)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warmup_and_cosine(step, steps, warmup)
        )

    def draw(self, n_patches):
        """From now on so many patches an image, if the model draws any."""
        if hasattr(self.model, "ats"):
            self.model.ats.sampler.n_patches = n_patches

    def train_step(self, x_low, x_high, labels, rng):
        """One optimiser step on a batch; returns the mean cross-entropy."""
        self.model.train()
        x_low, x_high, labels = map(torch.from_numpy, (x_low, x_high, labels))
        loss = F.cross_entropy(self.model(x_low, x_high, rng), labels)
        self.optimizer.zero_grad()
        (loss + self.model.regularization).backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    @torch.no_grad()
    def predict(self, x_low, x_high, rng):
        """Logits (B, 10) of a batch."""
        self.model.eval()
        return self.model(torch.from_numpy(x_low), torch.from_numpy(x_high), rng).numpy()

    @torch.no_grad()
    def look(self, x_low, x_high, rng):
        """The attention, the patches and the predictions of `predict` with the same `rng`, as a `Look`."""
        self.model.eval()
        x_low, x_high = torch.from_numpy(x_low), torch.from_numpy(x_high)
        attention = self.model.ats.attention(x_low)
        drawn = self.model.ats.sampler(attention, x_high, rng=rng, low_shape=x_low.shape[2:])
        predictions = self.model(x_low, x_high, rng).argmax(1)
        arrays = attention, drawn.patches.squeeze(2), drawn.origins, drawn.attention, predictions
        return Look(*(array.numpy() for array in arrays))

    def state(self):
        """What a resumed training needs. No random state: every draw follows from the seed and the image's number."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def restore(self, state):
        """Continue from what `state` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])

    def save_weights(self, path):
        save(self.model.state_dict(), path)

    def costs(self, variant, x_low, x_high, labels):
        """(training step, inference) on one batch, as functions without arguments.

        `variant` is "attention sampling" or "whole image", see `Classifier`; with --paper a model's name.
        """
        model, optimizer = self.model, self.optimizer
        if self.options.paper:
            forward = model = paper.Classifier(Namespace(**{**vars(self.options), "model": variant}))
            optimizer = paper.optimizer(model, self.options.lr)
        else:
            forward = {"attention sampling": model, "whole image": model.whole_image}[variant]
        x_low, x_high, labels = map(torch.from_numpy, (x_low, x_high, labels))

        def train():
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(forward(x_low, x_high), labels).backward()
            optimizer.step()

        def infer():
            model.eval()
            with torch.inference_mode():
                forward(x_low, x_high)

        return train, infer
