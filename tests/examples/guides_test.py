#!/usr/bin/env python3
"""The programs in the guides compile: guides_test.py COMPILER [FLAGS...]."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent.parent


def main():
    compiler = sys.argv[1:]
    compiled = failed = 0
    for guide in sorted((TREE / "docs/guides").glob("*.md")):
        for block in re.findall(r"^```cpp\n(.*?)^```$", guide.read_text(), re.DOTALL | re.MULTILINE):
            with tempfile.NamedTemporaryFile("w", suffix=".cc") as source:
                source.write(block)
                source.flush()
                done = subprocess.run([*compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror",
                                       f"-I{TREE / 'include'}", "-fsyntax-only", source.name],
                                      text=True, capture_output=True, check=False)
            compiled += 1
            if done.returncode != 0:
                failed += 1
                print(f"{guide.name}: {block.splitlines()[0]} ...\n{done.stderr}")
    print(f"{compiled} programs, {failed} do not compile")
    return 1 if failed or compiled < 4 else 0


if __name__ == "__main__":
    sys.exit(main())
