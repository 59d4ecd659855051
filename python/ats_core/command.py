"""The command ats-core: what files are (info), and what a saved model makes of them (attend)."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence

import ats_core
from ats_core.sources import Source, SourceError, open_source

DONE, SOME_FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0; 1 if a file failed; 2 if nothing could be started; 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        return status
    except KeyboardInterrupt:
        print("ats-core: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `ats-core info FILES | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (ValueError, OSError, ImportError) as error:
        print(f"ats-core: error: {error}", file=sys.stderr)
        return REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ats-core", description=__doc__)
    parser.add_argument("--version", action="version", version=f"ats-core {ats_core.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="tell format, levels and sizes of files", description=_info.__doc__)
    info.add_argument("files", nargs="+", metavar="FILE")
    info.add_argument("--json", action="store_true", help="one JSON object a line")
    info.set_defaults(run=_info)

    attend = commands.add_parser(
        "attend", help="run a saved model over files", description=_attend.__doc__, formatter_class=_Formatter
    )
    attend.add_argument("files", nargs="+", metavar="FILE", help="files, or folders of such")
    attend.add_argument(
        "--model",
        required=True,
        metavar="M",
        help="what torch.save made of a module, a .keras file, or module:function or file.py:function that makes a "
        "module. Loading a model runs code of it: take only models that you trust",
    )
    attend.add_argument("--weights", metavar="W", help="state dict of the module that a function makes")
    attend.add_argument("--out", required=True, metavar="DIR", help="folder for the results, a folder a file")
    low = attend.add_mutually_exclusive_group()
    low.add_argument(
        "--low-size", type=_positive, metavar="N", help="longest axis of what the attention network looks at, in pixels"
    )
    low.add_argument(
        "--low-downsample", type=_factor, metavar="D", help="or how many pixels of the file one of those spans"
    )
    attend.add_argument("--classes", metavar="A,B,...", help="names of the model's outputs")
    attend.add_argument("--seed", type=_seed, default=0, metavar="S", help="of the draws (default: 0)")
    attend.add_argument(
        "--view-size", type=_positive, default=4096, metavar="N", help="longest axis of the pictures (default: 4096)"
    )
    attend.add_argument("--device", default="cpu", help="of a PyTorch model (default: cpu)")
    attend.add_argument("--threads", type=_positive, metavar="N", help="of the framework (default: its own choice)")
    attend.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="this process, or Ray Data (default: local)"
    )
    attend.add_argument("--address", metavar="A", help="of a Ray cluster (default: one of its own, on this machine)")
    attend.add_argument("--workers", type=_positive, metavar="N", help="of Ray (default: as many as there is room for)")
    attend.set_defaults(run=_attend)
    return parser


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """The description as it is written."""


def _info(options: argparse.Namespace) -> int:
    """Tell which backend reads a file, its axes, and its levels. Exit status 1 if one cannot be read."""
    from ats_core.attend.outputs import describe

    status = DONE
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names can hold what the terminal's encoding has not
    for number, path in enumerate(options.files):
        try:
            with open_source(path) as source:
                if options.json:
                    print(json.dumps({"file": path, **describe(source)}))
                else:
                    print(*([""] if number else []), _describe(source), sep="\n" if number else "")
        except (SourceError, ImportError) as error:
            print(f"ats-core: error: {error}", file=sys.stderr)
            status = SOME_FAILED
    return status


def _describe(source: Source) -> str:
    spacing = ", ".join(
        f"{name} {step:.6g} {unit or ''}".rstrip()
        for name, step, unit in zip(source.axes, source.spacing, source.units, strict=True)
        if step is not None
    )
    rows = [("level", "shape", "downsample", "tile")]
    for number, level in enumerate(source.levels):
        factors = [f"{factor:.4g}" for factor in level.downsample]
        rows.append((str(number), _times(level.shape), _times(factors[:1] if len({*factors}) == 1 else factors),
                     _times(level.tile) if level.tile else "-"))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        source.name,
        f"  backend {source.backend}, axes {source.axes}, {source.channels} x {source.dtype}",
        *([f"  spacing {spacing}"] if spacing else []),
        *(
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ),
    ]
    return "\n".join(lines)


def _times(numbers: Sequence[object]) -> str:
    return " x ".join(f"{number:,}" if isinstance(number, int) else str(number) for number in numbers)


def _attend(options: argparse.Namespace) -> int:
    """Run a saved model over files, and write for each into a folder of DIR:

      prediction.json    the prediction, and each patch that was looked at: where, probability, weight
      index.html         a page that opens offline: image, attention, patches (images only)
      heatmap.png        attention over the image, with boxes
      heatmap.ome.tif    the same without boxes as a pyramid, and the attention itself (images only)
      patches.geojson    the boxes, for QuPath (images only)
      patches/           the patches as pictures (other than images: patches.npy)

    and predictions.csv for all of them. A file that cannot be read is told and left out, and the exit status is 1.
    The same command again does what is left.
    """
    from ats_core.attend.run import attend_all
    from ats_core.attend.work import Settings

    if options.address is not None and options.engine != "ray":
        raise ValueError("--address: is for --engine ray")
    if options.workers is not None and options.engine != "ray":
        raise ValueError("--workers: is for --engine ray")
    if "://" in options.out:
        raise ValueError(f"--out: must be a folder, got {options.out}")
    settings = Settings(
        model=options.model,
        out=options.out,
        weights=options.weights,
        seed=options.seed,
        size=options.low_size,
        downsample=options.low_downsample,
        view_size=options.view_size,
        classes=None if options.classes is None else tuple(name.strip() for name in options.classes.split(",")),
        device=options.device,
        threads=options.threads,
    )
    failed = attend_all(
        options.files, settings, engine=options.engine, address=options.address, workers=options.workers
    )
    return SOME_FAILED if failed else DONE


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def _factor(text: str) -> float:
    number = float(text)
    if not 1.0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def _seed(text: str) -> int:
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise argparse.ArgumentTypeError(f"must fit into 64 bits, got {text}")
    return number
