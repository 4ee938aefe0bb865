"""Persistent authenticated QUIC between Bittensor validators and miners.

A validator keeps one connection to each miner, logged in once with the hotkeys of both
sides, and sends its requests over it. `AsyncLightning` and `AsyncLightningServer` are
for asyncio, `Lightning` and `LightningServer` block. The wire is that of btlightning
0.2, so either side can switch alone.
"""

from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _find_spec("lightning.pytorch") is not None:
    raise ImportError(
        "PyTorch Lightning's files are in the folder of the package 'lightning', which "
        "bittensor-lightning needs for itself: uninstall the package 'lightning' "
        "(keep 'pytorch-lightning', it has a folder of its own) and reinstall "
        "bittensor-lightning, or use separate environments"
    )

from lightning._core.wire.framing import (
    DEFAULT_MAX_FRAME_PAYLOAD,
    MessageType,
    parse_frame_header,
)
from lightning._core.wire.messages import (
    HandshakeRequest,
    HandshakeResponse,
    StreamChunk,
    StreamEnd,
    SynapsePacket,
    SynapseResponse,
)
from lightning._version import __version__
from lightning.admission import (
    HandshakeObserver,
    SourceAddressResolver,
    SourceAllowlist,
    ValidatorPermitResolver,
)
from lightning.blocking import Lightning, LightningServer
from lightning.client import AsyncLightning, LightningClient
from lightning.config import (
    LightningClientConfig,
    LightningClientConfigBuilder,
    LightningServerConfig,
    LightningServerConfigBuilder,
)
from lightning.dropin.axon_info import AxonInfo
from lightning.errors import LightningError
from lightning.fanout import BlockingFanOut, FanOut
from lightning.handlers import HandlerContext, typed_async_handler, typed_handler
from lightning.learning import LearnedSources
from lightning.metagraph import (
    FINNEY_ENDPOINT,
    TESTNET_ENDPOINT,
    Metagraph,
    MetagraphMonitorConfig,
    NeuronInfo,
    connect_subtensor,
    decode_neurons_lite,
    is_valid_ip,
    serve_axon,
)
from lightning.priority import StakePriority
from lightning.reports import (
    ConnectionStats,
    ConnectReport,
    HandlerStats,
    MinerReport,
    Reached,
    ServerStats,
)
from lightning.server import AsyncLightningServer
from lightning.signer import BtWalletSigner, CallbackSigner, Signer, Sr25519Signer
from lightning.streaming import BlockingStreamingResponse, StreamingResponse
from lightning.types import (
    AsyncSynapseHandler,
    ClientConnectionStats,
    PeerAddr,
    QuicAxonInfo,
    QuicRequest,
    QuicResponse,
    ServerConnectionStats,
    StreamingSynapseHandler,
    SynapseHandler,
    SynapseRequest,
)

if _TYPE_CHECKING:
    from lightning.dropin.axon import Axon
    from lightning.dropin.dendrite import Dendrite
    from lightning.dropin.settings import Config
    from lightning.dropin.streaming import StreamingSynapse
    from lightning.dropin.synapse import Synapse, TerminalInfo
    from lightning.dropin.tensor import Tensor, tensor

    axon = Axon
    dendrite = Dendrite

# bittensor's names, imported when they are first asked for: they need pydantic.
_LAZY = {
    "Axon": ("axon", "Axon"),
    "Config": ("settings", "Config"),
    "Dendrite": ("dendrite", "Dendrite"),
    "StreamingSynapse": ("streaming", "StreamingSynapse"),
    "Synapse": ("synapse", "Synapse"),
    "Tensor": ("tensor", "Tensor"),
    "TerminalInfo": ("synapse", "TerminalInfo"),
    "axon": ("axon", "Axon"),
    "dendrite": ("dendrite", "Dendrite"),
    "tensor": ("tensor", "tensor"),
}


def __getattr__(name: str) -> _Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = getattr(_import_module(f"lightning.dropin.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


RustLightning = Lightning
"""The peer's native class; here one class has everything."""

RustLightningServer = LightningServer
"""The peer's native class; here one class has everything."""

PyStreamingResponse = BlockingStreamingResponse
"""The blocking stream, by its name in the peer's Python package."""

LIGHTNING_AVAILABLE = True
"""As in the peer's Python package."""

__all__ = [
    "DEFAULT_MAX_FRAME_PAYLOAD",
    "FINNEY_ENDPOINT",
    "LIGHTNING_AVAILABLE",
    "TESTNET_ENDPOINT",
    "AsyncLightning",
    "AsyncLightningServer",
    "AsyncSynapseHandler",
    "Axon",
    "AxonInfo",
    "BlockingFanOut",
    "BlockingStreamingResponse",
    "BtWalletSigner",
    "CallbackSigner",
    "ClientConnectionStats",
    "Config",
    "ConnectReport",
    "ConnectionStats",
    "Dendrite",
    "FanOut",
    "HandlerContext",
    "HandlerStats",
    "HandshakeObserver",
    "HandshakeRequest",
    "HandshakeResponse",
    "LearnedSources",
    "Lightning",
    "LightningClient",
    "LightningClientConfig",
    "LightningClientConfigBuilder",
    "LightningError",
    "LightningServer",
    "LightningServerConfig",
    "LightningServerConfigBuilder",
    "MessageType",
    "Metagraph",
    "MetagraphMonitorConfig",
    "MinerReport",
    "NeuronInfo",
    "PeerAddr",
    "PyStreamingResponse",
    "QuicAxonInfo",
    "QuicRequest",
    "QuicResponse",
    "Reached",
    "RustLightning",
    "RustLightningServer",
    "ServerConnectionStats",
    "ServerStats",
    "Signer",
    "SourceAddressResolver",
    "SourceAllowlist",
    "Sr25519Signer",
    "StakePriority",
    "StreamChunk",
    "StreamEnd",
    "StreamingResponse",
    "StreamingSynapse",
    "StreamingSynapseHandler",
    "Synapse",
    "SynapseHandler",
    "SynapsePacket",
    "SynapseRequest",
    "SynapseResponse",
    "Tensor",
    "TerminalInfo",
    "ValidatorPermitResolver",
    "__version__",
    "axon",
    "connect_subtensor",
    "decode_neurons_lite",
    "dendrite",
    "is_valid_ip",
    "parse_frame_header",
    "serve_axon",
    "tensor",
    "typed_async_handler",
    "typed_handler",
]
