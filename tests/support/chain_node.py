"""A node of the chain: JSON-RPC over WebSocket, replaying recorded answers.

What the recording lacks, a test adds; nothing is made up here.
"""

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import pytest
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(__file__).parents[3] / "shared" / "chain"
RECORDED = FOLDER / "recorded-rpc.json"
METADATA = FOLDER / "metadata-v14.hex"
API = "NeuronInfoRuntimeApi_get_neurons_lite"


def recorded() -> dict[str, Any]:
    """Return the recording; skip the test, or fail it where it must be there."""
    if not RECORDED.exists():
        if os.environ.get("LIGHTNING_REQUIRE_INTEROP") == "1":
            pytest.fail(f"{RECORDED} is missing")
        pytest.skip(f"{RECORDED} is missing")
    return json.loads(RECORDED.read_text())


def neurons_answer(scenario: str) -> bytes:
    """Return a recorded answer of get_neurons_lite."""
    calls = recorded()[scenario]["state_call"]
    (found,) = [v["result"] for k, v in calls.items() if API in k]
    return bytes.fromhex(found.removeprefix("0x"))


class Refusal(Exception):
    """A JSON-RPC error."""


class Cut(Exception):
    """The connection is cut in place of an answer."""


class ChainNode:
    """The node, on a loop in a thread of its own.

    Attributes:
        answers: By method, a function of the params that gives the result. It may
            raise `Refusal` or `Cut`, give an awaitable, or `bytes`, which are sent as
            they are in place of a JSON-RPC answer.
        asked: Every method asked, with its params.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[list[Any]], Any]] = {}
        self.asked: list[tuple[str, list[Any]]] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.url = ""
        self._thread = threading.Thread(
            target=self._run, daemon=True, name="asyncio_node"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def count(self, method: str) -> int:
        """Return how often a method was asked."""
        return sum(each == method for each, _ in self.asked)

    def _run(self) -> None:
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"ws://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _serve(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                break
            asked = json.loads(message.data)
            method, params = asked["method"], asked["params"]
            self.asked.append((method, params))
            answer = {"jsonrpc": "2.0", "id": asked["id"]}
            try:
                if method not in self.answers:
                    raise Refusal(f"Method not found: {method}")
                result = self.answers[method](params)
                if asyncio.iscoroutine(result):
                    result = await result
                answer["result"] = result
            except Refusal as error:
                answer["error"] = {"code": -32000, "message": str(error)}
            except Cut:
                request.transport.abort()
                break
            if isinstance(answer.get("result"), bytes):
                await socket.send_str(answer["result"].decode())
                continue
            await socket.send_str(json.dumps(answer))
            if method == "author_submitAndWatchExtrinsic" and "result" in answer:
                update = {
                    "jsonrpc": "2.0",
                    "method": "author_extrinsicUpdate",
                    "params": {
                        "subscription": answer["result"],
                        "result": {"inBlock": self.answers["chain_getHead"]([])},
                    },
                }
                await socket.send_str(json.dumps(update))
        return socket


def replay(node: ChainNode, scenario: str = "metagraph") -> str:
    """Have a node replay a recorded scenario; return the hash of its block."""
    calls = recorded()[scenario]
    texts = {
        json.loads(key)[1]: value["result"]
        for key, value in calls["state_call"].items()
        if json.loads(key)[0] == API
    }
    header = next(iter(calls["chain_getHeader"].values()))["result"]
    version = next(iter(calls["state_getRuntimeVersion"].values()))["result"]
    head = "0x" + "ab" * 32
    for key in calls["chain_getHeader"]:
        if json.loads(key)[0]:
            head = json.loads(key)[0]

    def call(params: list[Any]) -> str:
        method, argument = params[0], params[1].removeprefix("0x")
        if method != API:
            raise Refusal(f"{method} is not there")
        # A subnet that is not there has no neurons.
        found = {key.removeprefix("0x"): text for key, text in texts.items()}
        return found.get(argument, "0x00")

    node.answers.update(
        {
            "chain_getHead": lambda params: head,
            "chain_getHeader": lambda params: header,
            "state_getRuntimeVersion": lambda params: version,
            # As the client calls it.
            "chain_getRuntimeVersion": lambda params: version,
            "state_getMetadata": lambda params: METADATA.read_text(),
            "system_chain": lambda params: "Bittensor",
            "system_properties": lambda params: {"ss58Format": 42},
            "rpc_methods": lambda params: {"methods": []},
            "chain_getBlockHash": lambda params: head,
            "state_call": call,
        }
    )
    return head
