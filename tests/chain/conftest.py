"""All of this runs in an environment of its own: make chain."""

import functools

import pytest

from tests.support.chain_node import METADATA, ChainNode, recorded, replay

# substrate-interface leaves its sockets to the collector.
pytestmark = pytest.mark.chain


@pytest.fixture
def node():
    """A node that replays the main network's subnet 1."""
    with ChainNode() as node:
        replay(node)
        yield node


class Metadata:
    """Encodes what the recording lacks, as the recorded metadata has it."""

    def __init__(self) -> None:
        from scalecodec.base import RuntimeConfigurationObject, ScaleBytes
        from scalecodec.type_registry import load_type_registry_preset

        self.config = RuntimeConfigurationObject(ss58_format=42)
        self.config.update_type_registry(load_type_registry_preset("core"))
        self.config.set_active_spec_version_id(1)
        data = ScaleBytes(METADATA.read_text())
        self.metadata = self.config.create_scale_object("MetadataVersioned", data)
        self.metadata.decode()
        self.config.add_portable_registry(self.metadata)

    def key(self, pallet: str, name: str, *params: object) -> str:
        """Return the key of a storage's entry."""
        from substrateinterface.storage import StorageKey

        return StorageKey.create_from_storage_function(
            pallet,
            name,
            list(params),
            runtime_config=self.config,
            metadata=self.metadata,
        ).to_hex()

    def value(self, pallet: str, name: str, value: object) -> str:
        """Return a value of a storage."""
        function = self.metadata.get_metadata_pallet(pallet).get_storage_function(name)
        kind = function.get_value_type_string()
        made = self.config.create_scale_object(kind, metadata=self.metadata)
        return made.encode(value).to_hex()

    def entry(self, pallet: str, name: str, params: list, value: object) -> tuple:
        return self.key(pallet, name, *params), self.value(pallet, name, value)


@functools.cache
def _metadata() -> Metadata:
    return Metadata()


@pytest.fixture
def metadata() -> Metadata:
    recorded()
    return _metadata()
