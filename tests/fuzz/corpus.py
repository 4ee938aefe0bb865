"""The kept inputs of each target, one archive a target.

Usage: python -m tests.fuzz.corpus unpack|pack TARGET FOLDER, where the target's seeds are
unpacked, too; or run TARGET FILE for one input with the ordinary build.
"""

import hashlib
import importlib
import sys
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"
TARGETS = ("datagrams", "connection", "tls", "parameters", "frames", "messages",
           "exchange", "desk")  # fmt: skip


def inputs(target):
    """Return the kept inputs of a target, and then its seeds."""
    kept = []
    archive = FOLDER / f"{target}.zip"
    if archive.exists():
        with zipfile.ZipFile(archive) as opened:
            kept = [opened.read(name) for name in opened.namelist()]
    return [*kept, *importlib.import_module(f"tests.fuzz.{target}").seeds()]


def unpack(target, folder):
    """Write each input to a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs(target):
        (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)


def pack(target, folder):
    """Keep what is in the folder, the same bytes for the same files."""
    FOLDER.mkdir(exist_ok=True)
    with zipfile.ZipFile(FOLDER / f"{target}.zip", "w", zipfile.ZIP_DEFLATED) as new:
        for path in sorted(folder.iterdir()):
            data = path.read_bytes()
            new.writestr(zipfile.ZipInfo(hashlib.sha1(data).hexdigest()[:12]), data,
                         zipfile.ZIP_DEFLATED, 9)  # fmt: skip


def run(target, file):
    """Do with one input what the fuzzer does."""
    importlib.import_module(f"tests.fuzz.{target}").check(file.read_bytes())


if __name__ == "__main__":
    {"unpack": unpack, "pack": pack, "run": run}[sys.argv[1]](
        sys.argv[2], Path(sys.argv[3])
    )
