"""How figures are printed."""

import statistics


def report(what, value):
    print(f"{what:<62} {value}", flush=True)


def milliseconds(seconds):
    return f"{seconds * 1000:,.2f} ms"


def spread(values):
    """Median and 99th percentile of times in seconds."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return f"{milliseconds(statistics.median(ordered))}, p99 {milliseconds(p99)}"


def pairs(ours, theirs):
    """The median of the ratios of runs that were made in turns, and all of them."""
    ratios = [a / b for a, b in zip(ours, theirs)]
    return f"{statistics.median(ratios):.2f}  (all: {', '.join(f'{ratio:.2f}' for ratio in ratios)})"
