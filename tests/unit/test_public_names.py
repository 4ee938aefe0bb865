"""The public names: exported, documented, and all of the Rust crate's accounted for."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightning
from lightning import errors

ROOT = Path(__file__).parents[2]
NAMES = (ROOT / "docs" / "names.md").read_text()
CRATE, ERRORS, PYTHON, OURS, BITTENSOR = NAMES.split("\n## ")

# The crate's root, as users of 0.2.15 import it.
RUST = [
    "LightningClient",
    "LightningClientConfig",
    "StreamingResponse",
    "LightningError",
    "is_valid_ip",
    "Metagraph",
    "MetagraphMonitorConfig",
    "NeuronInfo",
    "FINNEY_ENDPOINT",
    "TESTNET_ENDPOINT",
    "typed_handler",
    "typed_async_handler",
    "SynapseHandler",
    "AsyncSynapseHandler",
    "StreamingSynapseHandler",
    "LightningServer",
    "LightningServerConfig",
    "ValidatorPermitResolver",
    "BtWalletSigner",
    "CallbackSigner",
    "Signer",
    "Sr25519Signer",
    "parse_frame_header",
    "HandshakeRequest",
    "HandshakeResponse",
    "MessageType",
    "PeerAddr",
    "QuicAxonInfo",
    "QuicRequest",
    "QuicResponse",
    "SynapsePacket",
    "SynapseResponse",
    "DEFAULT_MAX_FRAME_PAYLOAD",
    "SourceAddressResolver",
    "SourceAllowlist",
    "HandshakeObserver",
]


def rows(section: str) -> list[list[str]]:
    """Return the cells of a section's table, backticks kept."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]


def test_every_name_of_the_crate_has_a_row():
    listed = {re.sub(r".*::", "", row[0].strip("`")) for row in rows(CRATE)}
    assert set(RUST) <= listed


@pytest.mark.parametrize("row", rows(CRATE), ids=lambda row: row[0].strip("`"))
def test_a_row_names_what_is_there(row):
    here = row[1]
    if not here.startswith("`"):
        assert not hasattr(lightning, row[0].strip("`")), "exported before it works?"
    else:
        assert here.strip("`") in lightning.__all__


def test_every_branch_of_the_errors_is_the_peers_builtin():
    for _, here, builtin in rows(ERRORS):
        branch = getattr(errors, here.strip("`"))
        assert issubclass(branch, errors.LightningError)
        assert issubclass(branch, __builtins__[builtin.strip("`")])


def test_every_name_of_the_peers_python_package_is_there():
    for _, here in rows(PYTHON):
        name = re.match(r"`(\w+)`", here)[1]
        assert name in lightning.__all__


def test_every_public_name_is_documented():
    for name in lightning.__all__:
        assert f"`{name}`" in NAMES, name
        value = getattr(lightning, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name


def test_all_is_sorted_and_unique_and_complete():
    assert len(set(lightning.__all__)) == len(lightning.__all__)
    public = {
        name
        for name in dir(lightning)
        if not name.startswith("_") and not inspect.ismodule(getattr(lightning, name))
    }
    assert public == set(lightning.__all__) - {"__version__"}


def test_public_methods_have_docstrings():
    for name in lightning.__all__:
        value = getattr(lightning, name)
        if not inspect.isclass(value) or not value.__module__.startswith("lightning"):
            continue
        for method, member in vars(value).items():
            if not method.startswith("_") and callable(member):
                assert inspect.getdoc(member), f"{name}.{method}"


def test_core_modules_are_the_compiled_ones():
    for source in (ROOT / "lightning" / "_core").rglob("*.pyx"):
        name = ".".join(source.relative_to(ROOT).with_suffix("").parts)
        module = __import__(name, fromlist=["x"])
        assert module.__file__.endswith(".so"), name
        built = Path(module.__file__).stat().st_mtime
        assert built >= source.stat().st_mtime, f"{name} is older than its source"


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_a_layer_knows_only_those_below():
    """`_core.wire` and `_core.quic` import no face; only the engine names aioquic."""
    package = ROOT / "lightning"
    for path in package.rglob("*.py"):
        imported = imports_of(path)
        place = path.relative_to(package).as_posix()
        if any(name.split(".")[0] == "aioquic" for name in imported):
            assert place.startswith("_core/quic/")
        if place.startswith(("_core/wire", "_core/quic")):
            allowed = ("lightning._core", "lightning.errors", "lightning._core.wire")
            for name in imported:
                assert not name.startswith("lightning") or name.startswith(allowed)


def run_python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        **options,
    )


def test_importing_stays_light():
    """No bittensor, numpy, pydantic or wallet is imported on the way."""
    heavy = (
        "{'bittensor', 'bittensor_wallet', 'numpy', 'pydantic', 'substrateinterface', "
        "'scalecodec'}"
    )
    code = f"import lightning, lightning.metagraph, sys; print(sorted({heavy} & set(sys.modules)))"
    done = run_python(code)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_pytorch_lightning_in_our_folder_is_told_at_once(tmp_path):
    package = tmp_path / "lightning"
    package.symlink_to(ROOT / "lightning", target_is_directory=True)
    code = """
import sys, importlib.machinery as m
class Finder:
    def find_spec(name, path=None, target=None):
        if name == "lightning.pytorch":
            return m.ModuleSpec(name, None, is_package=True)
sys.meta_path.insert(0, Finder)
import lightning
"""
    done = run_python(code, cwd=tmp_path)
    assert done.returncode == 1
    assert "ImportError: PyTorch Lightning's files are in the folder" in done.stderr
