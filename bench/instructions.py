#!/usr/bin/env python3
"""Counts the instructions that an echo server takes for an echo, in one build or in several.

usage: bench/instructions.py BUILD [BUILD...]

Each BUILD is a build folder with examples/echo_server. The server runs under callgrind, once with few
echoes and once with many, one after the other on one connection; the difference is what the echoes
took, without start and end. One line for each engine and build, with its ratio to the first build: of
two commits built alike, what the one costs more than the other. Instructions of the program and its
libraries, not of the kernel. Counts hold for one machine and compiler; they repeat to a part in a
thousand.
"""

import argparse
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

FEW, MANY = 1000, 6000
PATIENCE = 120


def echo(address, count, size):
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            peer.sendall(b"x" * size)
            left = size
            while left > 0:
                got = len(peer.recv(left))
                if got == 0:
                    raise RuntimeError("the server has closed the connection")
                left -= got


def instructions(build, engine, count, size):
    """What the server takes from its start to its end, with so many echoes in between."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "callgrind"
        words = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={figures}",
                 f"{build}/examples/echo_server", "--listen=127.0.0.1:0", f"--engine={engine}"]
        with subprocess.Popen(words, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as server:
            first = server.stdout.readline()
            found = re.search(r"listening on (\S+)", first)
            if found is None:
                server.kill()
                raise RuntimeError(f"{build}: no server: {first}{server.stderr.read()}")
            echo(found[1], count, size)
            server.terminate()
            server.communicate(timeout=PATIENCE)
        return int(re.search(r"^(?:totals|summary): (\d+)", figures.read_text(), re.MULTILINE)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("builds", metavar="BUILD", nargs="+")
    parser.add_argument("--size", type=int, default=64, help="bytes of an echo")
    parser.add_argument("--engines", default="epoll,uring")
    options = parser.parse_args()
    for engine in options.engines.split(","):
        first = None
        for build in options.builds:
            few, many = (instructions(build, engine, count, options.size) for count in (FEW, MANY))
            each = (many - few) / (MANY - FEW)
            first = first or each
            print(f"{engine:6} {each:8.0f} instructions  {each / first:.4f}  {build}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
