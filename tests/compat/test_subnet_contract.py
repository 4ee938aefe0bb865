"""What a subnet of proof miners relies on: typed async handlers over the wire."""

from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import msgspec
import pytest

from lightning import AsyncLightning, QuicAxonInfo, QuicRequest, typed_async_handler


class ZkProof(TypedDict, total=False):
    """What may be absent is not there at all."""

    model_id: str
    query_input: Any
    query_output: str
    proof: bytes


class Slice(TypedDict):
    circuit: str
    inputs: NotRequired[Any]
    outputs: NotRequired[Any]
    proof_system: NotRequired[str]


@dataclass
class Competition:
    """The same with a dataclass, whose absent field is UNSET."""

    id: int
    hash: str
    file_name: str
    error: str | msgspec.UnsetType = msgspec.UNSET


@typed_async_handler
async def query_zk_proof(request: ZkProof) -> ZkProof:
    if "query_input" in request:
        request["query_output"] = "proved"
    return request


@typed_async_handler
async def prove_slice(request: Slice) -> Slice:
    request["outputs"] = {"rows": [[-0.25, 1e-9], [3.5, -7]], "witness": b"\x00\x01"}
    return request


@typed_async_handler
async def compete(request: Competition) -> Competition:
    if not request.file_name:
        request.error = "no such circuit"
    return request


HANDLERS = {
    "query-zk-proof": query_zk_proof,
    "dsperse-proof-generation": prove_slice,
    "competition": compete,
}


class Subnet:
    """A client that has logged in with a miner of the subnet."""

    def __init__(self, client: AsyncLightning, axon: QuicAxonInfo) -> None:
        self.client = client
        self.axon = axon

    async def ask(self, name: str, value: Any) -> Any:
        request = QuicRequest.from_typed(name, value)
        return await self.client.query_axon(self.axon, request, 20)

    async def data(self, name: str, value: Any) -> dict[str, Any]:
        return (await self.ask(name, value)).into_result()


@pytest.fixture
async def subnet(start_server, connect) -> Subnet:
    def prepare(server):
        for name, handler in HANDLERS.items():
            server.register_async_synapse_handler(name, handler)

    return Subnet(*await connect(await start_server(prepare)))


INPUT = {"layers": [{"w": [[-1, 0.5], [2, None]]}, {"b": True}], "name": "mlp"}


async def test_query_zk_proof_full_roundtrip(subnet):
    full = {"model_id": "m", "query_input": INPUT, "proof": b"\x01"}
    assert await subnet.data("query-zk-proof", full) == {
        **full,
        "query_output": "proved",
    }


async def test_query_zk_proof_all_fields_none(subnet):
    """Nothing was sent, and nothing comes back: no key, not a nil."""
    assert await subnet.data("query-zk-proof", {}) == {}


async def test_query_zk_proof_partial_fields(subnet):
    assert await subnet.data("query-zk-proof", {"model_id": "m"}) == {"model_id": "m"}


async def test_dslice_proof_generation_full_roundtrip(subnet):
    full = {"circuit": "c", "inputs": INPUT, "proof_system": "JSTPROVE"}
    found = await subnet.data("dsperse-proof-generation", full)
    outputs = found.pop("outputs")
    assert found == full
    assert outputs["witness"] == b"\x00\x01"


async def test_dslice_proof_generation_minimal_fields(subnet):
    found = await subnet.data("dsperse-proof-generation", {"circuit": "c"})
    assert set(found) == {"circuit", "outputs"}


async def test_competition_full_roundtrip(subnet):
    asked = Competition(2**40, "abc", "circuit.zip")
    found = await subnet.ask("competition", asked)
    assert found.deserialize_data(Competition) == asked
    assert found.data["id"] == 2**40
    assert "error" not in found.data


async def test_competition_required_fields_only(subnet):
    required = {"id": 1, "hash": "h", "file_name": "f"}
    assert await subnet.data("competition", required) == required
    lacking = await subnet.ask("competition", {"id": 1, "hash": "h"})
    assert (lacking.success, lacking.error) == (False, "request processing failed")


async def test_competition_error_field_roundtrip(subnet):
    """An application's error is data, and the answer a success."""
    found = await subnet.ask("competition", Competition(1, "h", ""))
    assert found.success
    assert found.error is None
    assert found.data["error"] == "no such circuit"
    assert found.deserialize_data(Competition).error == "no such circuit"


async def test_skip_serializing_if_none_omits_fields(subnet):
    request = QuicRequest.from_typed("competition", Competition(1, "h", "f"))
    assert set(request.data) == {"id", "hash", "file_name"}


async def test_skip_serializing_if_none_deserializes_back_to_none(subnet):
    @dataclass
    class Reader:
        id: int
        error: str | None = None

    found = await subnet.ask("competition", Competition(1, "h", "f"))
    assert found.deserialize_data(Reader) == Reader(1, None)


async def test_hashmap_client_to_struct_server_nested_json(subnet):
    """The client sends a plain map, the server has a type."""
    deep = {"a": [{"b": [{"c": [1, [2, [3, {"d": -4.5}]]]}]}], "e": {"f": {"g": []}}}
    request = {"synapse_type": "query-zk-proof", "data": {"query_input": deep}}
    answer = await subnet.client.query_axon(subnet.axon, request, 20)
    assert answer.data == {"query_input": deep, "query_output": "proved"}


async def test_dslice_with_complex_inputs_and_outputs(subnet):
    inputs = {"x": [[-1.5, 2.25], [1e300, -(2**63)]], "y": {"z": [0, -0.0]}}
    found = await subnet.data(
        "dsperse-proof-generation", {"circuit": "c", "inputs": inputs}
    )
    assert found["inputs"] == inputs
    assert found["outputs"]["rows"] == [[-0.25, 1e-9], [3.5, -7]]


async def test_multiple_handlers_registered_simultaneously(subnet):
    for name, value in [
        ("query-zk-proof", {"model_id": "m"}),
        ("dsperse-proof-generation", {"circuit": "c"}),
        ("competition", {"id": 1, "hash": "h", "file_name": "f"}),
    ]:
        assert (await subnet.data(name, value)).items() >= value.items()
