#!/usr/bin/env python3
"""Measures what idle connections cost a server in user memory.

Opens many connections and leaves them alone, then sends one request on each and leaves them alone
again, then closes them all. After each step, once the server has settled, reads its private memory
from /proc/PID/smaps_rollup. Penstock's own example is also asked, by
SIGUSR1, what its buffer pool holds.

Python standard library only.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time

import servers

FILES_SPARED = 100
SETTLE_SECONDS = 180
STEADY_READINGS = 5
READING_INTERVAL_SECONDS = 0.1
POOL_KEYS = ["pool_live_bytes", "pool_mapped_bytes", "idle_connections"]


def smaps(pid):
    """Private and resident bytes of a process (proc(5), smaps_rollup).

    Private_Clean is left out: it is pages of programs and libraries, and falls when another process
    maps the same library.
    """
    fields = {}
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            words = line.split()
            if len(words) == 3 and words[2] == "kB":
                fields[words[0].rstrip(":")] = int(words[1]) * 1024
    return {"private": fields["Private_Dirty"], "rss": fields["Rss"]}


def slab():
    """Bytes of kernel slabs, all of the machine."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("Slab:"):
                return int(line.split()[1]) * 1024
    return 0


def settled(server, files_wanted):
    """Memory of the server once it has `files_wanted` files open and stays the same for a while.

    The generator's connect() returns before the server accepts, and its close() before the server
    notices; and a server may give memory back some time after that.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    same = 0
    last = None
    while same < STEADY_READINGS:
        if time.monotonic() > deadline:
            raise servers.BenchError(f"{server.name}: did not settle within {SETTLE_SECONDS} s; "
                                     f"has {count_files(server.pid)} files, {files_wanted} wanted")
        time.sleep(READING_INTERVAL_SECONDS)
        reading = smaps(server.pid)
        same = same + 1 if reading == last and count_files(server.pid) == files_wanted else 0
        last = reading
    return dict(last, slab=slab(), **pool_figures(server))


def count_files(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def pool_figures(server):
    """The pool's own account, from servers that give one on SIGUSR1."""
    if not server.name.startswith("penstock-"):
        return {}
    server.process.send_signal(signal.SIGUSR1)
    line = servers.read_line(server.process.stdout, servers.START_SECONDS, server.name)
    figures = json.loads(line)
    return {key: figures[key] for key in POOL_KEYS if key in figures}


def command_generator(generator, command, what):
    generator.stdin.write(command + "\n")
    generator.stdin.flush()
    servers.read_line(generator.stdout, SETTLE_SECONDS, f"{what}: load generator at '{command}'")


def measure(name, command, generator_path, args):
    """The record of one server: memory at each step and per connection."""
    with servers.Server(name, command) as server:
        files = count_files(server.pid)
        steps = {"start": settled(server, files)}
        generator = subprocess.Popen(
            [generator_path, f"--connect={server.address}", f"--idle={args.connections}",
             f"--size={args.size}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        try:
            servers.read_line(generator.stdout, SETTLE_SECONDS, f"{name}: load generator")
            steps["fresh"] = settled(server, files + args.connections)
            command_generator(generator, "touch", name)
            steps["used"] = settled(server, files + args.connections)
            command_generator(generator, "close", name)
            steps["closed"] = settled(server, files)
        finally:
            generator.kill()
            generator.communicate()
    start = steps["start"]
    record = {"server": name, "steps": steps}
    for step in ["fresh", "used"]:
        for key in ["private", "slab"]:
            record[f"{step}_{key}_per_connection"] = (
                (steps[step][key] - start[key]) / args.connections)
    record["closed_rss"] = steps["closed"]["rss"]
    record["closed_rss_growth"] = steps["closed"]["rss"] - start["rss"]
    return record


def markdown(records):
    lines = ["| server | user B/connection, fresh | after one request | pool live, fresh / after |"
             " RSS after all closed | growth since start |", "|---|---|---|---|---|---|"]
    for record in records:
        pool = " / ".join(str(record["steps"][step].get("pool_live_bytes", "-"))
                          for step in ["fresh", "used"])
        lines.append(f"| {record['server']} | {record['fresh_private_per_connection']:.0f} | "
                     f"{record['used_private_per_connection']:.0f} | {pool} | "
                     f"{record['closed_rss'] / 2**20:.1f} MiB | "
                     f"{record['closed_rss_growth'] / 2**20:.1f} MiB |")
    return "\n".join(lines)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    servers.add_arguments(parser)
    parser.add_argument("--connections", type=int, default=10000)
    parser.add_argument("--size", type=int, default=16384, help="bytes of the one request")
    args = parser.parse_args(argv)
    commands, missing, generator = servers.choose(args)
    for name in missing:
        print(f"not built, left out: {name}", file=sys.stderr)
    files = servers.raise_file_limit()
    if files != resource.RLIM_INFINITY and args.connections > files - FILES_SPARED:
        args.connections = files - FILES_SPARED
        print(f"the limit on open files is {files}: {args.connections} connections",
              file=sys.stderr)
    if args.connections < 1 or args.size < 1:
        parser.error("--connections and --size must be positive")

    records = []
    for name, command in commands.items():
        records.append(measure(name, command, generator, args))
        print(f"{name} done", file=sys.stderr)
    facts = servers.machine()
    line = servers.machine_line(facts, args.date)
    if args.out:
        document = {"kind": "penstock-memory", "machine": facts, "machine_line": line,
                    "date": args.date, "connections": args.connections, "size": args.size,
                    "servers": records}
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
    print(f"{line}; {args.connections} connections, request of {args.size} bytes\n")
    print(markdown(records))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except servers.BenchError as error:
        sys.exit(f"memory.py: {error}")
