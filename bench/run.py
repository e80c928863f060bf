#!/usr/bin/env python3
"""Compares echo servers side by side.

In every round, at every point (so many connections, such a message, such a depth), each server is
started, loaded and ended in turn, so that all of them see the machine in the same mood; the order
turns by one from round to round. What counts is the ratio of a server to a baseline *in the same
round*, and of those the median. The server runs on one processor and the load generator on another,
or both on one (points `same-*`, the most sensitive to what a library adds).

Processor time per request is the more trustworthy figure, because the load generator is saturated
at nearly all points. At the points `half-*` and `most-*` the server is what limits the rate: it
shares its processor with a program that never waits, and so has a half or nine tenths of it. A run
is repeated when the server or the generator had to wait for its processor more than 5 % of the
time: then somebody else was using the machine.

Python standard library only.
"""

import argparse
import collections
import contextlib
import json
import os
import statistics
import subprocess
import sys

import servers

Point = collections.namedtuple("Point", "connections size depth same_cpu share", defaults=[1])

POINTS = {
    "c64-64": Point(64, 64, 1, False),
    "c64-1k": Point(64, 1024, 1, False),
    "c64-16k": Point(64, 16384, 1, False),
    "c1000-64": Point(1000, 64, 1, False),
    "c1000-1k": Point(1000, 1024, 1, False),
    "c1000-16k": Point(1000, 16384, 1, False),
    "p16-64": Point(64, 64, 16, False),
    "p16-1k": Point(64, 1024, 16, False),
    "p16-16k": Point(64, 16384, 16, False),
    "p16-c1000": Point(1000, 64, 16, False),
    "same-64": Point(1, 64, 1, True),
    "same-16k": Point(1, 16384, 1, True),
    "bulk": Point(1, 65536, 16, False),
    "half-c1000-64": Point(1000, 64, 1, False, share=0.5),
    "half-c1000-1k": Point(1000, 1024, 1, False, share=0.5),
    "most-c1000-64": Point(1000, 64, 1, False, share=0.9),
    "most-c1000-1k": Point(1000, 1024, 1, False, share=0.9),
}

DISTURBED_ABOVE = 0.05
KEPT = ["requests_per_second", "bytes_per_second", "p50_us", "p90_us", "p99_us", "p99_9_us",
        "errors"]


def load_once(name, command, generator, point, args):
    """One measurement: starts the server, loads it, ends it; returns the figures."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(servers.Server(name, command, args.server_cpu))
        if point.share < 1:
            stack.enter_context(servers.Spinner(args.server_cpu, point.share))
        return load_server(server, generator, point, args)


def load_server(server, generator, point, args, *flags):
    """Loads a server that runs; returns the figures."""
    name = server.name
    client_cpu = args.server_cpu if point.same_cpu else args.client_cpu
    result = subprocess.run(
        [generator, f"--connect={server.address}", f"--connections={point.connections}",
         f"--size={point.size}", f"--depth={point.depth}", f"--duration={args.duration}s",
         f"--warmup={args.warmup}s", f"--watch_pid={server.pid}", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        timeout=args.duration + args.warmup + 60, preexec_fn=servers.pinned(client_cpu),
        check=False)
    if not result.stdout.startswith("{"):
        raise servers.BenchError(f"{name}: {result.stderr.strip()}")
    figures = json.loads(result.stdout)
    if "server_cpu_ns" not in figures:
        raise servers.BenchError(f"{name}: the server ended while it was measured")
    kept = {key: figures[key] for key in KEPT}
    kept["cpu_us"] = figures["server_cpu_ns"] / 1000 / max(figures["requests"], 1)
    kept["disturbance"] = disturbance(figures, point)
    if figures["errors"] > 0:
        print(f"  {name}: {result.stderr.strip()}", file=sys.stderr)
    return kept


def disturbance(figures, point):
    """The part of the window in which somebody else had the processor that a side wanted."""
    window = figures["seconds"] * 1e9
    if point.same_cpu:
        # The two sides delay each other all the time; together they should fill the processor.
        return max(0.0, 1 - (figures["server_cpu_ns"] + figures["client_cpu_ns"]) / window)
    if point.share < 1:  # the server is meant to wait for the rest of the time, and no longer
        return max(figures["client_delay_ns"] / window,
                   point.share - figures["server_cpu_ns"] / window)
    return max(figures["server_delay_ns"], figures["client_delay_ns"]) / window


def measure(load, retries):
    """The record of load(), repeated while disturbed; keeps the calmest run."""
    runs = []
    while len(runs) <= retries:
        runs.append(load())
        if runs[-1]["disturbance"] <= DISTURBED_ABOVE:
            break
    best = min(runs, key=lambda run: run["disturbance"])
    best["repeats"] = len(runs) - 1
    best["disturbed"] = best["disturbance"] > DISTURBED_ABOVE
    return best


def run_rounds(names, points, load, args):
    """load(server, point) of all, as a flat list of records with round, point and server."""
    records = []
    for round_number in range(args.rounds):
        for turn, point in enumerate(points):
            shift = (round_number + turn) % len(names)
            for name in names[shift:] + names[:shift]:
                record = measure(lambda name=name, point=point: load(name, point), args.retries)
                record.update(round=round_number, point=point, server=name)
                records.append(record)
        print(f"round {round_number + 1} of {args.rounds} done", file=sys.stderr)
    return records


def summarize(records, baseline):
    """(point, server) -> medians over the rounds, and ratios to `baseline` in the same round."""
    base = {(r["round"], r["point"]): r for r in records if r["server"] == baseline}
    groups = collections.defaultdict(list)
    for record in records:
        groups[record["point"], record["server"]].append(record)
    summary = {}
    for key, group in groups.items():
        entry = {name: statistics.median(r[name] for r in group)
                 for name in ["requests_per_second", "cpu_us", "p50_us", "p99_us"]
                 if name in group[0]}
        entry["errors"] = sum(r["errors"] for r in group)
        entry["disturbed"] = sum(r["disturbed"] for r in group)
        for name, field in [("ratio", "requests_per_second"), ("cpu_ratio", "cpu_us")]:
            ratios = [r[field] / base[r["round"], r["point"]][field] for r in group
                      if base.get((r["round"], r["point"]), {}).get(field)]
            if ratios:
                entry[name] = statistics.median(ratios)
                entry[name + "_min"] = min(ratios)
                entry[name + "_max"] = max(ratios)
        summary[key] = entry
    return summary


def markdown(summary, baseline, names, points):
    """Two tables: rate and processor time, each as ratio with its spread."""
    def table(title, absolute, ratio):
        lines = [f"| {title} | " + " | ".join(points) + " |", "|---" * (len(points) + 1) + "|"]
        row = " | ".join(absolute(summary[point, baseline]) for point in points)
        lines.append(f"| {baseline} | {row} |")
        for name in names:
            if name != baseline:
                cells = [summary.get((point, name), {}) for point in points]
                lines.append(f"| {name} | " + " | ".join(
                    f"{cell[ratio]:.2f} ({cell[ratio + '_min']:.2f}-{cell[ratio + '_max']:.2f})"
                    if ratio in cell else "-" for cell in cells) + " |")
        return "\n".join(lines)

    return "\n\n".join([
        f"Ratios to {baseline} in the same round: median (least-greatest).",
        table("thousand requests/s", lambda e: f"{e['requests_per_second'] / 1000:.1f}", "ratio"),
        table("processor us/request", lambda e: f"{e['cpu_us']:.2f}", "cpu_ratio"),
    ])


def recorded(path):
    """An earlier document."""
    try:
        with open(path, encoding="utf-8") as file:
            earlier = json.load(file)
    except (OSError, ValueError) as error:
        raise servers.BenchError(f"--with={path}: {error}") from None
    if earlier.get("kind") != "penstock-echo":
        raise servers.BenchError(f"--with={path}: not written by run.py")
    return earlier


def numbered_on(records, before):
    """The records as rounds after those before."""
    first = 1 + max((record["round"] for record in before), default=-1)
    return [dict(record, round=first + record["round"]) for record in records]


def span(numbers):
    """One number, or the least and the greatest, in words."""
    least, greatest = min(numbers), max(numbers)
    return f"{least:g}" if least == greatest else f"{least:g} to {greatest:g}"


def rounds_line(records, durations):
    """How often each point was measured with each server, and how long each time."""
    counts = collections.Counter((record["point"], record["server"]) for record in records)
    return f"{span(counts.values())} rounds of {span(durations)} s"


def document(records, durations, summaries, points, facts, args):
    """What --out gets: everything measured, and the summaries by baseline."""
    return {
        "kind": "penstock-echo", "machine": facts, "date": args.date,
        "machine_line": servers.machine_line(facts, args.date),
        "durations_s": sorted(durations), "rounds_line": rounds_line(records, durations),
        "servers": list(dict.fromkeys(record["server"] for record in records)),
        "points": {name: point._asdict() for name, point in points.items()},
        "summary": {baseline: [dict(entry, point=point, server=server)
                               for (point, server), entry in summary.items()]
                    for baseline, summary in summaries.items()},
        "runs": records,
    }


def write_json(path, content):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")


def check_requirement(text, records):
    """SERVER:BASELINE:RATE_MIN:CPU_MAX against all measured points; the list of what fails."""
    try:
        name, baseline, rate_min, cpu_max = text.split(":")
        rate_min, cpu_max = float(rate_min), float(cpu_max)
    except ValueError:
        raise servers.BenchError(
            f"--require={text}: expected SERVER:BASELINE:RATE_MIN:CPU_MAX") from None
    failures = []
    compared = 0
    for (point, server), entry in summarize(records, baseline).items():
        if server != name or "ratio" not in entry:
            continue
        compared += 1
        if entry["ratio"] < rate_min:
            failures.append(f"{point}: {name} has {entry['ratio']:.3f} of the rate of {baseline}, "
                            f"required is {rate_min}")
        if entry["cpu_ratio"] > cpu_max:
            failures.append(f"{point}: {name} takes {entry['cpu_ratio']:.3f} of the processor time "
                            f"of {baseline}, allowed is {cpu_max}")
    return failures if compared else [f"{name} and {baseline} were not both measured"]


def conclude(records, args):
    """Says what was disturbed or wrong and which --require failed; the exit status."""
    disturbed = sum(record["disturbed"] for record in records)
    if disturbed:
        print(f"\n{disturbed} of {len(records)} runs stayed disturbed by other work on the machine.")
    failures = [failure for text in args.require for failure in check_requirement(text, records)]
    errors = sum(record["errors"] for record in records)
    if errors:
        failures.append(f"{errors} errors were seen by the load generator")
    for failure in failures:
        print("FAILED " + failure)
    return 1 if failures else 0


def add_arguments(parser, points):
    """The options of benches in rounds."""
    parser.add_argument("--points", metavar="NAME,...", default=",".join(points),
                        help="points to measure (default: all) out of " + ", ".join(points))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=0.9, help="seconds measured in each run")
    parser.add_argument("--require", action="append", default=[],
                        metavar="SERVER:BASELINE:RATE_MIN:CPU_MAX",
                        help="fail unless SERVER reaches RATE_MIN of BASELINE's rate with at most "
                             "CPU_MAX of its processor time at every point")
    parser.add_argument("--retries", type=int, default=3,
                        help="how often a disturbed run is repeated")
    cpus = sorted(os.sched_getaffinity(0))
    parser.add_argument("--server-cpu", type=int, default=cpus[0], help="default: %(default)s")
    parser.add_argument("--client-cpu", type=int, default=cpus[min(1, len(cpus) - 1)],
                        help="default: %(default)s")


def parse(parser, argv, known_points):
    """The arguments and the names of the points; ends the program when they make no sense."""
    args = parser.parse_args(argv)
    points = args.points.split(",")
    for point in points:
        if point not in known_points:
            parser.error(f"point '{point}' is not known; there are {', '.join(known_points)}")
    rounds_min = 0 if getattr(args, "earlier", None) else 1
    if args.rounds < rounds_min or args.duration <= 0 or args.retries < 0:
        parser.error("--rounds and --duration must be positive, --retries at least 0")
    cpus = os.sched_getaffinity(0)
    for cpu in (args.server_cpu, args.client_cpu):
        if cpu not in cpus:
            parser.error(f"CPU {cpu} is not one of {sorted(cpus)}")
    if args.server_cpu == args.client_cpu:
        print("server and load generator share a CPU at every point", file=sys.stderr)
    return args, points


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    servers.add_arguments(parser)
    add_arguments(parser, POINTS)
    parser.add_argument("--warmup", type=float, default=0.2, help="seconds before --duration")
    parser.add_argument("--with", action="append", default=[], metavar="FILE.json", dest="earlier",
                        help="count the rounds of an earlier run on this machine along, may be "
                             "repeated; with --rounds=0 measures nothing anew")
    parser.add_argument("--baseline", action="append", metavar="NAME",
                        help="server that the others are compared with, may be repeated "
                             "(default: raw-epoll, else the first)")
    args, points = parse(parser, argv, POINTS)
    if args.warmup < 0:
        parser.error("--warmup must be at least 0")
    return args, points


def main(argv):
    args, points = parse_arguments(argv)
    commands, missing, generator = servers.choose(args)
    for name in missing:
        print(f"not built, left out: {name}", file=sys.stderr)
    baselines = args.baseline or (["raw-epoll"] if "raw-epoll" in commands else
                                  [next(iter(commands))])
    for baseline in baselines:
        if baseline not in commands:
            raise servers.BenchError(f"baseline '{baseline}' is not among the servers")
    servers.raise_file_limit()

    def load(name, point):
        return load_once(name, commands[name], generator, POINTS[point], args)

    records, known, durations = [], {}, set()
    for earlier in map(recorded, args.earlier):
        records += numbered_on(earlier["runs"], records)
        known |= {name: Point(**facts) for name, facts in earlier["points"].items()}
        durations.update(earlier["durations_s"])
    if args.rounds > 0:
        records += numbered_on(run_rounds(list(commands), points, load, args), records)
        known |= {name: POINTS[name] for name in points}
        durations.add(args.duration)
    facts = servers.machine()
    summaries = {baseline: summarize(records, baseline) for baseline in baselines}
    names = list(dict.fromkeys(record["server"] for record in records))
    if args.out:
        write_json(args.out, document(records, durations, summaries, known, facts, args))
    print(f"{servers.machine_line(facts, args.date)}; {rounds_line(records, durations)}")
    for baseline, summary in summaries.items():
        print("\n" + markdown(summary, baseline, names, list(known)))

    return conclude(records, args)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (servers.BenchError, subprocess.TimeoutExpired) as error:
        sys.exit(f"run.py: {error}")
