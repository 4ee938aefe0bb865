"""Miners found on the chain, permits read from it.

`Metagraph` is a subnet as it was last read; what it is read from may be a node of the
chain (the extra ``subtensor``), a bittensor object at hand, or a list. A client follows
it by ``LightningClientConfig(metagraph=MetagraphMonitorConfig.finney(2))``, a server
answers its questions by a `MetagraphResolver`, and a miner is found after `serve_axon`.
"""

from lightning.chain.metagraph import Metagraph
from lightning.chain.monitor import (
    FINNEY_ENDPOINT,
    LOCAL_ENDPOINT,
    TESTNET_ENDPOINT,
    MetagraphMonitor,
    MetagraphMonitorConfig,
)
from lightning.chain.neurons import NeuronInfo, Snapshot, is_valid_ip
from lightning.chain.probe import QuicProbe
from lightning.chain.publish import Published, serve_axon
from lightning.chain.resolvers import MetagraphResolver
from lightning.chain.scale import decode_neurons_lite
from lightning.chain.sources import (
    BittensorSource,
    ListSource,
    MetagraphSource,
    as_source,
)
from lightning.chain.substrate import SubstrateSource, connect_subtensor

__all__ = [
    "FINNEY_ENDPOINT",
    "LOCAL_ENDPOINT",
    "TESTNET_ENDPOINT",
    "BittensorSource",
    "ListSource",
    "Metagraph",
    "MetagraphMonitor",
    "MetagraphMonitorConfig",
    "MetagraphResolver",
    "MetagraphSource",
    "NeuronInfo",
    "Published",
    "QuicProbe",
    "Snapshot",
    "SubstrateSource",
    "as_source",
    "connect_subtensor",
    "decode_neurons_lite",
    "is_valid_ip",
    "serve_axon",
]
