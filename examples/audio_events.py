"""Which sound is in a long recording? It lasts a quarter of a second, as loud as the noise, among bursts that are no event.

    python audio_events.py --out audio-output

The attention network sees the loudness of the recording, 50 numbers a second; patches of the samples themselves tell a
rising tone from a falling one. Beside it: the same feature network on patches drawn evenly, and on all samples.
"""

import sys

import numpy as np
import torch
from command_line import exit_code
from patch_tasks import FEATURES, Run, Task, check_options, parser
from torch import nn

from ats_core import plot

RATE = 8000  # samples a second
EVENT = RATE // 4  # samples
STEP = RATE // 50  # samples to a number of the loudness
NOISE = 1 << 21  # samples of noise, from which pieces are taken
BURSTS = 5  # a recording
EVENT_LEVEL = 1.0  # of the event, where the noise has 1 (both are standard deviations)
N_FFT, HOP = 128, 64
TALL = 2  # rows of the picture to a frequency


TIME = np.linspace(0, 1, EVENT)
FADE = np.minimum(1, 8 * np.minimum(TIME, 1 - TIME))


def tone(frequency):
    """A sound of as many Hz (EVENT,), of mean square 1 but for fading in and out."""
    return np.sqrt(2) * FADE * np.sin(2 * np.pi * np.cumsum(frequency) / RATE)


# From a base frequency, all between that and twice that.
KINDS = {
    "rising": lambda base: tone(base * 2**TIME),
    "falling": lambda base: tone(base * 2 ** (1 - TIME)),
    "steady": lambda base: tone(base * 2 ** (0.5 + 0 * TIME)),
    "warbling": lambda base: tone(base * 2 ** (0.5 + 0.5 * np.sin(8 * np.pi * TIME))),
}


class Recordings:
    """`n` recordings, decided by `seed`; what sounds when is stored, samples are put together for a batch."""

    def __init__(self, n, samples, seed):
        rng = np.random.default_rng(seed)
        self.samples = samples
        self.noise = np.random.default_rng(seed[:2]).standard_normal(NOISE + samples, np.float32)
        self.labels = rng.integers(len(KINDS), size=n)
        self.start = rng.integers(NOISE, size=n)
        self.base = rng.uniform(500, 1500, n)
        self.at = rng.integers(samples - EVENT, size=(n, 1 + BURSTS))
        self.bursts = rng.integers(NOISE, size=(n, BURSTS))

    def batch(self, rows):
        """x_low (B, 1, T / STEP), the loudness; x_high (B, 1, T); labels (B,)."""
        x = np.stack([self.noise[start : start + self.samples] for start in self.start[rows]])
        for sound, row in zip(x, rows, strict=True):
            first, *others = self.at[row]
            sound[first : first + EVENT] += EVENT_LEVEL * list(KINDS.values())[self.labels[row]](self.base[row])
            for at, burst in zip(others, self.bursts[row], strict=True):
                sound[at : at + EVENT] += EVENT_LEVEL * FADE * self.noise[burst : burst + EVENT]
        power = np.log(np.square(x).reshape(len(rows), 1, -1, STEP).mean(-1))
        return (power - power.mean()) / power.std(), x[:, None], self.labels[rows]


class Spectrum(nn.Module):
    """Samples (N, 1, T) -> logarithm of their spectrum (N, 1, N_FFT / 2 + 1, T / HOP + 1)."""

    def forward(self, x):
        window = torch.hann_window(N_FFT)
        return torch.log1p(torch.stft(x[:, 0], N_FFT, HOP, window=window, return_complex=True).abs()[:, None])


class Audio(Task):
    classes = tuple(KINDS)
    patch_size = EVENT

    def data(self, options, n, seed):
        return Recordings(n, options.seconds * RATE, seed)

    def feature(self):
        layers = [Spectrum()]
        for inputs, outputs in ((1, 16), (16, 32), (32, FEATURES)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())

    def picture(self, x_high, attention, origins, probabilities):
        """The spectrum over time, low frequencies at the bottom, and below it those of the patches, likely ones first."""
        whole = spectrum(x_high)
        boxes = np.stack((np.zeros(len(origins), int), origins[:, 0] // HOP), 1)
        size = len(whole), EVENT // HOP
        overlay = plot.overlay(whole[..., None], attention[None], boxes, size, probabilities, size=1200)
        padded = np.pad(x_high, ((0, 0), (EVENT, EVENT)))
        patches = [spectrum(padded[:, at + EVENT : at + 2 * EVENT]).repeat(4, 1) for at in origins[:, 0]]
        sheet = plot.contact_sheet(np.stack(patches)[None, ..., None], probabilities[None], tile=140)
        return plot.montage([overlay, sheet], columns=1)


def spectrum(x):
    """Samples (1, T) -> a picture (H, W)."""
    return Spectrum()(torch.from_numpy(x)[None])[0, 0].numpy()[::-1].repeat(TALL, 0)


def start(argv):
    p = parser(__doc__, 1024, 8, 8, "audio-output")
    p.add("--seconds", 20, "of a recording")
    options = p.parse_args(argv)
    check_options(options, {"seconds": 1}, {"seconds": 600}, lambda options: options.seconds * RATE // STEP)
    return Run(Audio(), options)


def main(argv=None):
    return exit_code("audio_events.py", start, Run.work, argv)


if __name__ == "__main__":
    sys.exit(main())
