#!/usr/bin/env python3
"""Tests of the installed package, one case per run; CMakeLists.txt beside this file registers them.

Each case builds a separate program against Penstock the way a stranger would. The library is installed
by two fixture cases, install_static and install_shared, into <work>/static and <work>/shared.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TREE = HERE.parent.parent
JOBS = "2"


class Failure(Exception):
    """A case that did not hold; the text says what was expected."""


def run(command, expect_failure=False, cwd=None, env=None):
    """Runs a command and returns its output; raises Failure when it ends the other way."""
    command = [str(word) for word in command]
    done = subprocess.run(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False)
    if (done.returncode != 0) != expect_failure:
        wanted = "a failure" if expect_failure else "success"
        raise Failure(f"{wanted} expected, status {done.returncode} of: "
                      f"{' '.join(command)}\n{done.stdout}")
    return done.stdout


def expect(condition, text):
    if not condition:
        raise Failure(text)


class Package:
    """The cases. `args` are the command line's: the compiler, the work folder, the main build."""

    def __init__(self, args):
        self.args = args
        self.work = Path(args.work)

    def prefix(self, kind):
        return self.work / kind

    def fresh(self, name):
        """An empty folder for one case."""
        path = self.work / "cases" / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def configure(self, source, build, *options, expect_failure=False, env=None):
        return run(["cmake", "-S", source, "-B", build, "-G", "Ninja",
                    f"-DCMAKE_CXX_COMPILER={self.args.cxx}",
                    f"-DCMAKE_CXX_COMPILER_LAUNCHER={self.args.launcher}",
                    f"-DCMAKE_BUILD_TYPE={self.args.build_type}", *options],
                   expect_failure=expect_failure, env=env)

    def build(self, build):
        return run(["cmake", "--build", build, "-j", JOBS])

    def quickly(self):
        """Options for another build of the library: with the main build's flags, so that a compiler
        cache has most of it, else as few translation units."""
        return ["-DPENSTOCK_WERROR=ON"] if self.args.launcher else ["-DCMAKE_UNITY_BUILD=ON"]

    def unoptimised(self):
        """For what is looked at and hardly run: it compiles in half the time."""
        return f"-DCMAKE_CXX_FLAGS_{self.args.build_type.upper()}=-O0 -DNDEBUG"

    # The library is built as users build it, without tests. The main build is taken where it already
    # has the kind asked for.
    def install(self, kind):
        shutil.rmtree(self.prefix(kind), ignore_errors=True)
        build = Path(self.args.main_build)
        if self.args.main_kind != kind:
            build = self.work / f"build-{kind}"
            self.configure(TREE, build, *LIBRARY_ONLY, "-DCMAKE_UNITY_BUILD=ON", self.unoptimised(),
                           f"-DBUILD_SHARED_LIBS={'ON' if kind == 'shared' else 'OFF'}")
            self.build(build)
        run(["cmake", "--install", build, "--prefix", self.prefix(kind)])

    def install_static(self):
        self.install("static")

    def install_shared(self):
        self.install("shared")
        out = run(["readelf", "-d", library(self.prefix("shared"))])
        version = header_version()
        soname = "libpenstock.so." + ".".join(version.split(".")[:2])
        expect(f"[{soname}]" in out, f"the shared library's SONAME is not {soname}:\n{out}")

    def consume(self, name, *options):
        """Configures, builds and runs the consumer; returns the compile command of its source."""
        build = self.fresh(name)
        self.configure(HERE / "consumer", build, *options)
        self.build(build)
        self.check_output(run([build / "consumer"]))
        commands = json.loads((build / "compile_commands.json").read_text())
        return next(c["command"] for c in commands if c["file"].endswith("consumer/main.cc"))

    def check_output(self, out):
        wanted = f"penstock {header_version()}: there and back"
        expect(wanted in out, f"'{wanted}' expected of the consumer, which printed: {out}")

    def check_flags(self, command):
        """Nothing of Penstock's own build may be in a consumer's compile command."""
        leaked = [word for word in command.split()
                  if re.match(r"-W|-fvisib|-fsanit|-fno-|-pedantic|--coverage|-DPENSTOCK_HAVE", word)
                  or (word.startswith("-I") and word.endswith("/src"))]
        expect(not leaked, f"flags that reach consumers: {leaked}\nin: {command}")
        expect("-std=gnu++20" in command or "-std=c++20" in command,
               f"the package does not ask for C++20: {command}")

    def find_package_static(self):
        command = self.consume("find_static", f"-DCMAKE_PREFIX_PATH={self.prefix('static')}")
        self.check_flags(command)
        expect("-DPENSTOCK_SHARED" not in command, "the static package defines PENSTOCK_SHARED")

    def find_package_shared(self):
        command = self.consume("find_shared", f"-DCMAKE_PREFIX_PATH={self.prefix('shared')}")
        self.check_flags(command)
        expect("-DPENSTOCK_SHARED" in command, "the shared package lacks PENSTOCK_SHARED")

    def add_subdirectory(self):
        self.check_flags(self.consume("subdirectory", *self.quickly(),
                                      f"-DPENSTOCK_TREE={TREE}"))

    def pkg_config_program(self, name, prefix, *pkg_config_options):
        build = self.fresh(name)
        env = pkg_config_env(prefix)
        flags = run(["pkg-config", "--cflags", "--libs", *pkg_config_options, "penstock"],
                    env=env).split()
        expect(run(["pkg-config", "--modversion", "penstock"], env=env).strip() == header_version(),
               "the pkg-config file has another version than the header")
        run([*self.launcher(), self.args.cxx, "-std=c++20", HERE / "consumer/main.cc", *flags,
             "-o", build / "consumer"])
        run_env = dict(os.environ, LD_LIBRARY_PATH=str(library(prefix).parent))
        self.check_output(run([build / "consumer"], env=run_env))

    def launcher(self):
        return [self.args.launcher] if self.args.launcher else []

    def pkg_config_static(self):
        self.pkg_config_program("pc_static", self.prefix("static"))

    def pkg_config_shared(self):
        self.pkg_config_program("pc_shared", self.prefix("shared"))

    def relocated(self):
        for kind in ("static", "shared"):
            moved = self.fresh(f"moved_{kind}") / "another place"
            shutil.copytree(self.prefix(kind), moved, symlinks=True)
            for path in moved.rglob("*"):
                if path.suffix in (".cmake", ".pc"):
                    text = path.read_text()
                    for place in (self.prefix(kind), TREE, Path(self.args.main_build)):
                        expect(str(place) not in text, f"{path} names {place}")
            self.consume(f"relocated_{kind}", f"-DCMAKE_PREFIX_PATH={moved}")

    def installed_headers(self):
        """The names of those that this build has, as programs include them, and its flags."""
        include = self.prefix("static") / "include"
        flags = run(["pkg-config", "--cflags", "penstock"],
                    env=pkg_config_env(self.prefix("static"))).split()
        headers = sorted(include.rglob("*.h"))
        expect(headers, f"no headers under {include}")
        if "-DPENSTOCK_NO_SECURE" in flags:
            # They refuse in as many words; see without_secure.
            headers = [h for h in headers if not needs_secure(h, include)]
        if "-DPENSTOCK_NO_RDMA" in flags:
            headers = [h for h in headers if not h.name.startswith("rdma")]
        print(f"{len(headers)} headers")
        return [str(header.relative_to(include)) for header in headers], flags

    def compile_headers(self, compiler, source, names, flags):
        # Twice, so that a missing include guard shows too.
        source.write_text("".join(f"#include <{name}>\n" for name in (*names, *names)))
        run([compiler, "-std=c++20", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror", *flags,
             "-fsyntax-only", source])

    def headers_gcc(self):
        """Every installed header compiles alone, without a warning, in a program of any taste."""
        scratch = self.fresh("headers_gcc")
        names, flags = self.installed_headers()
        for name in names:
            source = scratch / (name.replace("/", "_") + ".cc")
            self.compile_headers("g++", source, [name], flags)

    def headers_clang(self):
        """All together do with clang, the last first."""
        compiler = next((c for c in ("clang++-14", "clang++") if shutil.which(c)), None)
        if compiler is None:
            skip("clang is not installed")
        names, flags = self.installed_headers()
        self.compile_headers(compiler, self.fresh("headers_clang") / "all.cc", names[::-1], flags)

    def symbols(self):
        """The shared library exports public names of its namespace and nothing else."""
        out = run(["nm", "--dynamic", "--defined-only", "--demangle",
                   library(self.prefix("shared"))])
        names = [line.split(maxsplit=2)[2] for line in out.splitlines() if len(line.split()) > 2]
        ours = re.compile(r"^((vtable|typeinfo|typeinfo name|guard variable|VTT) for |"
                          r"(non-virtual|virtual) thunk to )?penstock::")
        foreign = [name for name in names if not ours.match(name)]
        internal = [name for name in names if "penstock::v0::internal" in name.split("(")[0]]
        expect(any("penstock::v0::Version()" in name for name in names), f"no Version() in:\n{out}")
        expect(not foreign, "exported from outside the namespace:\n" + "\n".join(foreign))
        expect(not internal, "internal names are exported:\n" + "\n".join(internal))
        print(f"{len(names)} exported symbols")

    def components(self):
        """Components that are in are found; others say why they are not."""
        prefix = f"-DCMAKE_PREFIX_PATH={self.prefix('static')}"
        consumer = HERE / "consumer"

        def found(*options):
            return self.configure(consumer, self.fresh("components"), prefix, *options)

        def refused(*options):
            return flat(self.configure(consumer, self.fresh("components"), prefix, *options,
                                       expect_failure=True))

        built = [name for name in self.args.components.split(",") if name]
        for name in built:
            expect(f"penstock_{name}_FOUND=TRUE" in found(f"-DCOMPONENTS={name}"),
                   f"component {name} is in the build and was not found")
        for name in sorted({"uring", "secure", "rdma", "verbs"} - set(built)):
            out = refused(f"-DCOMPONENTS={name}")
            expect(f"component '{name}': this Penstock was built without it" in out, out)
            out = found(f"-DOPTIONAL_COMPONENTS={name}")
            expect("penstock_FOUND=1" in out and f"penstock_{name}_FOUND=FALSE" in out, out)
        out = refused("-DCOMPONENTS=teleport")
        expect("component 'teleport': this Penstock knows only uring, secure, rdma and verbs" in out, out)
        major, minor, _ = header_version().split(".")
        found(f"-DVERSION={major}.{minor}")
        refused(f"-DVERSION={major}.{int(minor) + 1}")

    def options(self):
        """Feature options that cannot be met stop the configuration and name the reason."""
        def refused(*options, env=None):
            return flat(self.configure(TREE, self.fresh("options"), *LIBRARY_ONLY, *options,
                                       expect_failure=True, env=env))

        out = refused("-DPENSTOCK_RDMA=ON", "-DCMAKE_DISABLE_FIND_PACKAGE_OpenSSL=ON",
                      "-DCMAKE_DISABLE_FIND_PACKAGE_PkgConfig=ON")
        expect("PENSTOCK_RDMA=ON, but pkg-config was not found, which finds libibverbs" in out, out)
        out = refused("-DPENSTOCK_URING=ON", "-DCMAKE_DISABLE_FIND_PACKAGE_OpenSSL=ON",
                      "-DCMAKE_DISABLE_FIND_PACKAGE_PkgConfig=ON")
        expect("PENSTOCK_URING=ON, but pkg-config was not found, which finds liburing" in out, out)
        without = dict(os.environ, PKG_CONFIG_LIBDIR=str(self.fresh("no_pkg_config_files")))
        out = refused("-DPENSTOCK_URING=ON", env=without)
        expect("PENSTOCK_URING=ON, but liburing >= 2.3 was not found by pkg-config" in out, out)
        out = refused("-DPENSTOCK_SECURE=ON", "-DCMAKE_DISABLE_FIND_PACKAGE_OpenSSL=ON")
        expect("PENSTOCK_SECURE=ON, but OpenSSL >= 3 was not found" in out, out)
        out = refused("-DPENSTOCK_URING=maybe")
        expect("PENSTOCK_URING is 'maybe': AUTO, ON and OFF are accepted" in out, out)
        out = refused("-DPENSTOCK_SANITIZE=magic")
        expect("PENSTOCK_SANITIZE is 'magic'" in out, out)

    def without(self, component):
        """The library without a component: builds, runs, and its package says that it has none.
        Returns where it is installed."""
        build = self.work / f"build-no-{component}"
        prefix = self.fresh(f"no_{component}_prefix")
        self.configure(TREE, build, *LIBRARY_ONLY, *self.quickly(),
                       f"-DPENSTOCK_{component.upper()}=OFF")
        self.build(build)
        run(["cmake", "--install", build, "--prefix", prefix])
        self.consume(f"no_{component}", f"-DCMAKE_PREFIX_PATH={prefix}")
        out = flat(self.configure(HERE / "consumer", self.fresh(f"no_{component}_component"),
                                  f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCOMPONENTS={component}",
                                  expect_failure=True))
        expect(f"component '{component}': this Penstock was built without it" in out, out)
        return prefix

    def refuses(self, header, prefix, text):
        """A program that includes `header` does not compile, and is told why."""
        source = self.fresh(f"refused_{Path(header).stem}") / "main.cc"
        source.write_text(f"#include <penstock/{header}>\n")
        flags = run(["pkg-config", "--cflags", "penstock"], env=pkg_config_env(prefix)).split()
        out = run([self.args.cxx, "-std=c++20", *flags, "-fsyntax-only", source],
                  expect_failure=True)
        expect(text in out, out)

    def without_uring(self):
        config = pkg_config_file(self.without("uring"))
        expect("liburing" not in config, "the pkg-config file asks for liburing")

    def without_secure(self):
        prefix = self.without("secure")
        config = pkg_config_file(prefix)
        expect("ssl" not in config and "crypto" not in config,
               "the pkg-config file asks for OpenSSL")
        self.refuses("record_protocol.h", prefix, "this Penstock was built without sealed streams")

    def without_rdma(self):
        prefix = self.without("rdma")
        expect("ibverbs" not in pkg_config_file(prefix), "the pkg-config file asks for libibverbs")
        self.refuses("rdma.h", prefix, "This build of Penstock has no component rdma.")
        out = flat(self.configure(HERE / "consumer", self.fresh("no_verbs_component"),
                                  f"-DCMAKE_PREFIX_PATH={prefix}", "-DCOMPONENTS=verbs",
                                  expect_failure=True))
        expect("component 'verbs': this Penstock was built without it" in out, out)

    def examples(self):
        """The example programs build from the installed tree, and each explains itself."""
        build = self.work / "build-examples"
        self.configure(TREE / "examples", build, self.unoptimised(),
                       f"-DCMAKE_PREFIX_PATH={self.prefix('static')}")
        self.build(build)
        programs = [p.stem for p in sorted((TREE / "examples").glob("*.cc"))
                    if not p.stem.endswith("_common")]
        expect(programs, "examples/ holds no program")
        for program in programs:
            # absl's --help ends with status 1.
            done = subprocess.run([build / program, "--help"], text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, check=False)
            expect(done.returncode in (0, 1) and program in done.stdout,
                   f"{program} --help: status {done.returncode}\n{done.stdout}")
        print(f"{len(programs)} programs")


LIBRARY_ONLY = ["-DPENSTOCK_TESTS=OFF", "-DPENSTOCK_BENCH=OFF", "-DPENSTOCK_EXAMPLES=OFF"]


def header_version():
    text = (TREE / "include/penstock/version.h").read_text()
    return ".".join(re.findall(r"#define PENSTOCK_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text))


def library(prefix):
    found = [*prefix.rglob("libpenstock.so"), *prefix.rglob("libpenstock.a")]
    expect(found, f"no library under {prefix}")
    return found[0]


def pkg_config_file(prefix):
    return (library(prefix).parent / "pkgconfig/penstock.pc").read_text()


def pkg_config_env(prefix):
    return dict(os.environ, PKG_CONFIG_PATH=str(library(prefix).parent / "pkgconfig"))


def flat(text):
    """CMake wraps its messages; compare them on one line."""
    return re.sub(r"\s+", " ", text)


def needs_secure(header, include):
    """Whether a header is of sealed streams: all of those include record_protocol.h."""
    if header.name == "record_protocol.h":
        return True
    inner = re.findall(r"#include <(penstock/\S+)>", header.read_text())
    return any(needs_secure(include / name, include) for name in inner)


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case")
    parser.add_argument("--work", required=True, help="folder for everything that is built")
    parser.add_argument("--main-build", required=True, help="build folder of the tree")
    parser.add_argument("--main-kind", required=True, help="static or shared: what it built")
    parser.add_argument("--components", default="", help="components of the main build")
    parser.add_argument("--cxx", required=True)
    parser.add_argument("--launcher", default="")
    parser.add_argument("--build-type", default="Release")
    args = parser.parse_args()
    try:
        getattr(Package(args), args.case)()
    except Failure as failure:
        print(failure)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
