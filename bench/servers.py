"""The servers that the benches compare: how each is started, and the machine they ran on.

Shared by the runners. Python standard library only.
"""

import os
import platform
import resource
import selectors
import subprocess
import sys
import time

# Name -> program and its arguments. Peers take PORT as their last argument; Penstock's own example
# takes flags. All print `listening on ADDRESS` as their first line.
TABLE = {
    "raw-epoll": ["raw_epoll", "--mode=lt", "0"],
    "raw-epoll-et": ["raw_epoll", "--mode=et", "0"],
    "raw-uring-direct": ["raw_uring", "--mode=direct", "0"],
    "raw-uring-sqe": ["raw_uring", "--mode=sqe", "0"],
    "raw-uring-poll": ["raw_uring", "--mode=poll", "0"],
    "asio": ["asio_echo", "0"],
    "libuv": ["libuv_echo", "0"],
    "penstock-epoll": ["echo_server", "--listen=127.0.0.1:0", "--engine=epoll", "--loops=1"],
    "penstock-uring": ["echo_server", "--listen=127.0.0.1:0", "--engine=uring", "--loops=1"],
}

# Where a program may lie below the directory given as --bin-dir.
SUBDIRECTORIES = ["", "bench", "examples", "bin"]
START_SECONDS = 180
STOP_SECONDS = 180


class BenchError(Exception):
    """Something that the person running the bench has to know; its text says what."""


def find_program(name, bin_dirs):
    """The path of an executable below one of `bin_dirs`, or None."""
    for directory in bin_dirs:
        for below in SUBDIRECTORIES:
            path = os.path.join(directory, below, name)
            if os.path.isfile(path) and os.access(path, os.X_OK):
                return os.path.abspath(path)
    return None


def add_common_arguments(parser):
    """Where programs are, and where results go."""
    parser.add_argument("--bin-dir", action="append", default=[], metavar="DIR",
                        help="build directory with the programs, may be repeated "
                             "(default: build/release, build)")
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"),
                        help="date to record with the results (default: today)")
    parser.add_argument("--out", metavar="FILE", help="write everything measured as JSON")


def add_arguments(parser):
    """The options of a bench of the servers in TABLE."""
    add_common_arguments(parser)
    parser.add_argument("--servers", metavar="NAME,...",
                        help="servers to compare (default: all that are built) out of "
                             + ", ".join(TABLE))
    parser.add_argument("--server", action="append", default=[], metavar="NAME=COMMAND",
                        help="one more server: a command that prints `listening on ADDRESS`")


def bin_dirs(args):
    return args.bin_dir or ["build/release", "build"]


def choose(args):
    """Name -> command line of the servers to run, from the parsed options.

    A server named explicitly must exist; by default those that are not built are left out, and
    their names returned second.
    """
    directories = bin_dirs(args)
    commands = {}
    missing = []
    wanted = args.servers.split(",") if args.servers is not None else list(TABLE)
    for name in filter(None, wanted):
        if name not in TABLE:
            raise BenchError(f"server '{name}' is not known; there are {', '.join(TABLE)}")
        program = find_program(TABLE[name][0], directories)
        if program is not None:
            commands[name] = [program] + TABLE[name][1:]
        elif args.servers is not None:
            raise BenchError(f"server '{name}': no program {TABLE[name][0]} below "
                             f"{', '.join(directories)}; build it or give --bin-dir")
        else:
            missing.append(name)
    for extra in args.server:
        name, equals, command = extra.partition("=")
        if not name or not equals or not command.split():
            raise BenchError(f"--server={extra}: expected NAME=COMMAND")
        commands[name] = command.split()
    generator = find_program("loadgen", directories)
    if generator is None:
        raise BenchError(f"no program loadgen below {', '.join(directories)}; build the benches "
                         "(PENSTOCK_BENCH=ON) or give --bin-dir")
    if not commands:
        raise BenchError(f"no server to run below {', '.join(directories)}")
    return commands, missing, generator


def raise_file_limit():
    """Raises the soft limit on open files, which children inherit, and returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def pinned(cpu):
    """A preexec function that pins the child to `cpu` (None: leaves it alone)."""
    if cpu is None:
        return None
    return lambda: os.sched_setaffinity(0, {cpu})


def read_line(stream, seconds, what):
    """One line of a child's output, or a BenchError after `seconds`."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        if not selector.select(seconds):
            raise BenchError(f"{what}: no output for {seconds} s")
    line = stream.readline()
    if not line:
        raise BenchError(f"{what}: ended without output")
    return line.strip()


class Server:
    """A running server; a context manager that ends it. With `complaints`, a file, what it says on
    stderr goes there."""

    def __init__(self, name, command, cpu=None, complaints=None):
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=complaints, text=True, bufsize=1,
                                        preexec_fn=pinned(cpu))
        self.pid = self.process.pid
        try:
            line = read_line(self.process.stdout, START_SECONDS, name)
            words = line.split()
            if words[:2] != ["listening", "on"] or len(words) < 3:
                raise BenchError(f"{name}: first line is '{line}', expected 'listening on ADDRESS'")
            self.address = words[2]
        except BenchError:
            self.stop()
            raise

    def stop(self):
        """Ends the server by SIGTERM, by SIGKILL if that does not help; its exit status."""
        self.process.terminate()
        try:
            self.process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Spinner:
    """A program that never waits, on one processor; a context manager that ends it.

    Whoever else runs there without a niceness has `share` of the processor: by the weights of
    Linux's scheduler 1024 of 1024 + 1024, or of 1024 + 110.
    """
    NICENESS = {0.5: 0, 0.9: 10}

    def __init__(self, cpu, share):
        self.process = subprocess.Popen(
            ["nice", "-n", str(self.NICENESS[share]), sys.executable, "-c", "while True: pass"],
            preexec_fn=pinned(cpu))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def machine():
    """What the results depend on: kernel, processor, and how TCP paces itself."""
    model = platform.processor() or platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    with open("/proc/sys/net/ipv4/tcp_congestion_control", encoding="ascii") as file:
        congestion = file.read().strip()
    return {"kernel": platform.release(), "cpu": model, "cpus": os.cpu_count(),
            "congestion_control": congestion}


def machine_line(facts, date):
    """The machine in one line, for tables and plots."""
    return (f"{facts['cpus']} x {facts['cpu']}, Linux {facts['kernel']}, "
            f"TCP {facts['congestion_control']}, {date}")
