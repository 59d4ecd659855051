"""Where a training step of examples/megapixel_mnist.py spends its time (PyTorch, the setting of `make demo`)

    python benchmarks/demo_profile.py [--threads 2] [--steps 20] [--out benchmarks/results]

Prints a Markdown table of the shares of the steps' time, forward, backward and optimiser together, from torch.profiler,
which makes the short operations look longer than they are. Composing the images is not part of a step.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import timing
import torch
from torch.profiler import ProfilerActivity, profile, record_function

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import megapixel_mnist as demo

STEP = "training step"
SMOKE = ("--size=112", "--n-train=32", "--n-test=16", "--n-patches=4", "--batch-size=8")
# Part: how the names of its operations and of their autograd nodes begin. The outermost that fits counts.
PARTS = {
    "ats ops: sample": ("ats::sample", "sampleBackward"),
    "ats ops: locate": ("ats::locate",),
    "ats ops: extract_patches": ("ats::extract_patches", "extract_patchesBackward"),
    "ats ops: expectation": ("ats::expectation", "expectationBackward"),
    "convolutions": ("aten::conv2d", "ConvolutionBackward"),
    "batch normalisation": ("aten::batch_norm", "NativeBatchNormBackward"),
    "ReLU": ("aten::relu", "ReluBackward"),
    "optimiser": ("Optimizer.",),
}


def part_of(event: torch.autograd.profiler_util.FunctionEvent) -> str:
    found = "everything else"
    while event is not None:
        name = event.name.removeprefix("autograd::engine::evaluate_function: ")
        found = next((part for part, starts in PARTS.items() if name.startswith(starts)), found)
        event = event.cpu_parent
    return found


def shares(threads: int, steps: int, smoke: bool = False) -> dict[str, float]:
    """Each part's share of the time of `steps` steps."""
    options = demo.parser().parse_args(["--threads", str(threads), *(SMOKE if smoke else ())])
    run = demo.Run(options, bar=False)
    data = run.images(run.train_digits, options.n_train, "train", 1)

    def step(number: int) -> None:
        first = number * options.batch_size % (len(data) - options.batch_size)
        batch = data.batch(range(first, first + options.batch_size))
        with record_function(STEP):
            run.backend.train_step(*batch, (options.seed, first))

    for number in range(1 if smoke else 5):
        step(number)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for number in range(steps):
            step(number)
    times: Counter[str] = Counter()
    for event in profiler.events():
        top = event
        while top.cpu_parent is not None:
            top = top.cpu_parent
        if top.name == STEP:
            times[part_of(event)] += event.self_cpu_time_total
    return {part: times[part] / times.total() for part in [*PARTS, "everything else"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=timing.whole(1, 256), default=2, metavar="N", help="default: 2")
    parser.add_argument("--steps", type=timing.whole(1, 10_000), default=20, metavar="N", help="default: 20")
    parser.add_argument("--smoke", action="store_true", help="2 tiny steps: tells only that everything works")
    parser.add_argument("--out", type=timing.folder, help="folder for the table and the numbers")
    args = parser.parse_args()
    if args.smoke:
        args.steps = 2

    parts = shares(args.threads, args.steps, args.smoke)
    parts["all ats ops together"] = sum(share for part, share in parts.items() if part.startswith("ats ops"))
    facts, title = timing.machine(), __doc__.splitlines()[0]
    how = f"`python benchmarks/demo_profile.py`: {args.threads} thread{'s' * (args.threads > 1)}, {args.steps} steps."
    rows = [[part, f"{100 * share:.2f} %"] for part, share in parts.items()]
    table = timing.table(["part of a training step", "share of its time"], rows)
    text = "\n\n".join([f"# {title}", how, timing.describe(facts), table])
    print(text)
    if args.out:
        setting = {name: getattr(args, name) for name in ("threads", "steps")}
        content = {"title": title, **setting, "machine": facts, "shares": parts}
        timing.write(args.out, "demo_profile", content, text)


if __name__ == "__main__":
    main()
