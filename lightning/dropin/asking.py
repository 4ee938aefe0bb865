"""How a dendrite asks: over what, in what order, and what it makes of the answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import sys
import threading
import time
import uuid
from collections import OrderedDict, deque
from contextlib import aclosing
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, cast

from lightning.dropin import external_ip as addresses
from lightning.dropin.anywhere import Anywhere
from lightning.dropin.axon_info import AxonInfo, target_of
from lightning.dropin.codec import (
    RESERVED,
    blank_of,
    plan_of,
    set_terminals,
    terminal_of,
)
from lightning.dropin.exceptions import SynapseParsingError
from lightning.dropin.http_auth import signed_text
from lightning.dropin.http_headers import PROTOCOL_VERSION, process_response, url_of
from lightning.dropin.keys import keypair_of
from lightning.dropin.marked import MARK_SIZE, Marked, raw_headers, told
from lightning.dropin.speaks import Speaks, Way
from lightning.dropin.statuses import (
    refusal,
    status_of,
)
from lightning.dropin.streaming import StreamedResponse
from lightning.dropin.synapse import Synapse
from lightning.errors import (
    ConfigError,
    EncodeError,
    FrameTooLarge,
    HandshakeError,
    LightningConnectionError,
    StreamError,
)
from lightning.types import NOT_BEGUN, QuicAxonInfo, check_timeout

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable

    from lightning.blocking import Lightning
    from lightning.client import AsyncLightning
    from lightning.dropin.anywhere import Answer, Chunks
    from lightning.dropin.codec import Plan
    from lightning.dropin.http_client import HttpClient

__all__ = ["Asking", "Call", "gather"]

PROBE: Final = 1.0
"""Seconds that a miner of whom nothing is known has for a login over QUIC, if it may
also be asked over HTTP; a third of the call's time if that is less."""

DIAL_AGAIN: Final = 5.0
"""Seconds for a login over QUIC beside a request that goes over HTTP."""

RETRY_PAUSE: Final = 0.1
"""Seconds before the first of the ``retries``; doubled for each further one."""

_TARGETS: Final = 8192
# What the chain, or who reads it, says of an axon that does not serve.
_NOWHERE: Final = frozenset({"", "0", "0.0.0.0", "::", "None"})  # noqa: S104 - see above.
_OF_DENDRITE: Final = ("ip", "version", "nonce", "uuid", "hotkey")
_OF_AXON: Final = ("ip", "port", "hotkey")
_SET: Final = ("dendrite", "axon", "timeout")

log = logging.getLogger("lightning.dendrite")

# What a miner speaks does not depend on who asks.
_speaks = Speaks()


class Call:
    """One call under way: to whom, with what, since when, until when."""

    __slots__ = ("deadline", "frame", "nonce", "plan", "start", "synapse", "target")

    def __init__(
        self, target: AxonInfo, synapse: Any, plan: Plan, timeout: float | None
    ) -> None:
        self.target = target
        self.synapse = synapse
        self.plan = plan
        self.nonce = time.time_ns()
        self.start = time.monotonic()
        self.deadline = None if timeout is None else self.start + timeout
        self.frame: bytes | None = None

    def left(self) -> float | None:
        """Return the seconds that are left."""
        if self.deadline is None:
            return None
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def lasts(self, seconds: float) -> bool:
        """Say if it will still have time in so many seconds."""
        return self.deadline is None or time.monotonic() + seconds < self.deadline


class Asking:
    """The half of `DendriteMixin` that asks; see there."""

    def __init__(
        self,
        wallet: Any | None = None,
        *,
        connect_timeout: float | None = None,
        retries: int = 0,
        max_response_bytes: int | None = None,
        client: AsyncLightning | Lightning | None = None,
        quic: bool = True,
        http: bool | None = None,
        history: int = 0,
    ) -> None:
        super().__init__()
        has_aiohttp = find_spec("aiohttp") is not None
        if http is None:
            http = has_aiohttp
        if not (quic or http):
            raise ConfigError(
                "a Dendrite with neither QUIC nor HTTP cannot ask anybody"
            )
        if http and not has_aiohttp:
            raise ConfigError(
                "bittensor's HTTP needs aiohttp: pip install 'bittensor-lightning[http]'"
            )
        self.keypair = keypair_of(wallet)
        self.uuid = str(uuid.uuid1())
        self.synapse_history: deque[Any] = deque(maxlen=history)
        self._hotkey: str = self.keypair.ss58_address
        self._connect_timeout = check_timeout(connect_timeout)
        self._retries = retries
        self._max_response_bytes = max_response_bytes
        self._client = client
        self._quic = quic
        self._http = http
        self._external_ip: str | None = None
        self._anywhere: Anywhere | None = None
        self._http_client: HttpClient | None = None
        self._targets: OrderedDict[tuple[Any, ...], QuicAxonInfo] = OrderedDict()
        self._lock = threading.Lock()
        self._overrides = _overrides_of(type(self))
        self._tells_all = not self._overrides.isdisjoint(
            ("_log_outgoing_request", "_log_incoming_response")
        )
        # What our end of a request begins with, by the class of terminals.
        self._ours: dict[type[Any], dict[str, Any]] = {}

    # Addresses.

    @property
    def external_ip(self) -> str:
        """Our address on the internet; looked up when it is first read.

        It may be set. ``0.0.0.0`` where it cannot be found out.
        """
        if self._external_ip is None:
            self._external_ip = addresses.external_ip()
            self._ours.clear()
        return self._external_ip

    @external_ip.setter
    def external_ip(self, value: Any) -> None:
        self._external_ip = str(value)
        self._ours.clear()
        if self._http_client is not None:
            self._http_client.external_ip = self._external_ip

    def _get_endpoint_url(self, target_axon: Any, request_name: str) -> str:
        return url_of(target_axon, request_name, self._external_ip)

    # Hooks: what subclasses of bittensor's Dendrite override is called here as well.

    def preprocess_synapse_for_request(
        self, target_axon_info: Any, synapse: Any, timeout: float | None = 12.0
    ) -> Any:
        """Fill in both terminals and sign, as a request over HTTP needs it.

        Over QUIC, where the login has proved who asks, nothing is signed.

        Returns:
            The same synapse.
        """
        nonce = time.time_ns()
        self._set_terminals(
            synapse,
            plan_of(type(synapse)),
            target_of(target_axon_info),
            nonce,
            timeout,
        )
        text = signed_text(
            nonce, self._hotkey, synapse.axon.hotkey, self.uuid, synapse.body_hash
        )
        signature = self.keypair.sign(text)
        synapse.dendrite.signature = (
            signature if isinstance(signature, str) else f"0x{bytes(signature).hex()}"
        )
        return synapse

    def process_server_response(
        self, server_response: Any, json_response: dict[str, Any], local_synapse: Any
    ) -> None:
        """Fill a synapse from an answer.

        Args:
            server_response: Has ``status`` and ``headers``.
            json_response: The fields of the answer.
            local_synapse: What was asked.
        """
        process_response(server_response, json_response, local_synapse)

    def process_error_message(
        self, synapse: Any, request_name: str, exception: Exception
    ) -> Any:
        """Say on a synapse that a call ended with an exception.

        Returns:
            The same synapse.
        """
        self.log_exception(exception)
        axon = synapse.axon
        code, message = status_of(
            exception,
            name=request_name,
            ip=getattr(axon, "ip", None),
            port=getattr(axon, "port", None),
            timeout=synapse.timeout,
        )
        fields = synapse.dendrite.__dict__
        fields["status_code"], fields["status_message"] = code, message
        return synapse

    def log_exception(self, exception: Exception) -> None:
        """Tell the log, at debug level, that a call ended with an exception."""
        log.debug("a call failed: %s: %s", type(exception).__name__, exception)

    def _log_outgoing_request(self, synapse: Any) -> None:
        log.debug("--> %s, %s", synapse.name, synapse.axon.hotkey)

    def _log_incoming_response(self, synapse: Any) -> None:
        log.debug(
            "<-- %s, %s: %s %s",
            synapse.name,
            synapse.axon.hotkey,
            synapse.dendrite.status_code,
            synapse.dendrite.status_message,
        )

    # How.

    def _prepare(self, call: Call, timeout: float | None) -> None:
        """Fill in the terminals of a request and begin to count its time."""
        if "preprocess_synapse_for_request" in self._overrides:
            call.synapse = self.preprocess_synapse_for_request(
                call.target, call.synapse, timeout
            )
        else:
            self._set_terminals(
                call.synapse, call.plan, call.target, call.nonce, timeout
            )
        if timeout:
            if not 0 < timeout < math.inf:
                raise ValueError(f"timeout must be seconds, not {timeout!r}")
            call.deadline = call.start + timeout
        if self._tells_all or log.isEnabledFor(logging.DEBUG):
            self._log_outgoing_request(call.synapse)

    def _set_terminals(
        self,
        synapse: Any,
        plan: Plan,
        target: AxonInfo,
        nonce: int,
        timeout: float | None,
    ) -> None:
        kind = plan.terminal_class
        ours = self._ours.get(kind)
        if ours is None:
            ours = self._ours[kind] = {
                **blank_of(kind),
                "ip": self._external_ip,
                "version": PROTOCOL_VERSION,
                "uuid": self.uuid,
                "hotkey": self._hotkey,
            }
        dendrite, axon = ours.copy(), blank_of(kind).copy()
        dendrite["nonce"] = nonce
        axon["ip"], axon["port"], axon["hotkey"] = target.ip, target.port, target.hotkey
        values = synapse.__dict__
        values["dendrite"] = terminal_of(kind, dendrite, _OF_DENDRITE)
        values["axon"] = terminal_of(kind, axon, _OF_AXON)
        values["timeout"] = None if timeout is None else float(timeout)
        synapse.__pydantic_fields_set__.update(_SET)

    async def _carry_out(self, call: Call, timeout: float | None) -> Any:
        try:
            self._prepare(call, timeout)
            if (axon := self._warm(call.target)) is None:
                await self._ask(call)
            else:
                # The same, without the questions that a connection answers.
                anywhere = cast("Anywhere", self._anywhere)
                answer = await anywhere.ask(
                    axon,
                    call.frame or self._frame(call, timeout),
                    timeout or None,
                    connect_timeout=self._connect_timeout,
                    max_bytes=self._max_response_bytes,
                )
                self._take(call, answer)
        except Exception as error:
            self._fail(call, error)
        self._finished(call)
        return call.synapse

    def _warm(self, target: AxonInfo) -> QuicAxonInfo | None:
        """Return where an axon is that is connected, None for the others."""
        anywhere = self._anywhere
        if anywhere is None or self._retries:
            return None
        miner = (target.hotkey, target.ip, target.port)
        axon = self._targets.get(miner)
        if axon is None or not anywhere.is_connected(axon):
            return None
        _speaks.spoke_quic(miner)
        return axon

    def _fail(self, call: Call, error: Exception) -> None:
        deadline = call.deadline
        if isinstance(error, StreamError) and (
            deadline is not None and time.monotonic() >= deadline
        ):
            # A stream stops itself when its time is over.
            error = TimeoutError()
        call.synapse = self.process_error_message(call.synapse, call.plan.name, error)

    def _finished(self, call: Call) -> None:
        if self._tells_all or log.isEnabledFor(logging.DEBUG):
            self._log_incoming_response(call.synapse)
        if self.synapse_history.maxlen:
            self.synapse_history.append(_headers_only(call.synapse))

    async def _ask_all(
        self, targets: list[Any], synapse: Any, plan: Plan, timeout: float | None
    ) -> list[Any]:
        """Ask many with one body, which is encoded once."""
        calls = [
            Call(target_of(target), synapse.model_copy(), plan, None)
            for target in targets
        ]
        if not calls:
            return []
        first = calls[0]
        # A hook may give each a body of its own.
        if self._quic and "preprocess_synapse_for_request" not in self._overrides:
            # What cannot be sent is told by each call.
            with contextlib.suppress(Exception):
                self._frame(first, timeout)
        warm, cold = [], []
        for call in calls:
            call.frame, call.nonce, call.start = first.frame, first.nonce, first.start
            axon = self._warm(call.target)
            if axon is None or call.frame is None:
                cold.append(self._carry_out(call, timeout))
            else:
                warm.append((call, axon))
        await gather([self._ask_warm(warm, timeout), *cold])
        return [call.synapse for call in calls]

    async def _ask_warm(
        self, warm: list[tuple[Call, QuicAxonInfo]], timeout: float | None
    ) -> None:
        """Ask those that are connected, all in one go."""
        wanted, calls = [], []
        for call, axon in warm:
            try:
                self._prepare(call, timeout)
            except Exception as error:
                self._fail(call, error)
                self._finished(call)
            else:
                wanted.append((axon, cast("bytes", call.frame)))
                calls.append(call)
        if not calls:
            return
        outcomes: list[Answer | Exception]
        try:
            outcomes = await cast("Anywhere", self._anywhere).ask_many(
                wanted,
                timeout or None,
                connect_timeout=self._connect_timeout,
                max_bytes=self._max_response_bytes,
            )
        except Exception as error:
            outcomes = [error] * len(calls)
        for call, outcome in zip(calls, outcomes, strict=True):
            try:
                if isinstance(outcome, Exception):
                    raise outcome  # noqa: TRY301 - as it is where one is asked.
                self._take(call, outcome)
                seconds = outcome.seconds + outcome.connect_seconds
                call.synapse.dendrite.__dict__["process_time"] = seconds
            except Exception as error:
                self._fail(call, error)
            self._finished(call)

    async def _ask(self, call: Call) -> None:
        """Ask one axon, again if it was not asked, and fill the synapse."""
        pause = RETRY_PAUSE
        for left in range(self._retries, -1, -1):
            is_last = not left or not call.lasts(pause)
            try:
                if await self._ask_once(call) or is_last:
                    return
            except Exception as error:
                if is_last or not _is_unreached(error) or not call.lasts(pause):
                    raise
            await asyncio.sleep(pause)
            pause *= 2
            _set_status(call, None, None, None)
            call.synapse.dendrite.__dict__["process_time"] = None

    async def _ask_once(self, call: Call) -> bool:
        """Ask over what the axon speaks; return False if it did not begin."""
        target = call.target
        if not target.port or str(target.ip) in _NOWHERE:
            raise LightningConnectionError("the axon does not serve")
        anywhere, axon, way = self._route(target)
        miner = (target.hotkey, target.ip, target.port)
        if anywhere is not None and axon is not None:
            if way is None:
                answer = await self._over_quic(call, anywhere, axon, Way.QUIC)
                return self._take(call, answer)
            if way is Way.HTTP_AND_DIAL:
                anywhere.dial(axon, DIAL_AGAIN)
            elif way is not Way.HTTP:
                tried = await self._try_quic(call, anywhere, axon, way)
                if tried is not None:
                    return self._take(call, tried)
        try:
            await self._http_end().call(
                target,
                call.synapse,
                call.synapse.timeout,
                self._connect_timeout,
                left=call.left(),
                prepared="preprocess_synapse_for_request" in self._overrides,
                url=self._url(call),
                process=self._processor(),
            )
        except Exception as error:
            if _is_unreached(error):
                _speaks.failed_http(miner)
            raise
        _speaks.spoke_http(miner, time.monotonic())
        _set_time(call)
        return True

    async def _try_quic(
        self, call: Call, anywhere: Anywhere, axon: QuicAxonInfo, way: Way
    ) -> Answer | None:
        """Ask over QUIC, and remember how that went; None if HTTP is to be tried."""
        target = call.target
        miner = (target.hotkey, target.ip, target.port)
        try:
            answer = await self._over_quic(call, anywhere, axon, way)
        except (LightningConnectionError, HandshakeError):
            _speaks.failed_quic(miner)
            if way is Way.QUIC:
                raise
            return None
        except TimeoutError:
            if not anywhere.is_connected(axon):
                _speaks.failed_quic(miner)
            raise
        _speaks.spoke_quic(miner)
        return answer

    def _route(
        self, target: AxonInfo
    ) -> tuple[Anywhere | None, QuicAxonInfo | None, Way | None]:
        """Return over what to ask; no way means that only one is allowed."""
        if not self._quic:
            return None, None, None
        anywhere = self._anywhere or self._quic_end()
        axon = self._quic_axon(target)
        if not self._http:
            return anywhere, axon, None
        if anywhere.is_connected(axon):
            return anywhere, axon, Way.QUIC
        miner = (target.hotkey, target.ip, target.port)
        return anywhere, axon, _speaks.way(miner, time.monotonic())

    async def _over_quic(
        self, call: Call, anywhere: Anywhere, axon: QuicAxonInfo, way: Way
    ) -> Answer:
        frame = call.frame or self._frame(call, call.synapse.timeout)
        left = call.left()
        connect = self._connect_timeout
        if way is Way.EITHER:
            connect = min(
                connect or math.inf, PROBE, math.inf if left is None else left / 3
            )
        return await anywhere.ask(
            axon,
            frame,
            left,
            connect_timeout=connect,
            max_bytes=self._max_response_bytes,
        )

    def _frame(self, call: Call, timeout: float | None) -> bytes:
        """Encode the body of a call."""
        meta = self._meta(call, timeout)
        anywhere = self._anywhere or self._quic_end()
        plan = call.plan
        try:
            data = plan.request_data(call.synapse, meta)
            frame = anywhere.encode(plan.name, data)
        except FrameTooLarge as error:
            # What comes in and is too large is another matter.
            raise EncodeError(error.detail) from error
        call.frame = frame
        return frame

    def _meta(self, call: Call, timeout: float | None) -> dict[str, Any]:
        return {
            "timeout": timeout,
            "uuid": self.uuid,
            "nonce": call.nonce,
            "version": PROTOCOL_VERSION,
        }

    def _take(self, call: Call, answer: Answer) -> bool:
        """Fill the synapse from what came over QUIC; return if work had begun."""
        begun = True
        data = answer.data
        process_time = None
        if not answer.success:
            code, message = refusal(answer.error, call.plan.name)
            begun = answer.error not in NOT_BEGUN
            data = {}
        else:
            code, message, process_time = told(data.get(RESERVED))
        if "process_server_response" in self._overrides:
            self._take_by_hook(call, data, code, message, process_time)
        else:
            if code == 200:
                call.plan.fill(call.synapse, data)
            _set_status(call, code, message, process_time)
        _set_time(call)
        return begun

    def _take_by_hook(
        self,
        call: Call,
        data: dict[str, Any],
        code: int,
        message: str,
        process_time: float | None,
    ) -> None:
        meta = data.pop(RESERVED, None)
        if code != 200:
            data = {"message": message}
        else:
            if isinstance(meta, dict) and meta.get("partial") is True:
                data = call.plan.completed(call.synapse, data)
            data = _whole(call, data)
        response = StreamedResponse(
            _nothing(), code, _headers(call, code, message, process_time)
        )
        self.process_server_response(response, data, call.synapse)

    async def _pieces(self, call: Call) -> AsyncGenerator[Any, None]:
        """Give the pieces of a streamed answer, and fill the synapse."""
        target = call.target
        if not target.port or str(target.ip) in _NOWHERE:
            raise LightningConnectionError("the axon does not serve")
        anywhere, axon, way = self._route(target)
        miner = (target.hotkey, target.ip, target.port)
        if anywhere is not None and axon is not None:
            if way in (None, Way.QUIC, Way.EITHER):
                mark = secrets.token_bytes(MARK_SIZE)
                try:
                    chunks = await self._open(call, anywhere, axon, way, mark)
                except (LightningConnectionError, HandshakeError):
                    _speaks.failed_quic(miner)
                    if way is not Way.EITHER:
                        raise
                else:
                    _speaks.spoke_quic(miner)
                    async with aclosing(self._read(call, chunks, mark)) as pieces:
                        async for piece in pieces:
                            yield piece
                    return
            elif way is Way.HTTP_AND_DIAL:
                anywhere.dial(axon, DIAL_AGAIN)
        source = self._http_end().stream(
            target,
            call.synapse,
            call.synapse.timeout,
            self._connect_timeout,
            left=call.left(),
            prepared="preprocess_synapse_for_request" in self._overrides,
            url=self._url(call),
            process=self._processor(),
        )
        async with aclosing(source):
            async for piece in source:
                if piece is not call.synapse:
                    yield piece
        _speaks.spoke_http(miner, time.monotonic())
        _set_time(call)

    async def _open(
        self,
        call: Call,
        anywhere: Anywhere,
        axon: QuicAxonInfo,
        way: Way | None,
        mark: bytes,
    ) -> Chunks:
        left = call.left()
        connect = self._connect_timeout
        if way is Way.EITHER:
            connect = min(
                connect or math.inf, PROBE, math.inf if left is None else left / 3
            )
        meta = self._meta(call, call.synapse.timeout)
        meta["mark"] = mark
        plan = call.plan
        try:
            data = plan.request_data(call.synapse, meta)
            return await anywhere.stream(
                axon, plan.name, data, left, connect_timeout=connect
            )
        except FrameTooLarge as error:
            raise EncodeError(error.detail) from error

    async def _read(
        self, call: Call, chunks: Chunks, mark: bytes
    ) -> AsyncGenerator[Any, None]:
        """Read a stream that came over QUIC."""
        async with aclosing(Marked(chunks, mark)) as body:
            await body.begin()
            head = body.told
            code, message, process_time = told(head)
            if code == 200:
                headers = raw_headers(head) or _headers(call, 200, message, None)
                response = StreamedResponse(body, 200, headers)
                pieces = call.synapse.process_streaming_response(response)
                async with aclosing(pieces):
                    async for piece in pieces:
                        yield piece
                async for _ in body:
                    pass  # The trailer is at the end of it.
                code, message, process_time = told(body.told)
                if code == 200:
                    self._take_fields(call, response)
        _set_status(call, code, message, process_time)
        _set_time(call)

    def _take_fields(self, call: Call, response: StreamedResponse) -> None:
        """Set the fields that the synapse's class made of a stream."""
        found = call.synapse.extract_response_json(response)
        if not isinstance(found, dict):
            raise SynapseParsingError("extract_response_json must return a dict")
        if "process_server_response" in self._overrides:
            self.process_server_response(response, _whole(call, found), call.synapse)
            return
        data = {name: found[name] for name in call.plan.own if name in found}
        data[RESERVED] = {"partial": True}
        call.plan.fill(call.synapse, data)

    def _url(self, call: Call) -> str | None:
        if "_get_endpoint_url" in self._overrides:
            return self._get_endpoint_url(call.target, call.plan.name)
        return None

    def _processor(self) -> Callable[..., None] | None:
        overridden = "process_server_response" in self._overrides
        return self.process_server_response if overridden else None

    def _quic_axon(self, target: AxonInfo) -> QuicAxonInfo:
        key = (target.hotkey, target.ip, target.port)
        axon = self._targets.get(key)
        if axon is None:
            axon = QuicAxonInfo(target.hotkey, str(target.ip), int(target.port))
            self._targets[key] = axon
            if len(self._targets) > _TARGETS:
                with contextlib.suppress(KeyError):
                    self._targets.popitem(last=False)
        return axon

    def _quic_end(self) -> Anywhere:
        with self._lock:
            if self._anywhere is None:
                if self._client is not None:
                    self._anywhere = Anywhere.of(self._client)
                else:
                    self._anywhere = Anywhere.shared(self._hotkey, self.keypair)
            return self._anywhere

    def _http_end(self) -> HttpClient:
        with self._lock:
            if self._http_client is None:
                from lightning.dropin.http_client import HttpClient  # noqa: PLC0415 - an extra.

                self._http_client = HttpClient(
                    self.keypair,
                    self.uuid,
                    max_response_bytes=self._max_response_bytes,
                    external_ip=self._external_ip,
                )
            return self._http_client


def _set_status(
    call: Call,
    code: int | None,
    message: str | None,
    process_time: float | None,
) -> None:
    """Say on both ends what the axon said."""
    axon, dendrite = call.synapse.axon.__dict__, call.synapse.dendrite.__dict__
    axon["status_code"] = dendrite["status_code"] = code
    axon["status_message"] = dendrite["status_message"] = message
    axon["process_time"] = process_time


def _set_time(call: Call) -> None:
    call.synapse.dendrite.__dict__["process_time"] = time.monotonic() - call.start


def _headers(
    call: Call, code: int, message: str, process_time: float | None
) -> list[tuple[bytes, bytes]]:
    """Return the headers that an answer over QUIC would have had over HTTP."""
    synapse = call.synapse
    found = {
        "name": call.plan.name,
        **{f"bt_header_axon_{k}": v for k, v in synapse.axon.__dict__.items()},
        **{f"bt_header_dendrite_{k}": v for k, v in synapse.dendrite.__dict__.items()},
        "bt_header_axon_status_code": code,
        "bt_header_axon_status_message": message,
        "bt_header_axon_process_time": process_time,
    }
    return [
        (name.encode(), str(value).encode("latin-1", "replace"))
        for name, value in found.items()
        if value is not None
    ]


def _whole(call: Call, data: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an answer with what it would have of ours over HTTP."""
    synapse = call.synapse
    return {
        "timeout": synapse.timeout,
        "dendrite": synapse.dendrite.model_dump(),
        "axon": synapse.axon.model_dump(),
        **data,
    }


async def _nothing() -> AsyncGenerator[bytes, None]:
    for _ in range(0):
        yield b""


def _headers_only(synapse: Any) -> Any:
    """Return a synapse without its own fields, for the history."""
    kept = Synapse(timeout=synapse.timeout)
    kept.__dict__["name"] = synapse.name
    set_terminals(kept, synapse.dendrite, synapse.axon)
    return kept


def _is_unreached(error: Exception) -> bool:
    """Say if a call ended before any miner was asked."""
    if isinstance(error, LightningConnectionError):
        return True
    aiohttp = sys.modules.get("aiohttp")
    return aiohttp is not None and isinstance(error, aiohttp.ClientConnectorError)


async def gather(calls: Iterable[Any]) -> list[Any]:
    """Make calls at once and return their results in order."""
    calls = list(calls)
    if len(calls) == 1:
        return [await calls[0]]
    return list(await asyncio.gather(*calls))


def _overrides_of(kind: type[Asking]) -> frozenset[str]:
    """Return the names of the functions above that a subclass has replaced."""
    return frozenset(
        name
        for name, mine in vars(Asking).items()
        if callable(mine) and getattr(kind, name) is not mine
    )
