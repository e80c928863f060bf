#!/usr/bin/env python3
"""Runs a command under an older Linux kernel: Debian's own, in a machine that QEMU emulates.

usage: tests/vm/run.py --kernel=6.1|6.12 [--rdma] [--share=DIR]... [--limit=SECONDS] -- COMMAND...

The command sees the files of this machine, runs as root in the current folder, and may write anywhere;
what it writes is lost, but for the folders given as --share. Its output comes out here, its status is
the status of run.py, 128 + N after signal N. Otherwise:
  77   this machine lacks something; the last line, "skipped: ...", says what
  124  ended by the limit, 600 s unless given
  125  the machine did not get as far as the command's end
The kernel image is fetched once with `apt-get download` into --cache (build/vm/kernels, or under
$PENSTOCK_BUILD_ROOT) and is unpacked there, not installed. With --rdma the machine has two RDMA devices,
see rdma.sh.
"""

import argparse
import fcntl
import lzma
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
SKIPPED, LIMIT_REACHED, BROKEN = 77, 124, 125

# Image packages by kernel series. The cloud flavours have no RDMA.
PACKAGES = {
    "6.1": re.compile(r"linux-image-6\.1\.0-(\d+)-amd64"),
    "6.12": re.compile(r"linux-image-6\.12\.(\d+)\+deb12-amd64"),
}
TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "cpio": "cpio",
         "modprobe": "kmod", "depmod": "kmod", "apt-get": "apt", "apt-cache": "apt", "dpkg": "dpkg"}
MODULES = ["virtio_pci", "9pnet_virtio", "9p", "overlay"]
# rdma_rxe asks for crc32 by name when a device is made, which no dependency tells.
RDMA_MODULES = ["crc32_generic", "crc32_pclmul", "rdma_rxe", "ib_uverbs", "rdma_ucm", "veth", "sch_netem"]

COMPLAINT = re.compile(r"WARNING: |BUG: |Oops|general protection|Kernel panic|blocked for more than")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Missing(Exception):
    """Something that this machine lacks."""


class Broken(Exception):
    """The machine cannot be made, or ended too early."""


def tell(text):
    print(f"vm: {text}", file=sys.stderr, flush=True)


def tool(name):
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":" + PATH)
    if path is None:
        raise Missing(f"no {name} here (Debian package {TOOLS[name]})")
    return path


def called(*words, **options):
    """The output of a program; Broken when it fails."""
    done = subprocess.run(words, text=True, capture_output=True, check=False, **options)
    if done.returncode != 0:
        raise Broken(f"{shlex.join(map(str, words))}: {done.stderr.strip() or done.returncode}")
    return done.stdout


# --- The kernel ---


def newest(names, series):
    """The newest image of the series among the package names, None when there is none."""
    found = [match for name in names if (match := PACKAGES[series].fullmatch(name))]
    return max(found, key=lambda match: int(match[1]))[0] if found else None


def offered(series):
    out = called(tool("apt-cache"), "search", "--names-only", f"^linux-image-{re.escape(series)}")
    return newest([line.split(" ")[0] for line in out.splitlines()], series)


def version_of(folder):
    """The kernel's name for itself."""
    return next((folder / "lib/modules").iterdir()).name


def fetch(package, cache):
    """Puts the unpacked image into cache/package."""
    tell(f"fetching {package}")
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetch.") as work:
        called(tool("apt-get"), "-q", "download", package, cwd=work)
        called(tool("dpkg"), "-x", str(next(Path(work).glob("*.deb"))), f"{work}/image")
        image = Path(work) / "image"
        called(tool("depmod"), "-b", str(image), version_of(image))
        image.rename(cache / package)


def update_lists():
    """What apt offers may be gone from its servers since it asked them last."""
    if os.geteuid() == 0:
        tell("apt-get update")
        subprocess.run([tool("apt-get"), "-q", "update"], capture_output=True, check=False)


def provide(series, here, cache):
    """The newest package that apt offers, fetched unless it is `here`. Missing says why there is none."""
    package = offered(series)
    if package is None:
        raise Missing(f"apt offers no Linux {series} image (apt-get update?)")
    if package != here:
        try:
            fetch(package, cache)
        except Broken as error:
            raise Missing(f"cannot fetch {package}: {str(error).splitlines()[-1]}") from None
    return package


def kernel(series, cache):
    """The folder of an unpacked kernel image: the newest that apt offers, else one from before."""
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        here = newest([path.name for path in cache.iterdir()], series)
        try:
            package = provide(series, here, cache)
        except Missing as error:
            if here:
                tell(f"{error}; {here} will do")
                package = here
            else:
                update_lists()
                package = provide(series, here, cache)
        if here and here != package:
            shutil.rmtree(cache / here)
        return cache / package


# --- The machine ---


def modules(image, names):
    """The files of the named modules and of all they need, in the order of loading."""
    files = []
    for name in names:
        out = called(tool("modprobe"), "-d", str(image), "-S", version_of(image), "--show-depends", name)
        files += [line.split()[1] for line in out.splitlines() if line.startswith("insmod ")]
    return [Path(file) for file in dict.fromkeys(files)]


def pack_initramfs(image, names, work):
    """work/initramfs.cpio: busybox, init.sh and the named modules."""
    root = work / "initramfs"
    for folder in ("bin", "dev", "proc", "sys", "root", "lower", "upper", "modules"):
        (root / folder).mkdir(parents=True)
    busybox = tool("busybox")
    if subprocess.run(["ldd", busybox], capture_output=True, check=False).returncode == 0:
        raise Missing("busybox here needs libraries (Debian package busybox-static)")
    shutil.copy(busybox, root / "bin/busybox")
    for applet in called(busybox, "--list").split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    shutil.copy(HERE / "init.sh", root / "init")
    (root / "init").chmod(0o755)
    order = []
    for path in modules(image, names):
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
        order.append(path.name.removesuffix(".xz"))
        (root / "modules" / order[-1]).write_bytes(data)
    (root / "modules/order").write_text("".join(f"{name}\n" for name in order))
    every = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    called(tool("cpio"), "-o", "-H", "newc", "--quiet", "-R", "0:0", "-O", str(work / "initramfs.cpio"),
           cwd=root, input=every)
    shutil.rmtree(root)


def share(tag, folder, *options):
    return ["-virtfs", ",".join([f"local,path={str(folder).replace(',', ',,')}", f"mount_tag={tag}",
                                 "security_model=none", "multidevs=remap", *options])]


def qemu(image, work, shares):
    """The machine's command: the kernel's console into a file, the command's output to stdout."""
    words = [tool("qemu-system-x86_64"), "-nodefaults", "-no-user-config", "-display", "none",
             # KVM is not there in most places where tests run, and two cores show races.
             "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2G", "-no-reboot",
             "-kernel", str(image / "boot" / f"vmlinuz-{version_of(image)}"),
             "-initrd", str(work / "initramfs.cpio"),
             # On a busy machine the timer may be too late for the kernel's test of it, which then panics.
             # 6.1 takes the emulated counter for unreliable, and then reads a clock whose every look leaves
             # the emulated processor.
             "-append", "console=ttyS0 loglevel=5 panic=-1 mitigations=off random.trust_cpu=on "
                        "no_timer_check tsc=reliable clocksource=tsc",
             "-chardev", f"file,id=console,path={work / 'console'}", "-serial", "chardev:console",
             "-chardev", "stdio,id=output,signal=off", "-serial", "chardev:output"]
    words += share("root", "/", "readonly=on") + share("machine", work / "machine")
    for number, folder in enumerate(shares):
        words += share(f"share{number}", folder)
    return words


def write_orders(args, machine):
    """What init.sh reads, in the folder that it shares with us."""
    machine.mkdir()
    (machine / "shares").write_text("".join(f"{folder}\n" for folder in args.share))
    first = f"exec /bin/bash {HERE / 'rdma.sh'} " if args.rdma else "exec "
    (machine / "command").write_text(
        f"export PATH={PATH} HOME=/root TERM=dumb LANG=C.UTF-8\n"
        f"cd {shlex.quote(os.getcwd())} || exit\n{first}{shlex.join(args.command)}\n")


def boot(words, limit):
    """Runs the machine to its end, with its output to ours. Whether it ended within the limit."""
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          start_new_session=True) as machine:
        reached = threading.Event()

        def end():
            reached.set()
            machine.kill()

        timer = threading.Timer(limit, end)
        timer.start()
        try:
            while part := machine.stdout.read1(65536):
                sys.stdout.buffer.write(part)
                sys.stdout.buffer.flush()
            machine.wait()
        finally:
            timer.cancel()
            machine.kill()
    return not reached.is_set()


def tell_complaints(console):
    """Shows what the kernel said in trouble, with some lines after it."""
    lines = console.read_text(errors="replace").splitlines() if console.exists() else []
    first = next((i for i, line in enumerate(lines) if COMPLAINT.search(line)), None)
    if first is not None:
        tell("the kernel complained:\n" + "\n".join(lines[first:first + 40]))


def run(args):
    image = kernel(args.kernel, args.cache)
    with tempfile.TemporaryDirectory(dir=args.cache, prefix="run.") as folder:
        work = Path(folder)
        pack_initramfs(image, MODULES + (RDMA_MODULES if args.rdma else []), work)
        write_orders(args, work / "machine")
        in_time = boot(qemu(image, work, args.share), args.limit)
        console = work / "console"
        tell_complaints(console)
        status = work / "machine/status"
        if status.exists() and (text := status.read_text().strip()):
            return int(text)
        if not in_time:
            tell(f"ended by the limit of {args.limit} s")
            return LIMIT_REACHED
        last = console.read_text(errors="replace").splitlines()[-20:] if console.exists() else []
        raise Broken("the machine ended early; its console's last lines:\n" + "\n".join(last))


def parse(words):
    tree = HERE.parent.parent
    root = Path(os.environ.get("PENSTOCK_BUILD_ROOT", tree / "build"))
    parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", choices=PACKAGES, required=True)
    parser.add_argument("--rdma", action="store_true")
    parser.add_argument("--share", type=Path, action="append", default=[])
    parser.add_argument("--limit", type=float, default=600)
    parser.add_argument("--cache", type=Path, default=root / "vm/kernels")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args(words)
    args.cache = args.cache.resolve()
    args.share = [folder.resolve(strict=True) for folder in args.share]
    return args


def main(words):
    args = parse(words)
    # Ended from outside, the machine must go too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return run(args)
    except Missing as error:
        print(f"skipped: {error}", flush=True)
        return SKIPPED
    except Broken as error:
        tell(str(error))
        return BROKEN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
