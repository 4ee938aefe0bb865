"""Print the dotted names of the compiled modules, for stubtest."""

from pathlib import Path

for source in sorted(Path("lightning").rglob("*.pyx")):
    print(".".join(source.with_suffix("").parts))
