#!/usr/bin/env python3
"""Checks that read the tree instead of running it, one case per run.

`layers` etc. print one line per offence. `checker` proves that each case can fail: it builds a small
tree with one offence per case and expects exactly that one.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# A layer may include itself and these. `secure` and `rdma` never include each other.
LAYERS = {
    "base": set(),
    "observe": {"base"},
    "buffer": {"base", "observe"},
    "engine": {"base", "observe", "buffer"},
    "transport": {"base", "observe", "buffer", "engine"},
    "secure": {"base", "observe", "buffer", "engine", "transport"},
    "rdma": {"base", "observe", "buffer", "engine", "transport"},
}

# Where a foreign header may be included, as patterns of paths under src/ and include/.
FOREIGN = [
    (re.compile(r"liburing(\.h|/)|linux/io_uring\.h"), re.compile(r"src/engine/uring")),
    (re.compile(r"infiniband/|rdma/(?:rdma|rsocket|ib_)"), re.compile(r"src/rdma/verbs_")),
    (re.compile(r"openssl/"), re.compile(r"src/secure/(openssl|tls)_")),
]
# The record codec names no cryptographic library, nor the files that do.
CODEC = re.compile(r"src/secure/(aead|chain_cursor|cipher_contexts|key_schedule|record_\w+|wipe)\.")
CRYPTOGRAPHY = re.compile(r"secure/(openssl|tls)_")

SYSCALLS = """
socket socketpair bind listen accept accept4 connect shutdown send sendto sendmsg sendmmsg sendfile
recv recvfrom recvmsg recvmmsg getsockopt setsockopt getsockname getpeername read readv write writev
pread pwrite close dup dup2 dup3 pipe pipe2 fcntl ioctl open openat unlink poll ppoll select pselect
epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd timerfd_create
timerfd_settime signalfd mmap munmap madvise mprotect mlock munlock syscall getrlimit setrlimit
clock_gettime gettimeofday nanosleep
""".split()
# What of liburing is io_uring_register(2).
SYSCALLS += [r"io_uring_(?:un)?register\w*", r"io_uring_(?:setup|free)_buf_ring",
             "io_uring_enable_rings"]
RAW_CALL = re.compile(
    r"(?:(?<![\w>])::|(?<![\w.:>~]))(" + "|".join(SYSCALLS) + r")\s*\(")

# What a library that is embedded leaves to its program: threads, signals, what happens at exit, and
# state that no object owns.
HIDDEN = re.compile(
    r"\b(sigaction|signal|sigprocmask|pthread_sigmask|pthread_create|pthread_atfork|fork|vfork|"
    r"atexit|clone3?)\s*\(|"
    r"\bstd::(thread\b(?!::id)|jthread\b|async\b)|\b(thread_local)\b")
# The cache of the loop that runs on this thread: set for the length of a turn, and null outside one.
THREAD_LOCAL = re.compile(
    r"(extern )?constinit thread_local PoolCache\* current_cache( |;|$)")

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
LENGTH_MAX = 600
FOLDERS = ("src", "include", "tests", "examples", "bench")


class Tree:
    """The sources under a root; each case returns its offences."""

    def __init__(self, root):
        self.root = Path(root)

    def files(self, *folders, suffixes=(".h", ".cc")):
        found = []
        for folder in folders:
            found += [p for p in (self.root / folder).rglob("*") if p.suffix in suffixes]
        return sorted(found)

    def name(self, path):
        return str(path.relative_to(self.root))

    def layer_of_public(self, header, seen=()):
        """The layer of <penstock/HEADER>: its source's folder, or the highest that it includes."""
        stem = Path(header).stem
        for layer in LAYERS:
            if any((self.root / "src" / layer / (stem + s)).exists() for s in (".cc", ".h")):
                return layer
        path = self.root / "include/penstock" / header
        highest = "base"
        if header not in seen and path.exists():
            for kind, target in INCLUDE.findall(path.read_text()):
                if kind == "<" and target.startswith("penstock/"):
                    other = self.layer_of_public(target[len("penstock/"):], (*seen, header))
                    if highest in LAYERS[other]:
                        highest = other
        return highest

    def edges(self, path):
        """(line, included text, layer) of every include of our own in `path`."""
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            kind, target = match.groups()
            if kind == "<" and target.startswith("penstock/"):
                yield number, target, self.layer_of_public(target[len("penstock/"):])
            elif kind == '"' and target.split("/")[0] in LAYERS:
                yield number, target, target.split("/")[0]
            elif kind == '"' and "/" not in target:
                yield number, target, None

    def layers(self):
        offences = []
        for path in self.files("src", "include"):
            name = self.name(path)
            public = name.startswith("include/")
            layer = self.layer_of_public(path.name) if public else name.split("/")[1]
            for number, target, other in self.edges(path):
                if public and not target.startswith("penstock/"):
                    offences.append(f"{name}:{number}: a public header includes private {target}")
                elif other is None:
                    offences.append(f'{name}:{number}: write "{layer}/{target}", from src/')
                elif other != layer and other not in LAYERS[layer]:
                    offences.append(f"{name}:{number}: {layer} may not include {other} ({target})")
        for path in self.files("examples"):
            for number, target, other in self.edges(path):
                if other is not None and not target.startswith("penstock/"):
                    offences.append(f"{self.name(path)}:{number}: an example includes {target}, "
                                    "which is not installed")
        return offences

    def foreign_headers(self):
        offences = []
        for path in self.files("src", "include"):
            for _, target in INCLUDE.findall(path.read_text()):
                for header, place in FOREIGN:
                    if header.match(target) and not place.match(self.name(path)):
                        offences.append(f"{self.name(path)}: <{target}> belongs in {place.pattern}")
                if CRYPTOGRAPHY.match(target) and CODEC.match(self.name(path)):
                    offences.append(f"{self.name(path)}: the codec may not include {target}")
        return offences

    def raw_calls(self):
        """System calls are made in src/base/sys.cc alone, where a test can make each one fail; only
        to make a ring and to wait for it the io_uring engine has liburing, behind seams of its own."""
        offences = []
        for path in self.files("src", "include"):
            name = self.name(path)
            if name == "src/base/sys.cc":
                continue
            for number, line in enumerate(code_of(path.read_text()).splitlines(), 1):
                for match in RAW_CALL.finditer(line):
                    offences.append(f"{name}:{number}: raw {match.group(1)}()")
        return offences

    def hidden(self):
        """The library starts no thread, takes no signal, and keeps nothing that a thread owns."""
        offences = []
        for path in self.files("src", "include"):
            name = self.name(path)
            for number, line in enumerate(code_of(path.read_text()).splitlines(), 1):
                for match in HIDDEN.finditer(line):
                    if name.startswith("src/buffer/pool_cache.") and THREAD_LOCAL.match(line):
                        continue
                    what = next(group for group in match.groups() if group)
                    offences.append(f"{name}:{number}: {what}: threads, signals and thread-local "
                                    "state are the program's")
        return offences

    def length(self):
        offences = []
        for path in self.files(*FOLDERS):
            lines = path.read_text().count("\n")
            if lines > LENGTH_MAX:
                offences.append(f"{self.name(path)}: {lines} lines, at most {LENGTH_MAX}")
        return offences

    def headers(self):
        """A header opens with a paragraph of contract and has the guard of its path."""
        offences = []
        for path in self.files("src", "include"):
            if path.suffix != ".h":
                continue
            name = self.name(path)
            text = path.read_text()
            if not text.startswith("//"):
                offences.append(f"{name}: does not open with a paragraph that says what it owns")
            inside = name.split("/", 1)[1]
            if not inside.startswith("penstock/"):
                inside = "penstock/" + inside
            guard = re.sub(r"[/.]", "_", inside).upper() + "_"
            if f"#ifndef {guard}\n#define {guard}\n" not in text:
                offences.append(f"{name}: its include guard is not {guard}")
            if "include/" in name and re.search(r"absl::(string_view|optional|Span)\b", code_of(text)):
                offences.append(f"{name}: use std::string_view, std::optional and std::span")
        return offences

    def invariants(self):
        """Every invariant that is cited exists, and is spelt the one way that grep finds: I4."""
        document = self.root / "docs/invariants.md"
        if not document.exists():
            return None
        known = set(re.findall(r"\bI(\d+)\b", document.read_text()))
        offences = []
        for path in self.files(*FOLDERS):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                where = f"{self.name(path)}:{number}"
                for cited in re.findall(r"\bI(\d+)\b", line):
                    if cited not in known:
                        offences.append(f"{where}: I{cited} is not in docs/invariants.md")
                for wrong in re.findall(r"\b(?:[Ii]nvariant [#I-]*\d+|I[-_ #]\d+|INV\d+)\b", line):
                    if not re.fullmatch(r"[Ii]nvariant I\d+", wrong):
                        offences.append(f"{where}: '{wrong}': cite invariants as I<number>")
        return offences

    def marks(self):
        """No unfinished marks; no test that waits by the clock or cannot be repeated."""
        offences = []
        for path in self.files(*FOLDERS, "cmake", suffixes=(".h", ".cc", ".sh", ".cmake", ".py")):
            if path.name == Path(__file__).name:
                continue
            name = self.name(path)
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line):
                    offences.append(f"{name}:{number}: an unfinished mark")
                if name.startswith("tests/") and path.suffix in (".h", ".cc") and re.search(
                        r"\b(sleep_for|sleep_until|usleep|SleepFor|random_device|DISABLED_\w+)\b|"
                        r"(?<![\w.:>])s?rand\(|EXPECT_TRUE\(true\)", line):
                    offences.append(f"{name}:{number}: tests neither sleep, nor draw unseeded "
                                    "numbers, nor hide")
        return offences

    def format(self):
        tool = next((t for t in ("clang-format-14", "clang-format") if shutil.which(t)), None)
        if tool is None:
            return None
        files = self.files(*FOLDERS)
        if not files:
            return []
        done = subprocess.run([tool, "--dry-run", "-Werror", "--style=file", *files], text=True,
                              capture_output=True, check=False, cwd=self.root)
        return [] if done.returncode == 0 else done.stderr.splitlines()


def code_of(text):
    """The text without comments and string literals, line numbers kept."""
    def blank(match):
        return re.sub(r"[^\n]", " ", match.group(0))
    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', blank, text, flags=re.DOTALL)


SKIP_REASONS = {
    "invariants": "docs/invariants.md does not exist",
    "format": "clang-format is not installed",
}
CASES = ("layers", "foreign_headers", "raw_calls", "hidden", "length", "headers", "invariants", "marks",
         "format")

# (case, path, text, words of the one offence), on top of the clean tree below.
OFFENCES = [
    ("layers", "src/buffer/a.cc", '#include "engine/loop.h"\n', "buffer may not include engine"),
    ("layers", "src/base/a.cc", "#include <penstock/stream.h>\n", "base may not include transport"),
    ("layers", "src/base/a.cc", '#include "observe/log.h"\n', "base may not include observe"),
    ("layers", "src/secure/a.cc", '#include "rdma/gate.h"\n', "secure may not include rdma"),
    ("layers", "src/base/a.cc", '#include "sys.h"\n', 'write "base/sys.h"'),
    ("layers", "include/penstock/a.h", '#include "base/sys.h"\n', "includes private base/sys.h"),
    ("layers", "examples/a.cc", '#include "base/sys.h"\n', "which is not installed"),
    ("layers", "src/transport/a.cc", '#include "secure/record_opener.h"\n',
     "transport may not include secure"),
    ("foreign_headers", "src/engine/loop.cc", "#include <liburing.h>\n", "belongs in"),
    ("foreign_headers", "src/secure/record_opener.cc", "#include <openssl/evp.h>\n", "belongs in"),
    ("foreign_headers", "src/secure/record_opener.cc", '#include "secure/openssl_aead.h"\n',
     "the codec may not include"),
    ("foreign_headers", "include/penstock/a.h", "#include <openssl/evp.h>\n", "belongs in"),
    ("foreign_headers", "src/rdma/pump.cc", "#include <infiniband/verbs.h>\n", "belongs in"),
    ("foreign_headers", "src/rdma/pump.cc", "#include <rdma/rdma_cma.h>\n", "belongs in"),
    ("raw_calls", "src/engine/epoll.cc", "int f() { return ::close(3); }\n", "raw close()"),
    ("raw_calls", "src/engine/uring_a.cc", "int f() { return syscall(1); }\n", "raw syscall()"),
    ("raw_calls", "src/engine/epoll.cc", "int f() { return recv (3, 0, 0, 0); }\n", "raw recv()"),
    ("raw_calls", "src/engine/uring_a.cc", "int f() { return io_uring_register_eventfd(r, 3); }\n",
     "raw io_uring_register_eventfd()"),
    ("raw_calls", "src/engine/uring_a.cc", "int f() { return io_uring_setup_buf_ring(r); }\n",
     "raw io_uring_setup_buf_ring()"),
    ("hidden", "src/engine/a.cc", "void f() { sigaction(1, nullptr, nullptr); }\n", "sigaction"),
    ("hidden", "src/engine/a.cc", "void f() { ::signal(SIGPIPE, SIG_IGN); }\n", "signal"),
    ("hidden", "src/rdma/a.cc", "int f() { return pthread_create(a, b, c, d); }\n",
     "pthread_create"),
    ("hidden", "src/transport/a.cc", "std::thread resolver_;\n", "thread"),
    ("hidden", "src/transport/a.cc", "auto f = std::async([] {});\n", "async"),
    ("hidden", "include/penstock/a.h", "inline thread_local int depth = 0;\n", "thread_local"),
    ("hidden", "src/buffer/pool_cache.cc", "thread_local int depth = 0;\n", "thread_local"),
    ("length", "src/base/a.cc", "\n" * 601, "601 lines"),
    ("headers", "src/base/a.h", "#ifndef PENSTOCK_BASE_A_H_\n#define PENSTOCK_BASE_A_H_\n#endif\n",
     "does not open with a paragraph"),
    ("headers", "src/base/a.h", "// Owns.\n#ifndef A_H\n#define A_H\n#endif\n", "include guard"),
    ("headers", "include/penstock/a.h",
     "// Owns.\n#ifndef PENSTOCK_A_H_\n#define PENSTOCK_A_H_\nvoid f(absl::string_view);\n#endif\n",
     "use std::string_view"),
    ("invariants", "src/base/a.cc", "// I12 holds.\n", "I12 is not in"),
    ("invariants", "src/base/a.cc", "// See invariant 3.\n", "cite invariants as"),
    ("marks", "src/base/a.cc", "// TO" "DO\n", "unfinished"),
    ("marks", "tests/base/a_test.cc", "usleep(3);\n", "neither sleep"),
    ("format", "src/base/a.cc", "int  f( );\n", "clang-format-violations"),
]
CLEAN = {
    ".clang-format": "BasedOnStyle: Google\n",
    "docs/invariants.md": "I1 an idle stream holds no Buffer.\n",
    "src/base/sys.cc": "int f() { return ::close(3); }\n",
    "src/base/thread.cc": "std::thread::id id;\nvoid f() { std::this_thread::yield(); }\n"
                          "void g(P* p) { p->on_signal(3); }\n",
    "src/buffer/pool_cache.cc": "constinit thread_local PoolCache* current_cache = nullptr;\n",
    "src/base/b.cc": '#include "base/sys.h"\n// I1: close() is not called here.\n',
    "src/engine/uring_engine.cc": "#include <liburing.h>\nint g(S* s) { return s->close(3); }\n"
                                  "int h() { return io_uring_submit(r); }\n",
    "src/transport/stream.cc": '#include <penstock/stream.h>\n\n#include "absl/status/status.h"\n'
                               '#include "engine/loop.h"\n',
    "src/observe/log.cc": '#include "base/sys.h"\n',
    "src/rdma/verbs_fabric.cc": '#include <infiniband/verbs.h>\n\n#include "rdma/fabric.h"\n',
    "src/secure/openssl_aead.cc": '#include <openssl/evp.h>\n\n#include "transport/stream.h"\n',
    "include/penstock/stream.h":
        "// A stream.\n#ifndef PENSTOCK_STREAM_H_\n#define PENSTOCK_STREAM_H_\n#endif\n",
}


def write(root, files):
    for name, text in files.items():
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def checker():
    failures = []
    with tempfile.TemporaryDirectory() as root:
        write(root, CLEAN)
        for case in CASES:
            found = getattr(Tree(root), case)()
            if found:
                failures.append(f"{case} finds in a clean tree: {found}")
    for case, path, text, words in OFFENCES:
        with tempfile.TemporaryDirectory() as root:
            write(root, CLEAN)
            write(root, {path: text})
            found = getattr(Tree(root), case)()
            if found is not None and not (found and words in found[0]):
                failures.append(f"{case} on {path}: '{words}' expected, found {found}")
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=[*CASES, "checker", "all"])
    parser.add_argument("--root", default=str(Path(__file__).resolve().parent.parent.parent))
    args = parser.parse_args()
    tree = Tree(args.root)
    status = 0
    for case in [*CASES, "checker"] if args.case == "all" else [args.case]:
        found = checker() if case == "checker" else getattr(tree, case)()
        if found is None:
            print(f"skipped: {SKIP_REASONS[case]}")
            status = status or 77
        elif found:
            print("\n".join(found))
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
