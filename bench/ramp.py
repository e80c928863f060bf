#!/usr/bin/env python3
"""Compares http_hello with --adaptive with http_hello on either engine, on a ramp of connections.

The three servers run all the time. At each plateau of the ramp the adaptive one is loaded until it
has had the time to decide (--settle); then all three are loaded in turn, in rounds, and what counts
is the ratio of the adaptive one to the better of the fixed ones *in the same round*, and of those
the median. Better is the one with the greater median rate at that plateau. The adaptive server is
not told that a measurement is on: what it tries then is measured as well.

With --oscillate the adaptive server alone is loaded by the greatest and the least of the plateaus
in turn, and only its switches are counted.

Python standard library only.
"""

import argparse
import collections
import re
import statistics
import subprocess
import sys
import tempfile
import time

import run
import servers

ADAPTIVE = "adaptive"
FIXED = ["epoll", "uring"]
RAMP = [1, 64, 1000, 64, 1]
# What the adapter allows itself, and the time in which it does.
SWITCHES_MAX = 3
WINDOW_SECONDS = 300


def command_of(name, program):
    engine = "--adaptive" if name == ADAPTIVE else f"--engine={name}"
    return [program, "--listen=127.0.0.1:0", "--loops=1", engine]


def plateau(connections):
    return run.Point(connections, 64, 1, False)


def seconds_of(text):
    """A duration as absl prints it, without its sign: 1m2.5s, 350ms."""
    units = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
    return sum(float(number) * units[unit]
               for number, unit in re.findall(r"([\d.]+)(ms|us|ns|h|m|s)", text))


def decisions(complaints):
    """The trace that a server told on stderr, as (seconds, text), and how often it switched."""
    trace = []
    switches = None
    for line in complaints.splitlines():
        found = re.search(r"adaptive: (?:switches: (\d+)$|(\S+) (.*))", line)
        if found is None:
            continue
        if found.group(1) is not None:
            switches = int(found.group(1))
        else:
            trace.append((seconds_of(found.group(2)), found.group(3)))
    if switches is None:
        raise servers.BenchError(f"the adaptive server told nothing: {complaints.strip()}")
    return trace, switches


def most_switches(trace):
    """The most switches in any window, from the lines that tell of one each."""
    times = [at for at, text in trace if "serves from now on" in text or "found better;" in text]
    return max((sum(at <= other < at + WINDOW_SECONDS for other in times) for at in times),
               default=0)


def summarize(records):
    """For each plateau the better fixed engine, and the ratios to it."""
    groups = collections.defaultdict(lambda: collections.defaultdict(dict))
    for record in records:
        groups[record["plateau"]][record["server"]][record["round"]] = record
    summary = []
    for index, by_server in sorted(groups.items()):
        def median(name, field, by_server=by_server):
            return statistics.median(r[field] for r in by_server[name].values())

        better = max(FIXED, key=lambda name: median(name, "requests_per_second"))
        cheaper = min(FIXED, key=lambda name: median(name, "cpu_us"))
        entry = {"plateau": index, "better": better, "cheaper": cheaper,
                 "connections": next(iter(by_server[ADAPTIVE].values()))["connections"],
                 "disturbed": sum(r["disturbed"] for rounds in by_server.values()
                                  for r in rounds.values())}
        for name in [ADAPTIVE, *FIXED]:
            entry[name] = {field: median(name, field)
                           for field in ("requests_per_second", "cpu_us", "p99_us")}
        for name, field, base in [("ratio", "requests_per_second", better),
                                  ("cpu_ratio", "cpu_us", cheaper)]:
            ratios = [by_server[ADAPTIVE][r][field] / by_server[base][r][field]
                      for r in by_server[base]]
            entry[name] = statistics.median(ratios)
            entry[name + "_min"], entry[name + "_max"] = min(ratios), max(ratios)
        summary.append(entry)
    return summary


def markdown(summary):
    lines = ["| connections | better, its rate | adaptive: rate | cheaper, us/request | "
             "adaptive: processor time |", "|---|---|---|---|---|"]
    for entry in summary:
        better, cheaper = entry["better"], entry["cheaper"]
        lines.append(
            f"| {entry['connections']} | {better} {entry[better]['requests_per_second']:.0f}/s | "
            f"{entry['ratio']:.3f} ({entry['ratio_min']:.2f}-{entry['ratio_max']:.2f}) | "
            f"{cheaper} {entry[cheaper]['cpu_us']:.2f} | "
            f"{entry['cpu_ratio']:.3f} ({entry['cpu_ratio_min']:.2f}-{entry['cpu_ratio_max']:.2f})"
            " |")
    return "\n".join(lines)


class Ramp:
    """The servers of one run, and how each is loaded."""

    def __init__(self, args, program, generator, complaints):
        self.args = args
        self.generator = generator
        names = [ADAPTIVE] if args.oscillate else [ADAPTIVE, *FIXED]
        self.servers = {}
        try:
            for name in names:
                self.servers[name] = servers.Server(
                    name, command_of(name, program), args.server_cpu,
                    complaints if name == ADAPTIVE else subprocess.DEVNULL)
        except servers.BenchError:
            self.stop()
            raise

    def load(self, name, connections, seconds, warmup=0.0):
        times = argparse.Namespace(**vars(self.args))
        times.duration, times.warmup = seconds, warmup
        figures = run.load_server(self.servers[name], self.generator, plateau(connections), times,
                                  "--http=true")
        if figures["errors"] > 0:
            raise servers.BenchError(f"{name}: {figures['errors']} errors")
        return figures

    def climb(self):
        """All plateaus; the records of all rounds."""
        records = []
        for index, connections in enumerate(self.args.plateaus):
            if self.args.settle > 0:
                self.load(ADAPTIVE, connections, self.args.settle)
            names = list(self.servers)
            for round_number in range(self.args.rounds):
                shift = round_number % len(names)
                for name in names[shift:] + names[:shift]:
                    record = run.measure(lambda name=name, connections=connections: self.load(
                        name, connections, self.args.duration, self.args.warmup),
                        self.args.retries)
                    record.update(round=round_number, plateau=index, connections=connections,
                                  server=name)
                    records.append(record)
            print(f"plateau {index + 1} of {len(self.args.plateaus)} done", file=sys.stderr)
        return records

    def oscillate(self):
        """The greatest and the least load in turn, for so long."""
        end = time.monotonic() + self.args.oscillate
        turn = 0
        while time.monotonic() < end:
            extreme = (max, min)[turn % 2]
            self.load(ADAPTIVE, extreme(self.args.plateaus), self.args.half_period)
            turn += 1
        return []

    def stop(self):
        for server in self.servers.values():
            server.stop()


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    servers.add_common_arguments(parser)
    parser.add_argument("--plateaus", default=",".join(map(str, RAMP)), metavar="CONNECTIONS,...")
    parser.add_argument("--settle", type=float, default=7, metavar="SECONDS",
                        help="of load before a plateau is measured (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="at each plateau")
    parser.add_argument("--duration", type=float, default=0.5, help="seconds measured in each run")
    parser.add_argument("--warmup", type=float, default=0.2, help="seconds before --duration")
    parser.add_argument("--retries", type=int, default=1,
                        help="how often a disturbed run is repeated")
    parser.add_argument("--oscillate", type=float, default=0, metavar="SECONDS",
                        help="count the switches of a load that swings instead")
    parser.add_argument("--half-period", type=float, default=7, metavar="SECONDS")
    parser.add_argument("--require", type=float, metavar="RATIO",
                        help="fail when a plateau has less than this part of the better rate")
    parser.add_argument("--server-cpu", type=int, default=0)
    parser.add_argument("--client-cpu", type=int, default=1)
    args = parser.parse_args(argv)
    try:
        args.plateaus = [int(word) for word in args.plateaus.split(",")]
    except ValueError:
        parser.error(f"--plateaus={args.plateaus}: expected numbers")
    if min(args.plateaus) < 1 or args.rounds < 1 or min(args.duration, args.half_period) <= 0:
        parser.error("--plateaus, --rounds, --duration and --half-period must be positive")
    if min(args.settle, args.warmup, args.retries, args.oscillate) < 0:
        parser.error("--settle, --warmup, --retries and --oscillate must not be negative")
    return args


def find_programs(args):
    directories = servers.bin_dirs(args)
    programs = {name: servers.find_program(name, directories) for name in ("http_hello", "loadgen")}
    for name, path in programs.items():
        if path is None:
            raise servers.BenchError(f"no program {name} below {', '.join(directories)}; build it "
                                     "or give --bin-dir")
    return programs


def failures_of(summary, most, args):
    failed = [f"{entry['connections']} connections: adaptive has {entry['ratio']:.3f} of the rate "
              f"of {entry['better']}, required is {args.require}"
              for entry in summary if args.require and entry["ratio"] < args.require]
    if most > SWITCHES_MAX:
        failed.append(f"{most} switches in {WINDOW_SECONDS} s, {SWITCHES_MAX} are allowed")
    return failed


def main(argv):
    args = parse_arguments(argv)
    programs = find_programs(args)
    servers.raise_file_limit()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as complaints:
        ramp = Ramp(args, programs["http_hello"], programs["loadgen"], complaints)
        try:
            records = ramp.oscillate() if args.oscillate else ramp.climb()
        finally:
            ramp.stop()
        complaints.seek(0)
        trace, switches = decisions(complaints.read())
    summary = summarize(records)
    most = most_switches(trace)
    facts = servers.machine()
    line = servers.machine_line(facts, args.date)
    if args.out:
        run.write_json(args.out, {
            "kind": "penstock-ramp", "machine": facts, "machine_line": line, "date": args.date,
            "plateaus": args.plateaus, "rounds": args.rounds, "duration_s": args.duration,
            "settle_s": args.settle, "oscillate_s": args.oscillate, "switches": switches,
            "most_switches": most, "trace": trace, "summary": summary, "runs": records})
    print(line)
    if summary:
        print(markdown(summary))
    print(f"{switches} switches, at most {most} in {WINDOW_SECONDS} s:")
    for at, text in trace:
        print(f"  {at:7.1f} s {text}")
    failed = failures_of(summary, most, args)
    for failure in failed:
        print("FAILED " + failure)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (servers.BenchError, subprocess.TimeoutExpired) as error:
        sys.exit(f"ramp.py: {error}")
