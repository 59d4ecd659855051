"""What the ranks of tests/test_scaling.py run under torchrun: programs of docs/scaling.md, whose picks are recorded.

torchrun --nproc-per-node 2 scaling_torch.py FOLDER NAME...
"""

import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.data import DataLoader, TensorDataset

from ats_core.torch import AttentionSampling, MultinomialEntropy, SamplePatches, SampleSoftmax
from scaling_page import snippet

SEED = 3  # of Keras's layer


class Classifier(nn.Module):
    """(x_low, x_high) -> logits (B, 3)."""

    def __init__(self, seed=0):
        torch.manual_seed(4)
        super().__init__()
        attention = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1), SampleSoftmax()
        )
        feature = nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten())
        entropy = MultinomialEntropy(0.01)
        self.ats = AttentionSampling(attention, feature, 8, 4, attention_regularizer=entropy, seed=seed)
        self.head = nn.Linear(8, 3)

    def forward(self, x_low, x_high):
        return self.head(self.ats(x_low, x_high).features)


def make_data(n=48):
    x_high = torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    return TensorDataset(F.avg_pool2d(x_high, 4), x_high, torch.arange(n) % 3)


def record(run):
    """Call `run()`; what every training forward pass drew (steps, B, n), and what it was drawn from."""
    indices = []

    def hook(module, inputs, output):
        if isinstance(module, SamplePatches) and module.training:
            indices.append(output.indices.clone())

    handle = register_module_forward_hook(hook)
    try:
        run()
    finally:
        handle.remove()
    return torch.stack(indices)


def draw_with_keras():
    """Cells (calls, B, n) that a layer of Keras's backend torch draws on this rank, for its half of `weights()`."""
    import ats_core.keras

    layer = ats_core.keras.SamplePatches(4, 8, seed=SEED, details=True, data_format="channels_first")
    attention = weights().chunk(2)[int(os.environ["RANK"])]
    image = torch.zeros(len(attention), 1, 64, 64)
    return torch.stack([layer([image[..., ::4, ::4], image, attention])[2] for _ in range(3)])


def weights():
    return torch.rand(8, 16, 16, generator=torch.Generator().manual_seed(6))


def main(folder, *names):
    for name in names:
        if name == "keras":
            torch.save({"picks": draw_with_keras()}, Path(folder, f"{name}-{os.environ['RANK']}.pt"))
            continue
        space = {"torch": torch, "F": F, "DataLoader": DataLoader, "model": Classifier(), "data": make_data()}
        model = space["model"]
        picks = record(lambda name=name, space=space: exec(snippet(name), space))  # noqa: S102
        torch.save({"picks": picks, "model": model.state_dict()}, Path(folder, f"{name}-{os.environ['RANK']}.pt"))
        if name == "accelerate":
            space["accelerator"].save_state(Path(folder, "state"))


if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "torch"  # before Lightning loads TensorBoard, and that Keras
    torch.set_num_threads(1)
    main(*sys.argv[1:])
