"""The example in the peer's package description, run with our package imported."""

import re
from importlib.metadata import metadata

from lightning import LightningServer, Sr25519Signer
from tests.support.identities import (
    MINER,
    MINER_HOTKEY,
    VALIDATOR_HOTKEY,
    VALIDATOR_SEED,
)


def test_it_runs_with_only_the_import_changed(peer):
    text = metadata("btlightning").get_payload()
    code = next(
        block
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if "query_axon" in block
    )
    server = LightningServer(MINER_HOTKEY, "127.0.0.1", 0, signer=MINER)
    server.register_synapse_handler("MyQuery", lambda data: {"got": data})
    with server:
        _, port = server.local_addr()
        code = code.replace("from btlightning import", "from lightning import")
        # Its placeholders stand for a real validator, miner and address.
        code = re.sub(
            r'wallet_hotkey="[^"]*"', f'wallet_hotkey="{VALIDATOR_HOTKEY}"', code
        )
        code = re.sub(r'"hotkey": "[^"]*"', f'"hotkey": "{MINER_HOTKEY}"', code)
        code = re.sub(r'"ip": "[^"]*"', '"ip": "127.0.0.1"', code)
        code = re.sub(r'"port": \d+', f'"port": {port}', code)
        names = {"my_signer_callback": Sr25519Signer.from_seed(VALIDATOR_SEED).sign}
        exec(compile(code, "example", "exec"), names)
        names["client"].close()
    assert names["response"]["data"] == {"got": {"key": "value"}}
