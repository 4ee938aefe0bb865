"""Extensions and build switches; everything else is in pyproject.toml.

Switches, each an environment variable set to 1:

* ``LIGHTNING_DEBUG``: extra checks, no optimisation.
* ``LIGHTNING_TRACE``: line tracing for coverage of Cython code.
* ``LIGHTNING_SANITIZE``: AddressSanitizer and UndefinedBehaviorSanitizer.
* ``LIGHTNING_TSAN``: ThreadSanitizer.
* ``LIGHTNING_FUZZ``: coverage for libFuzzer and AddressSanitizer; needs clang.
* ``LIGHTNING_ANNOTATE``: writes the annotated HTML beside each source.
"""

import os
import shutil
import subprocess
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("LIGHTNING_DEBUG") == "1"
TRACE = os.environ.get("LIGHTNING_TRACE") == "1"
SANITIZE = os.environ.get("LIGHTNING_SANITIZE") == "1"
TSAN = os.environ.get("LIGHTNING_TSAN") == "1"
FUZZ = os.environ.get("LIGHTNING_FUZZ") == "1"
ANNOTATE = os.environ.get("LIGHTNING_ANNOTATE") == "1"

EXTENSIONS = [
    "lightning._core.wire.packer",
    "lightning._core.wire.unpacker",
    "lightning._core.wire.framing",
    "lightning._core.wire.messages",
    "lightning._core.wire.exchange",
    "lightning._core.quic.buffer",
    "lightning._core.quic.ranges",
    "lightning._core.quic.packet",
    "lightning._core.quic.protection",
    "lightning._core.quic.frames",
    "lightning._core.quic.cids",
    "lightning._core.quic.congestion",
    "lightning._core.quic.pacing",
    "lightning._core.quic.mtu",
    "lightning._core.quic.rtt",
    "lightning._core.quic.ecn",
    "lightning._core.quic.sent",
    "lightning._core.quic.lost",
    "lightning._core.quic.recovery",
    "lightning._core.quic.pool",
    "lightning._core.quic.spans",
    "lightning._core.quic.flow",
    "lightning._core.quic.sendbuf",
    "lightning._core.quic.reassembly",
    "lightning._core.quic.streamtable",
    "lightning._core.quic.streamsend",
    "lightning._core.quic.streams",
    "lightning._core.quic.paths",
    "lightning._core.quic.sources",
    "lightning._core.quic.keyschedule",
    "lightning._core.quic.tlsmessages",
    "lightning._core.quic.secrets",
    "lightning._core.quic.tokenstore",
    "lightning._core.quic.cidmap",
    "lightning._core.quic.trace",
    "lightning._core.quic.conntrace",
    "lightning._core.quic.connstate",
    "lightning._core.quic.connrecv",
    "lightning._core.quic.connsend",
    "lightning._core.quic.connection",
    "lightning._core.quic.gate",
    "lightning._core.quic.endpoint",
    "lightning._core.quic.convert",
    "lightning._core.quic.engine",
    "lightning._core.quic.bench",
    "lightning._core.io.udp",
    "lightning._core.io.desk",
    "lightning._core.io.pump",
    "lightning._core.io.base",
    "lightning._core.io.links",
    "lightning._core.io.driver",
    "lightning._core.io.gathering",
    "lightning._core.io.inbox",
]
NEEDS_LIBCRYPTO = {
    "lightning._core.quic.keyschedule",
    "lightning._core.quic.protection",
}
# For work on one extension: the last parts of the names to build, with commas.
if only := os.environ.get("LIGHTNING_ONLY"):
    EXTENSIONS = [n for n in EXTENSIONS if n.rpartition(".")[2] in only.split(",")]

compile_args = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-cast-function-type"]
link_args: list[str] = []
macros: list[tuple[str, str | None]] = []
if DEBUG:
    compile_args += ["-O0", "-g", "-UNDEBUG"]
else:
    compile_args.append("-O2")
if TRACE:
    macros += [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
if FUZZ:
    os.environ.update(CC="clang", CXX="clang++", LDSHARED="clang++ -shared")
if SANITIZE or TSAN or FUZZ:
    kind = "address,undefined" if SANITIZE else "thread"
    if FUZZ:
        kind = "address,fuzzer-no-link"
    flags = ["-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={kind}"]
    compile_args += flags
    link_args += flags
if DEBUG or SANITIZE or TSAN or FUZZ:
    macros.append(("LIGHTNING_DEBUG", "1"))


def pkg_config(package: str, option: str) -> list[str]:
    """Ask pkg-config for a package's flags, or stop with the line that installs it."""
    tool = shutil.which("pkg-config") or shutil.which("pkgconf")
    found = tool and subprocess.run(
        [tool, option, package], capture_output=True, text=True, check=False
    )
    if not found or found.returncode:
        sys.exit(
            f"{package} was not found. Install it, for example with:\n"
            "  apt-get install -y build-essential pkg-config libssl-dev python3-dev"
        )
    return found.stdout.split()


def extension(name: str) -> Extension:
    """Describe the extension whose source sits at the dotted name."""
    engine = name.startswith(("lightning._core.quic.", "lightning._core.io."))
    crypto = name in NEEDS_LIBCRYPTO
    return Extension(
        name,
        [name.replace(".", "/") + ".pyx"],
        language="c++" if engine else "c",
        extra_compile_args=compile_args
        + (pkg_config("libcrypto", "--cflags") if crypto else []),
        extra_link_args=link_args
        + (pkg_config("libcrypto", "--libs") if crypto else []),
        define_macros=macros,
    )


setup(
    ext_modules=cythonize(
        [extension(name) for name in EXTENSIONS],
        annotate=ANNOTATE,
        force=DEBUG or TRACE or SANITIZE or TSAN or FUZZ,
        compiler_directives={
            "language_level": 3,
            "binding": True,
            "embedsignature": True,
            "embedsignature.format": "python",
            "autotestdict": False,
            "auto_pickle": False,
            "linetrace": TRACE,
            "warn.undeclared": False,
            "warn.unused": True,
            "warn.unused_arg": False,
            "warn.maybe_uninitialized": True,
        },
    )
)
