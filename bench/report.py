#!/usr/bin/env python3
"""Draws bench results as SVG.

Reads the JSON of run.py, of memory.py and of google-benchmark (--benchmark_format=json), each told
by its content, and writes next to one another into --out-dir:
  echo-rate-vs-BASELINE.svg   requests/s as ratio to the baseline, by point, with the spread
  echo-cpu.svg                processor time per request, by point
  idle-memory.svg             user memory per idle connection
  micro-NAME.svg              google-benchmark: time per iteration
Each picture says what it was measured on. They suit light and dark pages.

Python standard library only.
"""

import argparse
import html
import json
import math
import os
import sys

WIDTH = 860
LABEL_WIDTH = 150
MICRO_LABEL_WIDTH = 230
RIGHT_MARGIN = 70
BAR_HEIGHT = 9
BAR_GAP = 2
GROUP_GAP = 12
TITLE_HEIGHT = 62
LEGEND_LINE = 20
AXIS_HEIGHT = 24
FOOT_HEIGHT = 40

# Light and dark tone of each server, so that it looks the same in all pictures.
COLORS = {
    "penstock-epoll": ("#1f6fd6", "#4b9bff"),
    "penstock-uring": ("#0a8f6c", "#2fc79c"),
    "raw-epoll": ("#4e5763", "#c3cad3"),
    "raw-epoll-et": ("#7b8491", "#99a2ad"),
    "raw-uring-direct": ("#a3abb6", "#717a86"),
    "raw-uring-sqe": ("#b9c0c9", "#5b646f"),
    "raw-uring-poll": ("#cfd4da", "#48505a"),
    "asio": ("#c2681a", "#e8955a"),
    "libuv": ("#8b4fc4", "#b58be6"),
}
OTHER_COLORS = [("#b8336a", "#e0709c"), ("#8a7a00", "#c9b83a"), ("#3b7a8c", "#69b1c4")]

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.title { font-size: 15px; font-weight: 600; }
.quiet { fill: #59636e; font-size: 11px; }
.value { font-size: 9px; fill: #59636e; }
.page { fill: #ffffff; }
.grid { stroke: #d8dde3; stroke-width: 1; }
.base { stroke: #1f2328; stroke-width: 1.5; }
.spread { stroke: #1f2328; stroke-width: 1; opacity: 0.55; }
"""
DARK_STYLE = """
text { fill: #e6edf3; }
.quiet, .value { fill: #9da7b1; }
.page { fill: #14181d; }
.grid { stroke: #30363d; }
.base, .spread { stroke: #e6edf3; }
"""


class ReportError(Exception):
    """Something wrong with an input; its text says what."""


def color_classes(names):
    """Name -> CSS class, and the rules of both themes."""
    classes, light, dark = {}, [], []
    others = 0
    for index, name in enumerate(names):
        if name in COLORS:
            tones = COLORS[name]
        else:
            tones = OTHER_COLORS[others % len(OTHER_COLORS)]
            others += 1
        classes[name] = f"s{index}"
        light.append(f".s{index} {{ fill: {tones[0]}; }}")
        dark.append(f".s{index} {{ fill: {tones[1]}; }}")
    return classes, "\n".join(light), "\n".join(dark)


def nice_step(span, steps_max):
    """A round distance between grid lines: 1, 2 or 5 times a power of ten."""
    raw = span / steps_max
    power = 10 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)


def number(value):
    """Three significant digits at most, without needless zeros."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


class Scale:
    """Maps values to x: linear from 0, or logarithmic from a power of ten."""

    def __init__(self, value_max, logarithmic=False, value_min=1, left=LABEL_WIDTH):
        self.logarithmic = logarithmic
        self.left, self.right = left, WIDTH - RIGHT_MARGIN
        if logarithmic:
            self.low = math.floor(math.log10(value_min))
            self.high = max(math.ceil(math.log10(value_max)), self.low + 1)
            self.ticks = [10 ** power for power in range(self.low, self.high + 1)]
        else:
            step = nice_step(value_max, 8)
            count = math.ceil(value_max / step - 1e-9)
            self.low, self.high = 0, count * step
            self.ticks = [index * step for index in range(count + 1)]

    def x(self, value):
        if self.logarithmic:
            value = math.log10(max(value, 10 ** self.low))
        part = (value - self.low) / (self.high - self.low)
        return self.left + min(max(part, 0), 1) * (self.right - self.left)


def element(name, text=None, **attributes):
    """One SVG element; underscores at the end of attribute names are dropped."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="'
                      f'{round(value, 1) if isinstance(value, float) else html.escape(str(value))}"'
                      for key, value in attributes.items())
    if text is None:
        return f"<{name}{written}/>"
    return f"<{name}{written}>{html.escape(text, quote=False)}</{name}>"


def legend(names, classes, y):
    """The legend's elements and the y below it."""
    out = []
    x = 16
    for name in names:
        width = 24 + 7 * len(name)
        if x + width > WIDTH - 16:
            x = 16
            y += LEGEND_LINE
        out.append(element("rect", x=x, y=y - 9, width=11, height=11, rx=2, class_=classes[name]))
        out.append(element("text", name, x=x + 16, y=y + 1))
        x += width + 8
    return out, y + LEGEND_LINE


def draw_bars(title, subtitle, caption, groups, scale, baseline_at=None):
    """A picture of horizontal bars.

    `groups` is a list of (label, bars), a bar (name, value, low, high, text); low and high, the
    spread, may be None.
    """
    names = list(dict.fromkeys(bar[0] for _, bars in groups for bar in bars))
    classes, light, dark = color_classes(names)
    body = [element("text", title, x=16, y=26, class_="title"),
            element("text", subtitle, x=16, y=45, class_="quiet")]
    y = TITLE_HEIGHT
    if len(names) > 1:
        parts, y = legend(names, classes, y + 8)
        body += parts
    top = y
    rows = []
    for label, bars in groups:
        y += GROUP_GAP / 2
        middle = y + len(bars) * (BAR_HEIGHT + BAR_GAP) / 2
        rows.append(element("text", label, x=scale.left - 10, y=middle + 3, text_anchor="end"))
        for bar in bars:
            rows += draw_bar(bar, classes, scale, y)
            y += BAR_HEIGHT + BAR_GAP
        y += GROUP_GAP / 2
    for tick in scale.ticks:
        x = scale.x(tick)
        body.append(element("line", x1=x, x2=x, y1=top, y2=y, class_="grid"))
        body.append(element("text", number(tick), x=x, y=y + 15, class_="quiet",
                            text_anchor="middle"))
    body += rows
    if baseline_at is not None:
        x = scale.x(baseline_at)
        body.append(element("line", x1=x, x2=x, y1=top, y2=y, class_="base"))
    height = y + AXIS_HEIGHT + FOOT_HEIGHT
    for index, line in enumerate(caption):
        body.append(element("text", line, x=16, y=height - 22 + 15 * index, class_="quiet"))
    style = f"{STYLE}{light}\n@media (prefers-color-scheme: dark) {{{DARK_STYLE}{dark}\n}}\n"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" role="img">',
        element("title", title), f"<style>{style}</style>",
        element("rect", width=WIDTH, height=round(height), class_="page"), *body, "</svg>", ""])


def draw_bar(bar, classes, scale, y):
    """The elements of one bar: body, spread, value."""
    name, value, low, high, text = bar
    start, end = scale.left, scale.x(value)
    out = [element("rect", x=start, y=y, width=max(end - start, 1), height=BAR_HEIGHT, rx=1,
                   class_=classes[name])]
    text_x = end
    if low is not None:
        middle = y + BAR_HEIGHT / 2
        out.append(element("line", x1=scale.x(low), x2=scale.x(high), y1=middle, y2=middle,
                           class_="spread"))
        text_x = scale.right  # in one column, clear of the lines
    out.append(element("text", text, x=text_x + 4, y=y + BAR_HEIGHT - 1, class_="value"))
    return out


def point_label(point, facts):
    """What a point is, in words."""
    size = facts["size"]
    words = f"{size // 1024} KiB" if size >= 1024 else f"{size} B"
    if facts["same_cpu"]:
        return f"same CPU, {words}"
    if facts["connections"] == 1:
        return f"1 conn, {words} x{facts['depth']}"
    depth = f" x{facts['depth']}" if facts["depth"] > 1 else ""
    share = f", {facts['share']} of a CPU" if facts.get("share", 1) < 1 else ""
    return f"{facts['connections']} conns, {words}{depth}{share}"


def draw_echo(document, only):
    """File name -> SVG of a run.py document."""
    points = document["points"]
    names = [name for name in document["servers"] if only is None or name in only]
    if not names:
        raise ReportError(f"--only: there are {', '.join(document['servers'])}")
    method = (f"median of {document['rounds_line']}, all servers by turns, "
              "server and load generator pinned to one CPU each")
    pictures = {}
    for baseline, entries in document["summary"].items():
        found = {(entry["point"], entry["server"]): entry for entry in entries}
        groups, greatest = [], 1.0
        for point, facts in points.items():
            bars = []
            for name in names:
                entry = found.get((point, name), {})
                if name != baseline and "ratio" in entry:
                    bars.append((name, entry["ratio"], entry["ratio_min"], entry["ratio_max"],
                                 f"{entry['ratio']:.2f}"))
                    greatest = max(greatest, entry["ratio"])
            if bars:
                groups.append((point_label(point, facts), bars))
        if groups:
            pictures[f"echo-rate-vs-{baseline}.svg"] = draw_bars(
                f"Echo: requests per second, {baseline} = 1",
                "ratio in the same round; bar: median, line: least to greatest; more is better",
                [document["machine_line"], f"baseline {baseline}; {method}"],
                groups, Scale(greatest * 1.1), baseline_at=1)
        pictures["echo-cpu.svg"] = draw_cpu(document, found, names, method)
    return pictures


def draw_cpu(document, found, names, method):
    groups, greatest = [], 0
    for point, facts in document["points"].items():
        bars = []
        for name in names:
            entry = found.get((point, name))
            if entry is not None:
                bars.append((name, entry["cpu_us"], None, None, number(entry["cpu_us"])))
                greatest = max(greatest, entry["cpu_us"])
        groups.append((point_label(point, facts), bars))
    return draw_bars("Echo: processor time of the server per request",
                     "microseconds; less is better", [document["machine_line"], method], groups,
                     Scale(greatest))


def draw_memory(document, only):
    """File name -> SVG of a memory.py document."""
    records = [record for record in document["servers"] if only is None or record["server"] in only]
    size = document["size"]
    groups = []
    greatest = 100
    for key, label in [("fresh_private_per_connection", "never used"),
                       ("used_private_per_connection", "after a request")]:
        bars = []
        for record in records:
            value = record[key]
            greatest = max(greatest, value)
            bars.append((record["server"], value, None, None, f"{number(max(value, 0))} B"))
        groups.append((label, bars))
    return {"idle-memory.svg": draw_bars(
        "User memory per idle connection",
        "bytes, logarithmic; fixed costs such as a buffer ring are shared out too; less is better",
        [document["machine_line"],
         f"{document['connections']:,} connections, fresh and after one request of {size:,} bytes "
         "each; no baseline: absolute"],
        groups, Scale(greatest, logarithmic=True, value_min=10))}


TO_NANOSECONDS = {"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}


def time_of(run):
    """Nanoseconds for each item that a run processed, or for each iteration if it counts none.

    Processor time is the calmer one, but says nothing about benches that wait.
    """
    if run.get("items_per_second"):
        return 1e9 / run["items_per_second"]
    waits = run["name"].split("_median")[0].endswith(("/real_time", "/manual_time"))
    return run["real_time" if waits else "cpu_time"] * TO_NANOSECONDS[run["time_unit"]]


def draw_micro(document, only, stem):
    """File name -> SVG of a google-benchmark document; the median where there are repetitions."""
    runs = document["benchmarks"]
    medians = [run for run in runs if run.get("aggregate_name") == "median"]
    chosen = medians or [run for run in runs if run.get("run_type") != "aggregate"]
    groups = []
    for run in chosen:
        name = run.get("run_name", run["name"])
        if run.get("error_occurred") or (only is not None and name not in only):
            continue
        words = name.removeprefix("BM_")
        groups.append((f"{words} {run['label']}" if run.get("label") else words, time_of(run)))
    if not groups:
        raise ReportError(f"{stem}: no benchmark to draw")
    context = document["context"]
    machine = (f"{context['num_cpus']} CPUs at {context['mhz_per_cpu']} MHz, "
               f"{context['date'][:10]}")
    times = [time for _, time in groups]
    scale = Scale(max(times), logarithmic=True, value_min=min(times) / 2, left=MICRO_LABEL_WIDTH)
    bars = [(name, [("time", time, None, None, f"{number(time)} ns")]) for name, time in groups]
    return {f"micro-{stem}.svg": draw_bars(
        f"Micro benches: {stem}", "nanoseconds of processor time per iteration or item (of wall time where the name says so), "
        "logarithmic; less is better",
        [machine, "google-benchmark" + (", median of repetitions" if medians else "")
         + "; no baseline: absolute"], bars, scale)}


def draw(path, only):
    """All pictures of one JSON file."""
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: {error}") from None
    kind = document.get("kind")
    if kind == "penstock-echo":
        return draw_echo(document, only)
    if kind == "penstock-memory":
        return draw_memory(document, only)
    if "benchmarks" in document and "context" in document:
        return draw_micro(document, only, os.path.splitext(os.path.basename(path))[0])
    raise ReportError(f"{path}: neither of run.py, of memory.py nor of google-benchmark")


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE.json")
    parser.add_argument("--out-dir", default=".", metavar="DIR")
    parser.add_argument("--only", metavar="NAME,...", help="draw only these servers or benches")
    args = parser.parse_args(argv)
    only = set(args.only.split(",")) if args.only else None
    os.makedirs(args.out_dir, exist_ok=True)
    for path in args.files:
        for name, picture in draw(path, only).items():
            target = os.path.join(args.out_dir, name)
            with open(target, "w", encoding="utf-8") as file:
                file.write(picture)
            print(target)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ReportError as error:
        sys.exit(f"report.py: {error}")
