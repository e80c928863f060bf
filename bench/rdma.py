#!/usr/bin/env python3
"""Compares endpoints over an RDMA device with perftest, by turns in each round.

usage: tests/vm/run.py --kernel=6.12 --rdma -- bench/rdma.py --bin-dir build/release

Runs on any machine with two devices that reach each other; the one that tests/vm/run.py --rdma makes
has them, in emulation, so that only the ratios mean anything there. Latency is half of a round trip at
the median, perftest's own measure; bandwidth is the average. An endpoint sleeps until a completion
wakes it, or spins first: perftest's programs spin, and `ib_send_lat -e` sleeps, which it does not survive over
rdma_rxe for long: it gets 100 iterations, and what does not end in time is told as missing.

Python standard library only.
"""

import argparse
import collections
import json
import statistics
import subprocess
import sys
import time

import servers

Point = collections.namedtuple("Point", "perftest pingpong more_is_better")



def point(perftest, size, iterations, theirs=(), ours=(), more_is_better=False):
    """Both do the same; `theirs` and `ours` are what only one of them is told."""
    return Point([perftest, "-s", str(size), "-n", str(iterations), *theirs],
                 [f"--size={size}", f"--iters={iterations}", *ours], more_is_better)


POINTS = {
    "send-64-asleep": point("ib_send_lat", 64, 100, theirs=["-e"]),
    "send-64-asleep-to-spinning": point("ib_send_lat", 64, 1000),
    "send-64-spinning": point("ib_send_lat", 64, 1000, ours=["--spin=100000"]),
    "write-64k": point("ib_write_bw", 65536, 1000, ours=["--op=write", "--depth=64"],
                       more_is_better=True),
    "write-64k-spinning": point("ib_write_bw", 65536, 1000, more_is_better=True,
                                ours=["--op=write", "--depth=64", "--spin=100000"]),
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    servers.add_common_arguments(parser)
    parser.add_argument("--points", default=",".join(POINTS), metavar="NAME,...",
                        help="points to measure (default: all) out of " + ", ".join(POINTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patience", type=float, default=30, metavar="SECONDS",
                        help="after which a run counts as missing")
    parser.add_argument("--device", default="rxe1", help="of the side that listens")
    parser.add_argument("--peer-device", default="rxe0", help="of the side that connects")
    parser.add_argument("--address", default="10.77.0.2", help="at which the listening side is reached")
    parser.add_argument("--gid-index", type=int, default=1, help="of both devices")
    args = parser.parse_args()
    args.points = args.points.split(",")
    unknown = [name for name in args.points if name not in POINTS]
    if unknown:
        parser.error(f"no such point: {', '.join(unknown)}")
    return args


def last_row(text):
    """The figures of the last row that perftest printed; None when there is none."""
    rows = [line.split() for line in text.splitlines()]
    figures = [row for row in rows if len(row) >= 5 and row[0].isdigit()]
    return [float(figure) for figure in figures[-1]] if figures else None


def perftest(words, args):
    """The figures of perftest's last row; None when it does not end."""
    command = [words[0], "-x", str(args.gid_index), "-F", *words[1:]]
    listening = subprocess.Popen([*command, "-d", args.device], stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + args.patience
    try:
        # It tells nobody when it listens: asked until it answers.
        while time.monotonic() < deadline:
            done = subprocess.run([*command, "-d", args.peer_device, args.address], check=False,
                                  capture_output=True, text=True, timeout=args.patience)
            if done.returncode == 0 and (figures := last_row(done.stdout)):
                return figures
            if listening.poll() is not None:
                break
        return None
    except subprocess.TimeoutExpired:
        return None
    finally:
        listening.kill()
        listening.wait()


def baseline(one, args):
    """Microseconds one way, or MiB/s; None when missing."""
    figures = perftest(one.perftest, args)
    # bytes, iterations, then t_min, t_max, t_typical, ... or the peak, the average, ...
    return figures and figures[3 if one.more_is_better else 4]


def ours(one, program, args):
    """The same of a pair of rdma_pingpong; None when it does not end."""
    device = f"--gid-index={args.gid_index}"
    server = [program, "--listen=127.0.0.1:0", f"--device={args.device}", device,
              *[word for word in one.pingpong if word.startswith("--spin")]]
    with servers.Server("rdma_pingpong", server, None) as listening:
        try:
            done = subprocess.run(
                [program, f"--connect={listening.address}", f"--device={args.peer_device}", device,
                 *one.pingpong],
                check=False, capture_output=True, text=True, timeout=args.patience)
        except subprocess.TimeoutExpired:
            return None
    if done.returncode != 0:
        raise servers.BenchError(f"rdma_pingpong: {done.stderr.strip()}")
    figures = json.loads(done.stdout.splitlines()[-1])
    if figures["transport"] != "device":
        raise servers.BenchError(f"rdma_pingpong went over the stream: {done.stderr.strip()}")
    return figures["bytes_per_s"] / 2**20 if one.more_is_better else figures["p50_us"] / 2


def table(records):
    """Medians of the per-round ratios, with their spread."""
    lines = ["| point | perftest | endpoint | ratio: median (least-greatest) |", "|---|---|---|---|"]
    for name in dict.fromkeys(record["point"] for record in records):
        rounds = [r for r in records if r["point"] == name]
        ours_ended = [r["endpoint"] for r in rounds if r["endpoint"]]
        both = [r for r in rounds if r["perftest"] and r["endpoint"]]
        unit = "MiB/s" if POINTS[name].more_is_better else "us"
        mine = f"{statistics.median(ours_ended):.1f} {unit}" if ours_ended else "did not end"
        if not both:
            lines.append(f"| {name} | no pair of runs ended | {mine} | |")
            continue
        ratios = [r["endpoint"] / r["perftest"] for r in both]
        theirs = f"{statistics.median(r['perftest'] for r in both):.1f} {unit}"
        lines.append(f"| {name} | {theirs} | {mine} | {statistics.median(ratios):.2f} "
                     f"({min(ratios):.2f}-{max(ratios):.2f}) |")
    return "\n".join(lines)


def main():
    args = parse_arguments()
    program = servers.find_program("rdma_pingpong", args.bin_dir or ["build/release", "build"])
    if program is None:
        raise servers.BenchError("no rdma_pingpong below --bin-dir")
    records = []
    for number in range(args.rounds):
        for name in args.points:
            records.append({"round": number, "point": name,
                            "perftest": baseline(POINTS[name], args),
                            "endpoint": ours(POINTS[name], program, args)})
            print(f"  {records[-1]}", file=sys.stderr, flush=True)
    print(table(records))
    if args.out:
        with open(args.out, "w", encoding="ascii") as file:
            json.dump({"bench": "rdma", "date": args.date, "records": records}, file, indent=1)


if __name__ == "__main__":
    try:
        main()
    except servers.BenchError as error:
        sys.exit(f"bench/rdma.py: {error}")
