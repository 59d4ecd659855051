"""The classifier of the gigapixel example, of PyTorch and ats_core alone: `ats-core attend` loads it anywhere."""

import torch
from torch import nn
from torch.nn import functional as F

from ats_core.torch import AttentionSampling, Normalize, SampleSoftmax

# Glass without tissue is 0 after this, and stains are negative: red, green and blue.
MEAN, STD = (243.0, 241.0, 245.0), (60.0, 90.0, 50.0)
UNIFORM_SHARE = 0.05  # of the attention: no place is ruled out


def block(channels, width, kernel, stride):
    """Without biases: of glass there are no features, however much of it a crop has."""
    return [nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False), nn.ReLU()]


def make_model(options):
    """An `AttentionSampling` that is called with uint8 thumbnails and sources; its features are the logits.

    The expectation of a linear layer's output is the layer's output of the expectation, so that the last layer may be a
    part of the feature network: a patch's features say what it speaks for, and how strongly.
    """
    attention = nn.Sequential(
        Normalize(MEAN, STD),
        nn.Conv2d(3, 16, 5, 2, 2),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 1, 1),
        SampleSoftmax(smooth=UNIFORM_SHARE),
    )
    feature = nn.Sequential(
        *block(3, 24, 7, 4),
        *block(24, 48, 3, 2),
        *block(48, 64, 3, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 2),
    )
    start_from_stain(attention)
    nn.init.zeros_(feature[-1].weight)  # no patch speaks for either kind yet
    nn.init.zeros_(feature[-1].bias)
    model = AttentionSampling(attention, feature, options.patch_size, options.n_patches, mean=MEAN, std=STD)
    model.low_downsample = options.downsample  # for ats-core attend
    return model


@torch.no_grad()
def start_from_stain(attention):
    """Let the logits be how deeply a place is stained, times 3: most of a slide is glass, which teaches nothing."""
    first, second, last = attention[1], attention[3], attention[5]
    first.weight[0], first.bias[0] = -1 / first.weight[0].numel(), 0.0
    second.weight[0], second.bias[0] = 0.0, 0.0
    second.weight[0, 0, 1, 1] = 1.0
    last.weight.zero_()
    last.weight[0, 0] = 3.0


class Backend:
    """The model and its optimiser. `steps` is the length of the whole training, for the learning rate."""

    def __init__(self, options, steps):
        torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)
        self.model = make_model(options)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=options.lr)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, options.lr, steps, pct_start=0.1)

    def train_step(self, batch, rng):
        """One optimiser step on what `collate_sources` returned; returns the mean loss and how many are right."""
        self.model.train()
        logits = self.model(batch.x_low, batch.sources, low_shapes=batch.low_shapes, rng=rng).features
        loss = F.cross_entropy(logits, batch.targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item(), int((logits.argmax(1) == batch.targets).sum())

    @torch.inference_mode()
    def count_right(self, batch, rng):
        self.model.eval()
        logits = self.model(batch.x_low, batch.sources, low_shapes=batch.low_shapes, rng=rng).features
        return int((logits.argmax(1) == batch.targets).sum())

    def state(self):
        """What a resumed training needs. No random state: every draw follows from the seed and the crop's number."""
        return {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "schedule")}

    def restore(self, state):
        """Continue from what `state` returned."""
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
