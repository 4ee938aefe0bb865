"""What the documents say is what the code does."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightning import LightningClientConfig, LightningServerConfig

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("number", "config"), [(1, LightningClientConfig), (2, LightningServerConfig)]
)
def test_the_table_of_limits_is_complete_and_has_the_defaults(number, config):
    section = (ROOT / "docs" / "limits.md").read_text().split("\n## ")[number]
    listed = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", section, re.MULTILINE))
    fields = {field.name: str(field.default) for field in dataclasses.fields(config)}
    assert listed == fields


def run(*args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        # This tree's package, and not one that is installed from elsewhere.
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_readmes_examples_run():
    quic, subnet = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert run("-c", quic).startswith("{'n': 1} ")
    wallet = (
        "from lightning import Sr25519Signer\n"
        "wallet = Sr25519Signer.from_seed(bytes(32))\n"
    )
    here = subnet.replace("port=8091", "port=0, external_ip='127.0.0.1'")
    assert here != subnet
    assert run("-c", wallet + here).startswith("42 Success 0.")


@pytest.mark.parametrize(
    "example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem
)
def test_the_examples_run(example):
    assert run(str(example))


def test_local_links_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
