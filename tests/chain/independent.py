"""The recorded neurons as scalecodec decodes them: nothing of ours takes part."""

from typing import Any

STRUCTS = {
    "AxonInfo": [
        ["block", "u64"],
        ["version", "u32"],
        ["ip", "u128"],
        ["port", "u16"],
        ["ip_type", "u8"],
        ["protocol", "u8"],
        ["placeholder1", "u8"],
        ["placeholder2", "u8"],
    ],
    "PrometheusInfo": [
        ["block", "u64"],
        ["version", "u32"],
        ["ip", "u128"],
        ["port", "u16"],
        ["ip_type", "u8"],
    ],
    "NeuronInfoLite": [
        ["hotkey", "AccountId"],
        ["coldkey", "AccountId"],
        ["uid", "Compact<u16>"],
        ["netuid", "Compact<u16>"],
        ["active", "bool"],
        ["axon_info", "AxonInfo"],
        ["prometheus_info", "PrometheusInfo"],
        ["stake", "Vec<(AccountId, Compact<u64>)>"],
        ["rank", "Compact<u16>"],
        ["emission", "Compact<u64>"],
        ["incentive", "Compact<u16>"],
        ["consensus", "Compact<u16>"],
        ["trust", "Compact<u16>"],
        ["validator_trust", "Compact<u16>"],
        ["dividends", "Compact<u16>"],
        ["last_update", "Compact<u64>"],
        ["validator_permit", "bool"],
        ["pruning_score", "Compact<u16>"],
    ],
}


def decode(data: bytes, *, wrapped: bool) -> list[dict[str, Any]]:
    """Return each neuron's fields, by the names of a `NeuronInfo`."""
    from scalecodec.base import RuntimeConfigurationObject, ScaleBytes
    from scalecodec.type_registry import load_type_registry_preset

    config = RuntimeConfigurationObject(ss58_format=42)
    config.update_type_registry(load_type_registry_preset("legacy"))
    types = {n: {"type": "struct", "type_mapping": m} for n, m in STRUCTS.items()}
    config.update_type_registry({"types": types})
    if wrapped:
        text = config.create_scale_object(
            "HexBytes", ScaleBytes(bytearray(data))
        ).decode()
        data = bytes.fromhex(text[2:])
    neurons = config.create_scale_object(
        "Vec<NeuronInfoLite>", ScaleBytes(bytearray(data))
    ).decode()
    return [fields_of(neuron) for neuron in neurons]


def fields_of(neuron: dict[str, Any]) -> dict[str, Any]:
    axon = neuron["axon_info"]
    ip = ""
    if axon["ip_type"] == 4:
        ip = ".".join(str(axon["ip"] >> shift & 255) for shift in (24, 16, 8, 0))
    return {
        "uid": neuron["uid"],
        "hotkey": neuron["hotkey"],
        "stake": sum(each[1] for each in neuron["stake"]),
        "is_active": neuron["active"],
        "axon_ip": ip,
        "axon_port": axon["port"],
        "axon_protocol": axon["protocol"],
        "validator_permit": neuron["validator_permit"],
        "coldkey": neuron["coldkey"],
    }
