"""Write ``synapse.json``: what bittensor's synapses, axon infos and exceptions show.

Run it with a Python that has bittensor 10.5.0; see ``tools/bittensor_env.sh``.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


def main() -> None:
    import bittensor
    import pydantic
    from bittensor.core import errors
    from synapses import (
        classes,
        observed,
        observed_axons,
        observed_errors,
    )

    warnings.simplefilter("ignore", DeprecationWarning)
    found = {
        "python": list(sys.version_info[:2]),
        "pydantic": pydantic.VERSION,
        "bittensor": bittensor.__version__,
        "synapses": observed(classes(bittensor.Synapse)),
        "axons": observed_axons(bittensor.AxonInfo),
        "errors": observed_errors(errors),
    }
    text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=True)
    (HERE / "synapse.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
