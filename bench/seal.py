#!/usr/bin/env python3
"""Compares sealed streams with plain ones, and with gRPC C++'s own sealing, in rounds as run.py.

Servers: Penstock's echo_server, plain and sealed, on both engines; grpc_alts_echo, an epoll echo
around the ALTS frame protector of Debian's libgrpc; and raw_seal, an epoll echo that receives, opens, seals
and sends by OpenSSL and does nothing else. The load is always echo_client on epoll, sealed
when the server is. Records are of 16 KiB, as gRPC's C++ sends them; where messages are, too, records are
longer by what sealing adds, so that a message is one, as in the bare loop. Two points go one way instead:
at `flow`, flow_source sends to flow_sink, which drops what comes; at `transfer`, bulk_transfer sends
a file, which it reads, hashes and writes.

Sealing has a ceiling: what a plain exchange costs, plus what AES-GCM costs in a bare loop of the
same OpenSSL, which seal_bench measures beside each sealed server. Told is how much of that ceiling a sealed server reaches *in the same round*:
for processor time, (plain + bare) / sealed; for the rate, sealed / the rate that is left when the
bare cost is added to the time of each request. A server's processor time is the more trustworthy
figure: the client, which seals as well, is saturated before it.

Python standard library only.
"""

import argparse
import collections
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import run
import servers

FRAME = 16384
OVERHEAD = 24  # bytes that sealing adds to a record
ENGINES = ["epoll", "uring"]
GRPC, RAW = "grpc-alts", "raw-seal"
PEERS = [GRPC, RAW]  # they seal, and echo only
SERVERS = [f"{kind}-{engine}" for engine in ENGINES for kind in ("plain", "sealed")] + PEERS

POINTS = {
    "c64-64": run.Point(64, 64, 1, False),
    "c64-1k": run.Point(64, 1024, 1, False),
    "c64-16k": run.Point(64, 16384, 1, False),
    "same-64": run.Point(1, 64, 1, True),
    "same-1k": run.Point(1, 1024, 1, True),
    "same-16k": run.Point(1, 16384, 1, True),
    "bulk": run.Point(1, 65536, 16, False),
    # One way, told in units of 64 KiB; the processor time is that of both ends.
    "flow": run.Point(1, 65536, 0, False),
    "transfer": run.Point(1, 65536, 0, False),
}

# Microseconds of AES-128-GCM for one message of that size, in records of 16 KiB: to seal, to open.
# For where seal_bench is not built; from a bare loop that reuses its context and changes the IV alone
# (OpenSSL 3.0, VAES, a machine in good mood: the same one may take twice as long an hour later).
BARE_US = {64: (0.225, 0.204), 1024: (0.369, 0.344), 16384: (2.732, 2.650),
           65536: (4 * 2.732, 4 * 2.650)}

TRANSFER_MIB = 256
PATIENCE_SECONDS = 180

# Field -> what the program is called.
PROGRAMS = {"server": "echo_server", "client": "echo_client", "grpc": "grpc_alts_echo", "raw": "raw_seal",
            "sink": "flow_sink", "source": "flow_source", "transfer": "bulk_transfer",
            "bare": "seal_bench"}
Programs = collections.namedtuple("Programs", PROGRAMS)


class Child:
    """A program that ends by itself, and what it used up to then."""

    def __init__(self, command, cpu):
        self.name = os.path.basename(command[0])
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True,
                                        preexec_fn=servers.pinned(cpu))

    def finish(self):
        """Its last line, a JSON object, with cpu_ns and delay_ns added."""
        killer = threading.Timer(PATIENCE_SECONDS, self.process.kill)
        killer.start()
        pid = self.process.pid
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            delay_ns = sched_times(pid)[1]
            _, status, usage = os.wait4(pid, 0)
        finally:
            killer.cancel()
        self.process.returncode = os.waitstatus_to_exitcode(status)
        out, err = self.process.communicate()
        if not out.startswith("{"):
            raise servers.BenchError(f"{self.name}: {err.strip()}")
        figures = json.loads(out.splitlines()[-1])
        figures["complaint"] = err.strip()
        figures["failed"] = self.process.returncode != 0
        figures["cpu_ns"] = (usage.ru_utime + usage.ru_stime) * 1e9
        figures["delay_ns"] = delay_ns
        return figures


def sched_times(pid):
    """Nanoseconds that the threads of a process ran, and that they waited for a processor."""
    ran = waited = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
            times = file.read().split()
        ran += int(times[0])
        waited += int(times[1])
    return ran, waited


def frame(point):
    return FRAME + OVERHEAD if point.size == FRAME else FRAME


def seal_words(name, key, point):
    """What makes an example program of this server, or its client, seal."""
    if name.startswith("plain-"):
        return []
    return ["--seal=static", f"--key-hex={key}", f"--max-frame={frame(point)}",
            "--unsafe-key-reuse"]


def server_command(name, program, key, point):
    if name in PEERS:
        return [program, f"--key-hex={key}", f"--max-frame={frame(point)}", "0"]
    engine = name.split("-")[1]
    return [program, "--listen=127.0.0.1:0", f"--engine={engine}", "--loops=1",
            *seal_words(name, key, point)]


def load_server(name, program, client, point, args):
    """Starts the server and has the client load it; the client's figures, the nanoseconds that the
    server ran meanwhile, and the disturbance."""
    key = os.urandom(44).hex()
    client_cpu = args.server_cpu if point.same_cpu else args.client_cpu
    with servers.Server(name, server_command(name, program, key, point), args.server_cpu) as server:
        before = sched_times(server.pid)
        began = time.monotonic_ns()
        figures = Child([*client, f"--connect={server.address}", f"--duration={args.duration}s",
                         *seal_words(name, key, point)], client_cpu).finish()
        window = time.monotonic_ns() - began
        after = sched_times(server.pid)
    if figures["failed"]:
        print(f"  {name}: {figures['complaint']}", file=sys.stderr)
    ran, waited = after[0] - before[0], after[1] - before[1]
    disturbance = run.disturbance(
        {"seconds": window / 1e9, "server_cpu_ns": ran, "server_delay_ns": waited,
         "client_cpu_ns": figures["cpu_ns"], "client_delay_ns": figures["delay_ns"]}, point)
    return figures, ran, disturbance


def load_echo(name, point, programs, args):
    """One measurement of an echo server."""
    client = [programs.client, "--engine=epoll", f"--connections={point.connections}",
              f"--size={point.size}", f"--depth={point.depth}"]
    program = {GRPC: programs.grpc, RAW: programs.raw}.get(name, programs.server)
    figures, ran, disturbance = load_server(name, program, client, point, args)
    return {"requests_per_second": figures["requests_per_s"],
            "bytes_per_second": figures["requests_per_s"] * point.size,
            # Over all that came back, so that nothing the server did is left out.
            "cpu_us": ran / 1000 / max(figures["bytes"] / point.size, 1),
            "p50_us": figures["p50_us"], "p99_us": figures["p99_us"],
            "errors": figures["errors"], "disturbance": disturbance}


def load_flow(name, point, programs, args):
    """One measurement of a flow one way."""
    client = [programs.source, f"--engine={name.split('-')[1]}"]
    figures, ran, disturbance = load_server(name, programs.sink, client, point, args)
    units = figures["bytes"] / point.size
    return {"requests_per_second": figures["bytes_per_s"] / point.size,
            "bytes_per_second": figures["bytes_per_s"],
            "cpu_us": (ran + figures["cpu_ns"]) / 1000 / units,
            "errors": int(figures["failed"]), "disturbance": disturbance}


def load_transfer(name, point, programs, args):
    """One file from bulk_transfer to bulk_transfer, in memory at both ends."""
    engine = name.split("-")[1]
    words = [f"--engine={engine}", *seal_words(name, os.urandom(44).hex(), point)]
    where = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        source = os.path.join(folder, "source")
        with open(source, "wb") as file:
            file.write(os.urandom(1 << 20) * args.transfer_mib)
        began = time.monotonic_ns()
        receiver = Child([programs.transfer, "receive", os.path.join(folder, "target"),
                          "--listen=127.0.0.1:0", *words], args.server_cpu)
        try:
            first = servers.read_line(receiver.process.stdout, servers.START_SECONDS, name)
            sender = Child([programs.transfer, "send", source,
                            f"--connect={first.split()[-1]}", *words], args.client_cpu)
            sent, received = sender.finish(), receiver.finish()
        except servers.BenchError:
            receiver.process.kill()
            receiver.process.communicate()
            raise
        window = time.monotonic_ns() - began
    units = sent["bytes"] / point.size
    return {"requests_per_second": units / sent["seconds"],
            "bytes_per_second": sent["bytes_per_s"],
            "cpu_us": (sent["cpu_ns"] + received["cpu_ns"]) / 1000 / units,
            "errors": sent["failed"] + received["failed"],
            "disturbance": max(sent["delay_ns"], received["delay_ns"]) / window}


def measure_bare(program, point, cpu):
    """(seal, open): microseconds of AES-128-GCM for one message of the point, now."""
    records, size = (4, 16384) if point.size == 65536 else (1, point.size)
    out = subprocess.run(
        [program, f"--benchmark_filter=^BM_Bare(Seal|Open)/{size}$", "--benchmark_format=json",
         "--benchmark_min_time=0.02"], check=True, capture_output=True, text=True,
        timeout=PATIENCE_SECONDS, preexec_fn=servers.pinned(cpu)).stdout
    times = {bench["name"]: bench["cpu_time"] for bench in json.loads(out)["benchmarks"]}
    return [records * times[f"BM_Bare{what}/{size}"] / 1000 for what in ("Seal", "Open")]


def with_bare(load, name, point, programs, args):
    """What `load` measures, and beside a sealed server the bare loop."""
    figures = load(name, point, programs, args)
    if name.startswith("sealed-") and programs.bare is not None:
        figures["bare_us"] = measure_bare(programs.bare, point, args.server_cpu)
    return figures


def bare_us(point, measured=None):
    """(of processor time, of the time of each request): what AES-GCM alone adds."""
    seal, opened = measured or BARE_US[point.size]
    both = seal + opened
    if point.depth == 0:
        return both, seal  # the ends work at the same time
    return both, 2 * both if point.same_cpu else both


def ceilings(records, points):
    """(point, engine) -> median, least and greatest part of the ceilings, and what they are."""
    by_key = {(r["round"], r["point"], r["server"]): r for r in records}
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    for (round_number, point, server), sealed in by_key.items():
        kind, _, engine = server.partition("-")
        plain = by_key.get((round_number, point, f"plain-{engine}"))
        if kind != "sealed" or plain is None or not plain["requests_per_second"]:
            continue
        cpu_us, time_us = bare_us(points[point], sealed.get("bare_us"))
        left = 1e6 / (1e6 / plain["requests_per_second"] + time_us)
        entry = found[point, engine]
        entry["cpu_ceiling"].append(plain["cpu_us"] / (plain["cpu_us"] + cpu_us))
        entry["cpu_of_ceiling"].append((plain["cpu_us"] + cpu_us) / sealed["cpu_us"])
        entry["rate_ceiling"].append(left / plain["requests_per_second"])
        entry["rate_of_ceiling"].append(sealed["requests_per_second"] / left)
    return {key: {name: (statistics.median(values), min(values), max(values))
                  for name, values in entry.items()} for key, entry in found.items()}


def markdown(records, points):
    """One table an engine: the plain figures, what is left of them, and the comparisons."""
    parts = ceilings(records, points)
    grpc, raw = run.summarize(records, GRPC), run.summarize(records, RAW)
    tables = []
    for engine in ENGINES:
        names = [point for point in points if (point, engine) in parts]
        if not names:
            continue
        plain = run.summarize(records, f"plain-{engine}")
        sealed = f"sealed-{engine}"

        def row(title, cell, names=names):
            return f"| {title} | " + " | ".join(cell(name) for name in names) + " |"

        def spread(values):
            return f"{values[0]:.2f} ({values[1]:.2f}-{values[2]:.2f})"

        def against(entry, ratio):
            if entry is None or ratio not in entry:
                return "-"
            return spread([entry[ratio], entry[ratio + "_min"], entry[ratio + "_max"]])

        lines = [row(engine, str), "|---" * (len(names) + 1) + "|"]
        for title, field, ratio, kind in [
                ("processor us", "cpu_us", "cpu_ratio", "cpu"),
                ("requests/s", "requests_per_second", "ratio", "rate")]:
            lines += [
                row(f"plain, {title}", lambda n: f"{plain[n, f'plain-{engine}'][field]:.2f}"),
                row(f"sealed, {title}", lambda n: f"{plain[n, sealed][field]:.2f}"),
                row(f"ceiling of sealed, {kind}",
                    lambda n: f"{parts[n, engine][kind + '_ceiling'][0]:.2f}"),
                row("reached of that", lambda n: spread(parts[n, engine][kind + "_of_ceiling"])),
                row(f"sealed to {GRPC}, {kind}", lambda n: against(grpc[n, sealed], ratio)),
                row(f"sealed to {RAW}, {kind}", lambda n: against(raw[n, sealed], ratio)),
                row(f"{RAW} to {GRPC}, {kind}", lambda n: against(grpc.get((n, RAW)), ratio)),
            ]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def find_programs(args):
    """The paths of what is measured; None when it is not built and there is something without."""
    directories = servers.bin_dirs(args)
    found = Programs(*(servers.find_program(name, directories) for name in PROGRAMS.values()))
    for name, path in [("echo_server", found.server), ("echo_client", found.client)]:
        if path is None:
            raise servers.BenchError(f"no program {name} below {', '.join(directories)}; build the "
                                     "examples (PENSTOCK_EXAMPLES=ON) or give --bin-dir")
    return found


def choose(args, programs):
    """The names of the servers to run."""
    wanted = args.servers.split(",") if args.servers is not None else SERVERS
    for name in wanted:
        if name not in SERVERS:
            raise servers.BenchError(f"server '{name}' is not known; there are "
                                     f"{', '.join(SERVERS)}")
    for name, path, program, needs in [(GRPC, programs.grpc, "grpc_alts_echo", "libgrpc29"),
                                       (RAW, programs.raw, "raw_seal", "OpenSSL 3")]:
        if name not in wanted or path is not None:
            continue
        if args.servers is not None:
            raise servers.BenchError(f"server '{name}': no program {program}; it needs {needs}")
        print(f"not built, left out: {name}", file=sys.stderr)
        wanted = [other for other in wanted if other != name]
    return wanted


def measure(names, points, programs, args):
    """The records of all rounds."""
    groups = [([point for point in points if POINTS[point].depth > 0], names, load_echo, "server")]
    two_ended = [name for name in names if name not in PEERS]
    for point, load, program in [("flow", load_flow, "source"),
                                 ("transfer", load_transfer, "transfer")]:
        if point in points and two_ended:
            groups.append(([point], two_ended, load, program))
    records = []
    for members, sides, load, program in groups:
        if getattr(programs, program) is None:
            print(f"not built, left out: {PROGRAMS[program]}", file=sys.stderr)
        elif members:
            records += run.run_rounds(
                sides, members,
                lambda name, point, load=load: with_bare(load, name, POINTS[point], programs, args),
                args)
    return records


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    servers.add_common_arguments(parser)
    run.add_arguments(parser, POINTS)
    parser.add_argument("--servers", metavar="NAME,...",
                        help="servers to compare (default: all) out of " + ", ".join(SERVERS))
    parser.add_argument("--transfer-mib", type=int, default=TRANSFER_MIB,
                        help="size of the file of `transfer` (default: %(default)s)")
    args, names_of_points = run.parse(parser, argv, POINTS)
    programs = find_programs(args)
    names = choose(args, programs)
    if programs.bare is None:
        print("not built: seal_bench; what AES-GCM costs is taken from a table", file=sys.stderr)
    servers.raise_file_limit()

    records = measure(names, names_of_points, programs, args)
    points = {name: POINTS[name] for name in names_of_points}
    facts = servers.machine()
    if args.out:
        content = run.document(records, {args.duration},
                               {name: run.summarize(records, name) for name in names}, points,
                               facts, args)
        content["ceilings"] = [dict({name: dict(zip(("median", "least", "greatest"), values))
                                     for name, values in entry.items()},
                                    point=point, engine=engine)
                               for (point, engine), entry in ceilings(records, points).items()]
        run.write_json(args.out, content)
    print(f"{servers.machine_line(facts, args.date)}; {args.rounds} rounds of {args.duration} s, "
          "medians (least-greatest) of ratios in the same round\n")
    print(markdown(records, points))
    return run.conclude(records, args)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except servers.BenchError as error:
        sys.exit(f"seal.py: {error}")
