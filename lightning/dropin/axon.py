"""The axon: a miner's server, by bittensor's name and with its arguments.

It serves QUIC on a UDP port and, where aiohttp is installed, bittensor's HTTP on the TCP
port of the same number, so that validators reach it by either. Both have to be open, the
UDP port above all.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import errno
import importlib
import importlib.util
import inspect
import ipaddress
import json
import logging
import sys
import threading
import time
import uuid
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast

from lightning._core.io.loop import LoopThread
from lightning.config import LightningServerConfig
from lightning.dropin.attaching import synapse_class_of
from lightning.dropin.axon_info import AxonInfo
from lightning.dropin.dispatch import Dispatch, authentic, ping
from lightning.dropin.exceptions import SynapseDendriteNoneException
from lightning.dropin.http_auth import RequestGate
from lightning.dropin.http_headers import PROTOCOL_VERSION
from lightning.dropin.quic_server import QuicServer
from lightning.dropin.settings import Config, add_once, axon_defaults
from lightning.dropin.synapse import Synapse
from lightning.dropin.threadpool import PriorityThreadPoolExecutor
from lightning.errors import ConfigError
from lightning.server import STOP_TIMEOUT
from lightning.serving import ServingThreads

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.dropin.http_server import HttpServer

__all__ = ["Axon", "PortError"]

ANYWHERE = "0.0.0.0"  # noqa: S104 - miners serve the world.
# As many seconds as the callers of most subnets wait at most.
HANDLER_TIMEOUT = 600
IDLE_TIMEOUT = 900
# Seconds until an address that could not be found is looked up again.
LOOK_UP_INTERVAL = 60.0
# Ports of the system's choice that are tried until one is free for both.
ATTEMPTS = 20
EXAMPLE = "for example port=8092, --axon.port 8092 or BT_AXON_PORT=8092"

log = logging.getLogger("lightning.axon")


class PortError(ConfigError, AssertionError):
    """A port is not one that an axon may use."""


class Axon:
    """Answers the synapses of validators by the functions that are attached.

    Nothing is bound before `start`, and what is bound is always on all addresses. A
    started axon goes on until `stop`, or the end of the process.

    Args:
        wallet: Has a ``hotkey`` that signs; a bare keypair does, too. None for the
            wallet that ``config.wallet`` or else the defaults name, by bittensor-wallet.
        config: Has ``axon.port`` and so on, as from `Axon.config`; None for the command
            line, the environment and the defaults, in this order. It is copied.
        port: UDP and TCP port, 1025 to 65534; 0 lets the system choose. Here and below
            None leaves it to ``config``.
        ip: Address that `info` and texts show, no more.
        external_ip: Address that is published; None has it looked up when needed.
        external_port: Port that is published; None for ``port``.
        max_workers: Plain forward functions that run at once, each in a thread.
        server_config: Limits of the QUIC server; None for its defaults, but for a
            ``handler_timeout_secs`` of 600. Of those that bound how much is worked on
            at once, ``max_concurrent_requests`` is for async forward functions.
        quic: Whether to serve QUIC.
        http: Whether to serve HTTP; None for where aiohttp is installed.

    Attributes:
        wallet: As given; a bare keypair is its ``hotkey``.
        uuid: One for each axon.
        ip: As given.
        port: The port; after `start` never 0.
        external_port: The port that is published.
        full_address: ``ip:port``.
        started: Whether it serves.
        forward_class_types: The class of each synapse, by its name. This dict and the
            next four may be changed at any time.
        forward_fns: What answers each.
        blacklist_fns: What refuses callers of each, or None.
        verify_fns: What verifies each; `default_verify` unless another was attached.
        priority_fns: What ranks callers of each, or None.
        thread_pool: Runs plain functions where no thread is at it anyway.
        nonces: Unused, and empty: replays are refused whatever is in it.
        server: The QUIC server, an `AsyncLightningServer`: for its ``stats()``, for its
            resolvers of permits and sources, and for `lightning.metrics`. Its loop is
            the axon's: it is started and stopped by that alone. None without QUIC.

    Raises:
        PortError: A port is out of range.
        ConfigError: There is no wallet, or neither QUIC nor HTTP is wanted, or HTTP is
            and aiohttp is missing.

    Example::

        def forward(synapse: Add) -> Add:
            synapse.total = synapse.a + synapse.b
            return synapse

        axon = Axon(wallet, port=8091)
        axon.attach(forward).serve(netuid, subtensor).start()
    """

    def __init__(
        self,
        wallet: Any = None,
        config: Any = None,
        port: int | None = None,
        ip: str | None = None,
        external_ip: str | None = None,
        external_port: int | None = None,
        max_workers: int | None = None,
        *,
        server_config: LightningServerConfig | None = None,
        quic: bool = True,
        http: bool | None = None,
    ) -> None:
        self.started = False
        given = {
            "port": port,
            "ip": ip,
            "external_ip": external_ip,
            "external_port": external_port,
            "max_workers": max_workers,
        }
        self._config = _settle(type(self).config() if config is None else config, given)
        type(self).check_config(self._config)
        settings = self._config.axon
        self.wallet = _wallet(wallet, self._config)
        self.uuid = str(uuid.uuid1())
        self.ip: str = settings.ip
        self.port: int = settings.port
        self._external_ip: str | None = settings.external_ip
        self._look_up_at = 0.0
        self.external_port: int = settings.external_port or settings.port
        self.forward_class_types: dict[str, Any] = {}
        self.forward_fns: dict[str, Any] = {}
        self.blacklist_fns: dict[str, Any] = {}
        self.priority_fns: dict[str, Any] = {}
        self.verify_fns: dict[str, Any] = {}
        self.nonces: dict[str, int] = {}
        self.thread_pool = PriorityThreadPoolExecutor(max_workers=settings.max_workers)
        self._gate = RequestGate(self.wallet.hotkey.ss58_address)
        if server_config is None:
            server_config = LightningServerConfig(
                handler_timeout_secs=HANDLER_TIMEOUT, idle_timeout_secs=IDLE_TIMEOUT
            )
        self._dispatch = Dispatch(
            self,
            Axon.default_verify,
            self.thread_pool,
            most_workers=settings.max_workers,
            most_waiting=server_config.max_queued_requests,
            most_async=server_config.max_concurrent_requests,
        )
        quic, self._http = _transports(quic, http)
        self.server: QuicServer | None = None
        if quic:
            self.server = self._make_server(server_config)
        self._http_server: HttpServer | None = None
        self._lock = threading.RLock()
        self._io = LoopThread("lightning-axon", self._end)
        self.attach(ping)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        state = "started" if self.started else "stopped"
        hotkey = self.wallet.hotkey.ss58_address
        return f"Axon({self.ip}, {self.port}, {hotkey}, {state}, {[*self.forward_fns]})"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def full_address(self) -> str:
        """``ip:port``, as given."""
        return f"{self.ip}:{self.port}"

    @property
    def external_ip(self) -> str:
        """The address that is published; ``0.0.0.0`` if it cannot be found.

        It is looked up, over the internet, when it is read first and was not given.
        """
        if self._external_ip is None and time.monotonic() >= self._look_up_at:
            self._external_ip = _look_up()
            self._look_up_at = time.monotonic() + LOOK_UP_INTERVAL
        return self._external_ip or ANYWHERE

    @external_ip.setter
    def external_ip(self, value: str | None) -> None:
        self._external_ip = value

    def _make_server(self, config: LightningServerConfig) -> QuicServer:
        workers = self._config.axon.max_workers
        server = QuicServer(
            self,
            self._dispatch,
            self.wallet.hotkey.ss58_address,
            ANYWHERE,
            self.port,
            signer=self.wallet.hotkey,
            config=dataclasses.replace(
                config, handler_threads=workers, max_concurrent_requests=None
            ),
        )
        server._threads = ServingThreads(workers, server._suspects)
        return server

    # What it answers.

    def attach(
        self,
        forward_fn: Callable[..., Any],
        blacklist_fn: Callable[..., Any] | None = None,
        priority_fn: Callable[..., Any] | None = None,
        verify_fn: Callable[..., Any] | None = None,
    ) -> Self:
        """Have a synapse answered; attaching one of the same name again replaces.

        All functions are called with the whole synapse, in the order blacklist, verify,
        priority, forward. They may be ``async``. Which synapse it is, the annotation of
        the first parameter says.

        Args:
            forward_fn: Returns the answer: the synapse, another one, or for streams
                what `StreamingSynapse.create_streaming_response` returns.
            blacklist_fn: Returns whether the caller is refused, and why.
            priority_fn: Returns a number; higher ones come first.
            verify_fn: Raises if the caller is not to be believed; None for
                `default_verify`.

        Raises:
            AttachError: They take no synapse, or not the same.
        """
        others = {
            "blacklist_fn": blacklist_fn,
            "priority_fn": priority_fn,
            "verify_fn": verify_fn,
        }
        if forward_fn is ping:
            synapse_class: Any = Synapse
        else:
            local_names = sys._getframe(1).f_locals
            synapse_class = synapse_class_of(forward_fn, others, local_names)
        name = synapse_class.__name__
        self.blacklist_fns[name] = blacklist_fn
        self.priority_fns[name] = priority_fn
        self.verify_fns[name] = verify_fn or self.default_verify
        self.forward_fns[name] = forward_fn
        self.forward_class_types[name] = synapse_class
        return self

    async def default_verify(self, synapse: Any) -> None:
        """Check that a synapse was sent by the hotkey that it says, to this axon, now.

        A connection of QUIC has proven that by its login. Over HTTP, the signature, its
        time and that it was not used before are checked, once for a request.

        Raises:
            SynapseDendriteNoneException: It does not say who sent it.
            HandshakeError: It is not so; one class for each reason.
        """
        if synapse.dendrite is None:
            raise SynapseDendriteNoneException(synapse=synapse)
        if authentic.get() is not synapse:
            self._gate.check_synapse(synapse)

    async def verify_body_integrity(self, request: Any) -> dict[str, Any]:
        """Compare the body of an HTTP request with the hash in its headers.

        `HttpServer` does that by itself.

        Args:
            request: Has ``body()`` or ``read()``, ``headers``, and ``url`` or ``path``.

        Returns:
            The body.

        Raises:
            ValueError: It has another hash, or is not of such a synapse.
        """
        read = getattr(request, "body", None) or request.read
        body = read() if callable(read) else read
        if inspect.isawaitable(body):
            body = await body
        path = request.url.path if hasattr(request, "url") else request.path
        name = path.split("/")[1]
        synapse_class = self.forward_class_types.get(name)
        if synapse_class is None:
            raise ValueError(self._dispatch.unknown(name).status_message)
        fields = json.loads(body)
        parsed = synapse_class(**dict(fields)).body_hash
        stated = request.headers.get("computed_body_hash", "")
        if parsed != stated:
            raise ValueError(
                f"Hash mismatch between header body hash {stated} "
                f"and parsed body hash {parsed}"
            )
        return cast("dict[str, Any]", fields)

    # Life.

    def start(self) -> Self:
        """Bind the ports and serve; when this returns, requests are answered.

        Fine if it serves already. It may be started again after `stop`.

        Raises:
            ConfigError: The UDP or the TCP port is taken.
        """
        with self._lock:
            if self.started:
                return self
            try:
                self._io.call(self._begin)
            except BaseException:
                self._io.stop()
                raise
            self.started = True
        kinds = ["UDP (QUIC)"] if self.server is not None else []
        kinds += ["TCP (HTTP)"] if self._http_server is not None else []
        log.info(
            "axon %s serves on port %d, %s, of all addresses: open it in firewalls for "
            "each of these",
            self.wallet.hotkey.ss58_address,
            self.port,
            " and ".join(kinds),
        )
        return self

    def stop(self, *, drain: float = STOP_TIMEOUT) -> Self:
        """Stop serving; fine if it does not.

        Args:
            drain: Longest wait in seconds for what is being answered; requests that
                come meanwhile are refused.
        """
        with self._lock:
            self.started = False
            if self._io.is_running:
                self._io.call(self._end, drain)
            self._io.stop()
            self.thread_pool.rest()
            self._dispatch.rest()
        return self

    async def _begin(self) -> None:
        port = self.port
        for attempt in range(ATTEMPTS):
            try:
                if self._http:
                    port = await self._begin_http(port)
                if self.server is not None:
                    port = await self._begin_quic(self.server, port)
            except BaseException as error:
                await self._end(0)
                if (
                    self.port == 0
                    and attempt + 1 < ATTEMPTS
                    and isinstance(error, ConfigError)
                ):
                    port = 0
                    continue
                raise
            break
        if self.external_port == 0:
            self.external_port = port
        self.port = port

    async def _begin_http(self, port: int) -> int:
        from lightning.dropin.http_server import HttpServer  # noqa: PLC0415 - an extra.

        server = HttpServer(self._dispatch, self, gate=self._gate)
        try:
            await server.start(ANYWHERE, port)
        except OSError as error:
            _refuse_port("TCP", port, error)
        self._http_server = server
        return server.port

    async def _begin_quic(self, server: QuicServer, port: int) -> int:
        server.port = port
        try:
            await server.start()
        except ConfigError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            _refuse_port("UDP", port, error.__cause__)
        return server.local_addr().port

    async def _end(self, drain: float = STOP_TIMEOUT) -> None:
        server, http_server = self.server, self._http_server
        self._http_server = None
        try:
            if http_server is not None:
                await http_server.stop(drain)
        finally:
            if server is not None and server.is_started:
                await server.stop(drain)

    def serve(
        self, netuid: int, subtensor: Any = None, certificate: Any = None
    ) -> Self:
        """Publish the external address on the chain.

        Args:
            netuid: The subnet.
            subtensor: Has ``serve_axon(netuid=, axon=, certificate=)``, or, as of
                bittensor 11, ``execute(intent, wallet)``. Without one nothing happens.
            certificate: Passed on.
        """
        if subtensor is None:
            return self
        if hasattr(subtensor, "serve_axon"):
            done = subtensor.serve_axon(
                netuid=netuid, axon=self, certificate=certificate
            )
        elif hasattr(subtensor, "execute"):
            done = subtensor.execute(self._intent(netuid), self.wallet)
        else:
            log.warning(
                "a %s cannot publish an axon: it has neither serve_axon nor execute",
                type(subtensor).__name__,
            )
            return self
        if inspect.iscoroutine(done):
            done.close()
            raise TypeError(
                "serve() needs a subtensor whose calls block: await "
                "subtensor.serve_axon(netuid=netuid, axon=axon) yourself"
            )
        return self

    def _intent(self, netuid: int) -> Any:
        """Make what bittensor 11 publishes an address by."""
        # Whoever has its subtensor has it.
        return importlib.import_module("bittensor").ServeAxon(
            netuid=netuid, ip=self.external_ip, port=self.external_port, protocol=4
        )

    # What is known of it.

    def info(self) -> AxonInfo:
        """Return what is published."""
        ip = self.external_ip
        hotkey = self.wallet.hotkey.ss58_address
        coldkey = getattr(self.wallet, "coldkeypub", None)
        return AxonInfo(
            version=PROTOCOL_VERSION,
            ip=ip,
            port=self.external_port,
            ip_type=_ip_type(ip),
            hotkey=hotkey,
            coldkey=getattr(coldkey, "ss58_address", ""),
            protocol=4,
            placeholder1=0,
            placeholder2=0,
        )

    def to_string(self) -> str:
        """Return `info` as JSON."""
        return self.info().to_string()

    @classmethod
    def config(cls) -> Config:
        """Read the settings of an axon from the command line and the environment."""
        # Those of the program are its own, help included.
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        cls.add_args(parser)
        return Config(parser)

    @classmethod
    def help(cls) -> None:
        """Print the arguments of the command line."""
        parser = argparse.ArgumentParser(add_help=False)
        cls.add_args(parser)
        parser.print_help()

    @classmethod
    def add_args(
        cls, parser: argparse.ArgumentParser, prefix: str | None = None
    ) -> None:
        """Add ``--axon.port`` and its like to a parser.

        The defaults are those of the environment: ``BT_AXON_PORT``, ``BT_AXON_IP``,
        ``BT_AXON_EXTERNAL_PORT``, ``BT_AXON_EXTERNAL_IP``, ``BT_AXON_MAX_WORKERS``.

        Args:
            parser: Takes them; those that it has already stay as they are.
            prefix: Goes before their names, with a dot.
        """
        start = "--axon." if prefix is None else f"--{prefix}.axon."
        helps = {
            "port": (int, "local port, UDP (QUIC) and TCP (HTTP); default 8091"),
            "ip": (str, "local address to show; all are served"),
            "external_port": (int, "port to publish, UDP and TCP; default: axon.port"),
            "external_ip": (str, "address to publish; default: looked up"),
            "max_workers": (int, "plain functions that run at once; default 10"),
        }
        defaults = axon_defaults()
        for name, (kind, text) in helps.items():
            add_once(parser, start + name, type=kind, help=text, default=defaults[name])

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Check the ports of a config.

        Raises:
            PortError: One is not in 1025 to 65534; ``port`` may be 0 as well.
        """
        port, external_port = config.axon.port, config.axon.external_port
        if port != 0 and not 1024 < port < 65535:
            raise PortError("Axon port must be in range [1024, 65535]")
        if external_port is not None and not 1024 < external_port < 65535:
            raise PortError("External port must be in range [1024, 65535]")

    # What is bittensor's web server, and not there.

    @property
    def app(self) -> Any:
        """Not there."""
        _no_web_server("app")

    @property
    def router(self) -> Any:
        """Not there."""
        _no_web_server("router")

    @property
    def fast_config(self) -> Any:
        """Not there."""
        _no_web_server("fast_config")

    @property
    def fast_server(self) -> Any:
        """Not there."""
        _no_web_server("fast_server")

    @property
    def middleware_cls(self) -> Any:
        """Not there."""
        _no_web_server("middleware_cls")


def _no_web_server(name: str) -> NoReturn:
    raise NotImplementedError(
        f"Axon.{name}: this axon has no FastAPI application. Attach a synapse instead, "
        "or serve other routes by a web server of your own, on another port"
    )


def _settle(config: Any, given: dict[str, Any]) -> Any:
    """Return a copy of a config in which the arguments that were given win."""
    config = copy.deepcopy(config)
    if getattr(config, "axon", None) is None:
        config.axon = Config(default={})
    settings = config.axon
    for name, default in axon_defaults().items():
        value = given[name]
        if value is None:
            value = getattr(settings, name, None)
        setattr(settings, name, default if value is None else value)
    return config


def _wallet(wallet: Any, config: Any) -> Any:
    """Return something that has a ``hotkey`` that signs."""
    if wallet is None:
        try:
            from bittensor_wallet import Wallet  # noqa: PLC0415 - an extra.
        except ImportError:
            raise ConfigError(
                "an axon needs a wallet: pass one, or a keypair, or install "
                "bittensor-wallet (pip install 'bittensor-lightning[wallet]')"
            ) from None
        named = getattr(config, "wallet", None)
        fields = {
            name: getattr(named, name, None) for name in ("name", "hotkey", "path")
        }
        wallet = Wallet(**{name: value for name, value in fields.items() if value})
    if hasattr(wallet, "hotkey"):
        return wallet
    if hasattr(wallet, "ss58_address") and hasattr(wallet, "sign"):
        return SimpleNamespace(hotkey=wallet, coldkeypub=None)
    raise ConfigError(
        f"a {type(wallet).__name__} is no wallet: it has no hotkey, and cannot sign"
    )


def _transports(quic: bool, http: bool | None) -> tuple[bool, bool]:
    """Decide what to serve."""
    is_installed = importlib.util.find_spec("aiohttp") is not None
    if http and not is_installed:
        raise ConfigError(
            "http=True needs aiohttp: pip install 'bittensor-lightning[http]'"
        )
    if http is None:
        http = is_installed
        if not http:
            log.info("without aiohttp, only QUIC is served, and no HTTP")
    if not (quic or http):
        raise ConfigError("an axon with neither quic nor http serves nothing")
    return quic, http


def _refuse_port(kind: str, port: int, error: OSError) -> NoReturn:
    if error.errno == errno.EADDRINUSE:
        letter = kind[0].lower()
        raise ConfigError(
            f"{kind} port {port} is taken: see by whom with 'ss -l{letter}np sport = "
            f":{port}' and stop it, or give the axon another port, {EXAMPLE}"
        ) from error
    raise ConfigError(f"cannot serve on {kind} port {port}: {error}") from error


def _ip_type(ip: str) -> int:
    try:
        return ipaddress.ip_address(ip).version
    except ValueError:
        return 4  # A host name.


def _look_up() -> str | None:
    from lightning.dropin.external_ip import UNKNOWN, external_ip  # noqa: PLC0415 - mostly not needed.

    found = external_ip()
    if found != UNKNOWN:
        return found
    log.warning("the external address is not known: pass external_ip")
    return None
