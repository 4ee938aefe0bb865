"""Copy files into a folder, keeping their paths; those that are there and equal stay."""

import filecmp
import shutil
import sys
from pathlib import Path

target, *names = sys.argv[1:]
for name in names:
    source, copy = Path(name), Path(target, name)
    if source.is_file() and not (
        copy.exists() and filecmp.cmp(source, copy, shallow=False)
    ):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
