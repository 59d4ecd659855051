"""The operations on a GPU, beside what one would write in PyTorch, and beside the memory's speed

    python benchmarks/cuda_peers.py [--turns 15] [--out benchmarks/results]

What is measured twice: as called from Python, call after call (the time between two CUDA events, over the calls between
them), and replayed as a CUDA graph, which is the time of the device alone (torch.multinomial waits for the device, so
that no graph can record it). Inputs change from call to call, and together are more than the cache holds. Floors move
the bytes that any method has to move. The cost of a call is that of the host alone: many calls of tiny tensors, without
waiting, over their number.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import timing
import torch
from expectation_peers import check as check_estimates
from torch_estimators import PEERS

import ats_core.torch as ats

Method = Callable[[int], Any]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU for --smoke only
INPUTS = 8  # in turn
AT_LEAST = 5.0  # milliseconds between two events
MEAN, STD = 127.5, 64.0
CALLED, GRAPH = "as called", "CUDA graph"
WAITS = ("torch.multinomial",)


# ---- the clock ----


def between_events(work: Callable[[], object]) -> float:
    """Milliseconds."""
    if DEVICE == "cpu":
        start = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - start)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def repeat(method: Method, calls: int) -> Callable[[], None]:
    def work() -> None:
        for number in range(calls):
            method(number)

    return work


def record(method: Method) -> Callable[[], None]:
    """A CUDA graph of a call for each of the inputs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for number in range(INPUTS):
            method(number)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(INPUTS):
            method(number)
    return graph.replay


def take_turns(works: dict[str, tuple[Callable[[], object], int]], turns: int) -> dict[str, float]:
    """Median milliseconds of a call of each method, for which so many are made at once."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns + 1):
        for name, (work, calls) in works.items():
            times[name].append(between_events(work) / calls)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def compare(
    group: str, case: str, methods: dict[str, Method], turns: int, read: int = 0, written: int = 0
) -> Iterator[timing.Record]:
    """Rows of the table `group`. The first method is ours. `read` and `written`: bytes of a call."""
    if read or written:
        size = max((read + written) // 2, 1)
        pools = [torch.zeros(size, dtype=torch.uint8, device=DEVICE) for _ in range(3)]
        methods = {**methods, "copy of as many bytes" + timing.FLOOR: lambda n: pools[n % 2 + 1].copy_(pools[0])}
    facts = {"group": group, "case": case, "bytes": read + written}
    works = {}
    for name, method in methods.items():
        repeat(method, 3)()
        once = between_events(repeat(method, 3)) / 3
        calls = max(1, min(50, round(AT_LEAST / max(once, 1e-3))))
        works[name] = (repeat(method, calls), calls)
    yield {**facts, "how": CALLED, "milliseconds": take_turns(works, turns)}
    if DEVICE == "cpu":
        return
    graphs = {}
    for name, method in methods.items():
        if name in WAITS:
            continue
        try:
            graphs[name] = (record(method), INPUTS)
        except RuntimeError as error:
            yield {"note": f"{name} ({case}) cannot be recorded in a CUDA graph: {str(error).splitlines()[0]}"}
            torch.cuda.synchronize()
    if next(iter(methods)) in graphs:
        yield {**facts, "how": GRAPH, "milliseconds": take_turns(graphs, turns)}
    graphs.clear()
    torch.cuda.empty_cache()


# ---- what is compared ----


def byte_patches(turns: int, smoke: bool) -> Iterator[timing.Record]:
    side, samples, patch, channels = (64, 3, 9, 3) if smoke else (4096, 16, 224, 3)
    free = torch.cuda.mem_get_info()[0] if DEVICE == "cuda" else 2**30
    batch = 4 if smoke else int(max(1, min(128, 0.3 * free // (side * side * channels))))
    images = torch.randint(256, (batch, side, side, channels), dtype=torch.uint8, device=DEVICE)
    rows = torch.arange(batch, device=DEVICE)[:, None, None, None]
    step = torch.arange(patch, device=DEVICE)
    places = torch.randint(side - patch, (INPUTS, batch, samples, 2), device=DEVICE)
    on_host = places.tolist()

    def indexing(number: int) -> torch.Tensor:
        y, x = (places[number % INPUTS][:, :, axis, None] + step for axis in (0, 1))
        return ((images[rows, y[..., None], x[:, :, None]].float() - MEAN) / STD).bfloat16()

    def loop(number: int) -> torch.Tensor:
        cuts = [
            images[b, y : y + patch, x : x + patch]
            for b, origins in enumerate(on_host[number % INPUTS])
            for y, x in origins
        ]
        return ((torch.stack(cuts).float() - MEAN) / STD).bfloat16().unflatten(0, (batch, samples))

    def ours(number: int) -> torch.Tensor:
        options = {"mean": MEAN, "std": STD, "dtype": torch.bfloat16, "data_format": "channels_last"}
        return ats.extract_patches(images, places[number % INPUTS], patch, **options)

    methods = {"ats_core.torch.extract_patches": ours, "advanced indexing": indexing, "loop of slices": loop}
    check_same(methods)
    elements = batch * samples * patch * patch * channels
    case = f"{batch} uint8 images {side} x {side} x {channels}, {samples} patches {patch} x {patch}, to bfloat16"
    yield from compare("Patches, NHWC", case, methods, turns, elements, 2 * elements)


def float_patches(turns: int, smoke: bool) -> Iterator[timing.Record]:
    batch, samples, channels, side, patch = (4, 3, 3, 64, 9) if smoke else (128, 64, 3, 1500, 50)
    images = torch.rand(batch, channels, side, side, device=DEVICE)
    rows = torch.arange(batch, device=DEVICE)[:, None, None, None]
    step = torch.arange(patch, device=DEVICE)
    places = torch.randint(side - patch, (INPUTS, batch, samples, 2), device=DEVICE)

    def indexing(number: int) -> torch.Tensor:
        y, x = (places[number % INPUTS][:, :, axis, None] + step for axis in (0, 1))
        return images[rows, :, y[..., None], x[:, :, None]].permute(0, 1, 4, 2, 3)

    def unfold(number: int) -> torch.Tensor:
        y, x = places[number % INPUTS].unbind(2)
        return images.unfold(2, patch, 1).unfold(3, patch, 1)[rows[..., 0, 0], :, y, x]

    methods: dict[str, Method] = {
        "ats_core.torch.extract_patches": lambda n: ats.extract_patches(images, places[n % INPUTS], patch),
        "advanced indexing": indexing,
        "unfold + indexing": unfold,
    }
    try:
        from patches_peers import roi_align

        methods["torchvision.ops.roi_align"] = roi_align(images, lambda n: places[n % INPUTS], patch)
        methods["torchvision.ops.roi_align"](0)
    except (ImportError, RuntimeError):
        methods.pop("torchvision.ops.roi_align", None)
        yield {"note": "torchvision.ops.roi_align is not in the table: no torchvision for this PyTorch is installed."}
    check_same(methods)
    size = 4 * batch * samples * channels * patch * patch
    case = f"{batch} float32 images {channels} x {side} x {side}, {samples} patches {patch} x {patch}"
    yield from compare("Patches, NCHW", case, methods, turns, size, size)


def check_same(methods: dict[str, Method]) -> None:
    expected = next(iter(methods.values()))(0)
    for name, method in methods.items():
        torch.testing.assert_close(
            method(0), expected, rtol=1e-2, atol=1e-2, msg=lambda text, name=name: f"{name}: {text}"
        )


def samples(turns: int, smoke: bool) -> Iterator[timing.Record]:
    sizes = [(3, 50, 4), (1, 1000, 5)] if smoke else [(128, 32_400, 10), (128, 32_400, 100), (1, 100_000_000, 100)]
    for batch, cells, n in sizes:
        inputs = INPUTS if batch * cells * 4 * INPUTS < 2**32 else 1  # the last is larger than any cache by itself
        weights = [torch.rand(batch, cells, device=DEVICE) for _ in range(inputs)]
        rng = torch.tensor([1, 2], device=DEVICE)

        def at(number: int, weights=weights) -> torch.Tensor:
            return weights[number % len(weights)]

        def race(number: int, at=at, n=n) -> torch.Tensor:
            times = torch.empty_like(at(0)).exponential_().div_(at(number))
            return torch.topk(times, n, 1, largest=False).indices

        methods: dict[str, Method] = {
            "ats_core.torch.sample": lambda number, at=at, n=n, rng=rng: ats.sample(at(number), n, rng=rng).indices,
            "torch.multinomial": lambda number, at=at, n=n: torch.multinomial(at(number), n),
            "exponential race + topk": race,
            "sum(1)" + timing.FLOOR: lambda number, at=at: at(number).sum(1),
            "max(1)" + timing.FLOOR: lambda number, at=at: at(number).amax(1),
        }
        if cells > 2**24:
            del methods["torch.multinomial"]
            yield {"note": "torch.multinomial takes at most 2^24 categories."}
        for name in list(methods)[:-2]:
            for indices in methods[name](0):
                assert len(indices.unique()) == n and 0 <= indices.min() and indices.max() < cells, name
        case = f"{batch} x {cells:,} float32, N = {n}"
        yield from compare("Sampling without replacement", case, methods, turns, 4 * batch * cells)
        del weights, methods, at, race


def estimates(turns: int, smoke: bool) -> Iterator[timing.Record]:
    for batch, n, channels in [(4, 5, 8)] if smoke else [(128, 10, 512), (128, 64, 4096)]:
        draws = ats.sample(torch.rand(batch, 20 * n, device=DEVICE), n, rng=0)
        features = torch.randn(batch, n, channels, device=DEVICE).requires_grad_()
        attention = draws.attention.detach().requires_grad_()
        gradient = torch.randn(batch, channels, device=DEVICE)

        def step(
            estimate: Callable[..., torch.Tensor],
            features=features,
            attention=attention,
            gradient=gradient,
            threshold=draws.threshold,
        ) -> Method:
            def both(_: int) -> list[torch.Tensor]:
                expected = estimate(features, attention, threshold)
                return [expected.detach(), *torch.autograd.grad(expected, (features, attention), gradient)]

            return both

        for estimator, peer in PEERS.items():

            def ours(features, attention, threshold, estimator=estimator):
                return ats.expectation(features, attention, estimator=estimator, threshold=threshold)

            methods = {"ats_core.torch.expectation": step(ours), "eager PyTorch": step(peer)}
            check_estimates(methods)
            case = f"{estimator}, B = {batch}, N = {n}, C = {channels}"
            size = 4 * batch * n * channels  # features twice, their gradient once
            yield from compare("Expectation, forward and backward", case, methods, turns, 2 * size, size)


def host_overhead(rounds: int, calls: int) -> dict[str, float]:
    """Median microseconds of the host for a call."""
    attention = torch.rand(1, 8, 8, device=DEVICE) + 0.1
    image, features = torch.rand(1, 3, 64, 64, device=DEVICE), torch.randn(1, 4, 16, device=DEVICE)
    rng = torch.tensor([1, 2], device=DEVICE)
    draws = ats.sample(attention, 4, rng=1)
    origins = ats.patch_origins(draws.indices, (8, 8), (64, 64), 8)
    leaf, flat = features.clone().requires_grad_(), attention.flatten(1)
    grad = torch.ones(1, 16, device=DEVICE)
    methods: dict[str, Callable[[], object]] = {
        "torch.topk": lambda: torch.topk(flat, 4),
        "torch.multinomial": lambda: torch.multinomial(flat, 4),
        "sample, rng of numbers": lambda: ats.sample(attention, 4, rng=(1, 2)),
        "sample, rng on the device": lambda: ats.sample(attention, 4, rng=rng),
        "sample, rng=None": lambda: ats.sample(attention, 4),
        "topk": lambda: ats.topk(attention, 4),
        "patch_origins": lambda: ats.patch_origins(draws.indices, (8, 8), (64, 64), 8),
        "extract_patches": lambda: ats.extract_patches(image, origins, 8),
        "expectation": lambda: ats.expectation(features, draws.attention),
        "expectation, forward and backward": lambda: torch.autograd.grad(
            ats.expectation(leaf, draws.attention), leaf, grad
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds + 1):
        for name, method in methods.items():
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            for _ in range(5):
                method()
            start = time.perf_counter()
            for _ in range(calls):
                method()
            times[name].append(1e6 * (time.perf_counter() - start) / calls)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


# ---- tables ----


def tables(records: list[timing.Record]) -> list[str]:
    parts = []
    for group in dict.fromkeys(record["group"] for record in records):
        members = [record for record in records if record["group"] == group]
        methods = list(dict.fromkeys(name for record in members for name in record["milliseconds"]))
        rows = []
        for member in members:
            times, ours = member["milliseconds"], next(iter(member["milliseconds"].values()))
            row = [member["case"], member["how"]]
            for name in methods:
                ratio = f" ({timing.number(times[name] / ours)} x)" if name in times and name != methods[0] else ""
                row.append(timing.number(times[name]) + ratio if name in times else "")
            best = timing.best_peer(times)
            row.append(f"{timing.number(times[best] / ours)} x" if best else "")
            rows.append([*row, timing.number(1e-6 * member["bytes"] / ours) if member["bytes"] else ""])
        columns = ["case", "how", *methods, "faster than the best peer", "ours, GB/s"]
        parts.append(f"**{group}**\n\n" + timing.table(columns, rows))
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=timing.whole(1, 10_000), default=timing.TURNS, metavar="N")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU too: tells only that it works")
    parser.add_argument("--out", type=timing.folder, help="folder for the tables and the numbers")
    args = parser.parse_args()
    if DEVICE == "cpu" and not args.smoke:
        parser.error("torch.cuda.is_available() is false")
    torch.manual_seed(0)
    records, notes = [], []
    for measure in (byte_patches, float_patches, samples, estimates):
        try:
            for found in measure(args.turns, args.smoke):
                if "note" in found:
                    notes += [found["note"]] * (found["note"] not in notes)
                    continue
                ours = next(iter(found["milliseconds"].values()))
                found["ratios"] = {name: x / ours for name, x in list(found["milliseconds"].items())[1:]}
                records.append(found)
                print(found["case"], found["how"], found["milliseconds"], flush=True)
        except (RuntimeError, AssertionError) as error:  # the others are worth having
            notes.append(f"{measure.__name__} ended early: {type(error).__name__}: {str(error).splitlines()[0]}")
            print(notes[-1], flush=True)
    rounds, calls = (2, 2) if args.smoke else (51, 200)
    try:
        overhead = host_overhead(rounds, calls)
    except RuntimeError as error:
        overhead = {}
        notes.append(f"the cost of a call: {str(error).splitlines()[0]}")
    facts, title = {**timing.gpu(), **timing.machine()}, __doc__.splitlines()[0]
    how = (
        f"`python benchmarks/cuda_peers.py`: milliseconds, medians of {args.turns} turns; in brackets, times as long as "
        "ours, the first column."
    )
    text = [f"# {title}", how, timing.describe(facts), *notes, *tables(records)]
    if overhead:
        rows = [[name, timing.number(x), f"{x / overhead['torch.topk']:.2f}"] for name, x in overhead.items()]
        text.append(f"**The host's part of a call**, medians of {rounds} rounds of {calls} calls")
        text.append(timing.table(["call", "microseconds", "times torch.topk"], rows))
    print("\n\n".join(text))
    if args.out:
        results = {"title": title, "turns": args.turns, "machine": facts, "notes": notes, "results": records}
        timing.write(args.out, "cuda_peers", {**results, "host_microseconds": overhead}, "\n\n".join(text))
    raise SystemExit(any("ended early" in note for note in notes) or not overhead)


if __name__ == "__main__":
    main()
