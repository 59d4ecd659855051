"""Tables and figures of `megapixel_mnist_paper_study.py`.

    python megapixel_mnist_paper_report.py --runs results --costs costs/results.json --out results --figures docs/img

--costs is the results.json of a `megapixel_mnist.py --paper` run that measured time and memory (--cost-size).
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator
from megapixel_mnist_recipe import MODELS
from megapixel_mnist_report import cost_table

NAME = "megapixel_mnist_paper"
GOAL = 0.10  # test error whose epoch is reported
FLAT = 0.80  # test error whose epoch ends the flat start
CURVES = "murthy", "horvitz_thompson", "des_raj", "iid", "reference_gradient", "hasty", "reference"
COLOURS = dict(zip(CURVES, ("#0b6e4f", "#2f6fde", "#e09f3e", "#8f5fbf", "#c9184a", "#3fb8af", "#444444"), strict=True))
COST_SIZE = 500  # of the images whose errors are known


def read_runs(folder):
    """name -> seed -> history."""
    runs = {}
    for path in sorted(folder.glob("*.json")):
        name, _, seed = path.stem.rpartition("-")
        runs.setdefault(name, {})[int(seed)] = json.loads(path.read_text())
    return runs


def first_below(history, error):
    """The first epoch whose test error is at most `error`, or None."""
    return next((entry["epoch"] for entry in history if entry["test_error"] <= error), None)


def results_table(runs):
    """Markdown: a row per run, a number per seed; "> 14" where 14 epochs were not enough."""
    lines = [
        f"| run | seeds | epochs | until {FLAT:.2f} | until {GOAL:.2f} | test error at the end | mean | best |",
        "|---|---|---|---|---|---|---:|---:|",
    ]
    for name, seeds in runs.items():
        histories = [seeds[seed]["history"] for seed in sorted(seeds)]
        cells = [name, _join(sorted(seeds)), _join(len(history) for history in histories)]
        for error in (FLAT, GOAL):
            cells.append(_join(first_below(history, error) or f"> {len(history)}" for history in histories))
        last = [history[-1]["test_error"] for history in histories]
        best = [min(entry["test_error"] for entry in history) for history in histories]
        cells += [_join(f"{error:.3f}" for error in last), f"{statistics.mean(last):.3f}", f"{min(best):.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def noise_table(folder):
    """Markdown: variance and direction of the gradient to the attention network, where it was taken, or ""."""
    taken = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("noise/*.json"))}
    if not taken:
        return ""
    names = list(next(iter(next(iter(taken.values())).values())))
    lines = ["| run | epochs done | " + " | ".join(names) + " |", "|---|---:|" + "---|" * len(names)]
    for run, states in taken.items():
        for epochs, noise in states.items():
            numbers = [noise[name]["attention"] for name in names]
            cells = " | ".join(f"{number['variance']:.2g}; {number['cosine']:.2f}" for number in numbers)
            lines.append(f"| {run} | {epochs} | {cells} |")
    return "\n".join(lines) + "\n"


def curves(runs, path):
    """Test error over epochs: a thin line per seed, a thick one for their mean."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True, sharey=True, width_ratios=(3, 2))
    for name in (name for name in CURVES if name in runs):
        histories = [record["history"] for record in runs[name].values()]
        for axis in axes if name in ("murthy", "hasty", "reference") else axes[:1]:
            for history in histories:
                _line(axis, history, color=COLOURS[name], alpha=0.35, linewidth=1)
            shortest = min(map(len, histories))
            means = [
                {"epoch": e + 1, "test_error": statistics.mean(history[e]["test_error"] for history in histories)}
                for e in range(shortest)
            ]
            _line(axis, means, color=COLOURS[name], linewidth=2.2, label=name)
    longest = max((len(r["history"]) for name in CURVES[:-1] for r in runs.get(name, {}).values()), default=1)
    axes[0].set_xlim(0.5, longest + 0.5)
    axes[0].set_title(f"the first {longest} epochs")
    axes[1].set_title("the whole trainings")
    for axis in axes:
        axis.axhline(GOAL, color="#999999", linewidth=0.8, linestyle="--")
        axis.set(xlabel="epoch of 2,000 images", ylim=(0, 1))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9)
    axes[0].set_ylabel("test error")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(axis, history, **style):
    axis.plot([entry["epoch"] for entry in history], [entry["test_error"] for entry in history], **style)


def errors(runs):
    """model -> mean test error at the end, over the seeds that have been trained to it."""
    found = {}
    for model in MODELS:
        seeds = runs.get("murthy" if model == "attention" else model, {}).values()
        ended = [r["history"] for r in seeds if len(r["history"]) >= r["setting"]["epochs"]]
        if ended:
            found[model] = statistics.mean(history[-1]["test_error"] for history in ended)
    return found


def error_against_time(found, costs, path):
    """A point per model: test error over time per image, in training and inference."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True, sharey=True)
    for axis, key, title in zip(axes, ("train_s", "infer_s"), ("a training step", "inference"), strict=True):
        for row in costs:
            if row["size"] == COST_SIZE and row["variant"] in found:
                point = 1e3 * row[key], found[row["variant"]]
                axis.scatter(*point, s=60, color=COLOURS["murthy" if row["variant"] == "attention" else "reference"])
                axis.annotate(row["variant"], point, xytext=(0, 9), textcoords="offset points", ha="center")
        axis.set(xscale="log", xlabel=f"{title}, ms per image", ylim=(0, 1))
        axis.margins(x=0.2)
        axis.grid(alpha=0.25, which="both")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test error")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def baseline_table(found, costs):
    """Markdown: time and memory of every model, and its error where it is known."""
    lines = ["| model | test error at 500 x 500 |", "|---|---:|", *(f"| {m} | {e:.3f} |" for m, e in found.items()), ""]
    return "\n".join([*(lines if found else []), cost_table(costs)])


def _join(values):
    return ", ".join(map(str, values))


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=Path, required=True, help="the --out of the study")
    p.add_argument("--costs", type=Path, help="results.json with the costs of the models (default: no such table)")
    p.add_argument("--out", type=Path, required=True, help=f"folder for {NAME}.md")
    p.add_argument("--figures", type=Path, required=True, help=f"folder for {NAME}_curves.png and {NAME}_costs.png")
    command = p.parse_args(argv)
    try:
        runs = read_runs(command.runs)
        costs = json.loads(command.costs.read_text())["costs"] if command.costs else []
    except (OSError, ValueError, KeyError) as error:
        p.error(f"--runs, --costs: {error}")
    if not runs:
        p.error(f"--runs {command.runs} holds no results")
    for folder in (command.out, command.figures):
        folder.mkdir(parents=True, exist_ok=True)
    parts = [results_table(runs), noise_table(command.runs)]
    curves(runs, command.figures / f"{NAME}_curves.png")
    if costs:
        found = errors(runs)
        if found:
            error_against_time(found, costs, command.figures / f"{NAME}_costs.png")
        parts.append(baseline_table(found, costs))
    text = "\n".join(part for part in parts if part)
    (command.out / f"{NAME}.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
