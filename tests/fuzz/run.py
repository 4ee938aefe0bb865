"""Fuzz one target, guided by the coverage of the compiled code; `make fuzz` calls it.

Usage: python -m tests.fuzz.run TARGET CORPUS [OPTION...], with options of libFuzzer. New
inputs are added to the folder CORPUS.
"""

import importlib
import random
import sys

import atheris

name, *options = sys.argv[1:]
# The modules in Python that count as much as the engine.
with atheris.instrument_imports(
    include=["aioquic.tls", "aioquic.quic.packet", "lightning._core.quic"]
):
    target = importlib.import_module(f"tests.fuzz.{name}")


def mutate(data, max_size, seed):
    """Mutate as the target can, else as libFuzzer does."""
    choose = random.Random(seed)
    if hasattr(target, "mutate") and choose.random() < 0.3:
        mutated = target.mutate(data, choose)
        if len(mutated) <= max_size:
            return mutated
    return atheris.Mutate(data, max_size)


# What libFuzzer runs where it wants itself in another process.
itself = f"{sys.executable} -m tests.fuzz.run {name}"
atheris.Setup([itself, *options], target.check, custom_mutator=mutate)
atheris.Fuzz()
