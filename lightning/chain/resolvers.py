"""Who may log in, from where, and how much they weigh, as the metagraph has it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from lightning.admission import SourceAllowlist
from lightning.chain.metagraph import SYNC_TIMEOUT, Metagraph
from lightning.chain.sources import as_source
from lightning.errors import ConfigError

if TYPE_CHECKING:
    from lightning.chain.sources import MetagraphSource

__all__ = ["MetagraphResolver"]

MAX_AGE: Final = 60.0


class MetagraphResolver:
    """Answers a server's questions about validators from the chain.

    It is a `ValidatorPermitResolver` and a `SourceAddressResolver`, and gives
    `StakePriority` and `LearnedSources` what they ask for::

        chain = MetagraphResolver(2, FINNEY_ENDPOINT)
        server.set_validator_permit_resolver(chain)
        server.set_source_address_resolver(chain)
        server.set_priority(StakePriority(chain.stakes))
        sources = LearnedSources(chain.stakes, extra=chain.validator_axon_ips)

    Its questions block, as servers ask them in threads; those that come together share
    one read of the chain. If that fails they raise, and the server keeps what it knows.

    Args:
        subnet: A netuid, or a `Metagraph`.
        source: Anything `Metagraph.sync` takes; None if somebody else keeps the
            `Metagraph` in sync, such as a client's monitor.
        min_stake: In RAO; holders of a permit with less count as if they had none.
        max_age_secs: The view may be so old, in seconds, before it is read again.
        sync_timeout_secs: As for `Metagraph.sync`.

    Raises:
        ConfigError: A netuid without a source.
    """

    def __init__(
        self,
        subnet: int | Metagraph,
        source: Any = None,
        *,
        min_stake: int = 0,
        max_age_secs: float = MAX_AGE,
        sync_timeout_secs: float = SYNC_TIMEOUT,
    ) -> None:
        if source is None and not isinstance(subnet, Metagraph):
            raise ConfigError("a MetagraphResolver of a netuid needs a source")
        self.metagraph = subnet if isinstance(subnet, Metagraph) else Metagraph(subnet)
        self._source: MetagraphSource | None = None
        if source is not None:
            self._source = as_source(source)
        self._owns = self._source is not source
        self._min_stake = min_stake
        self._max_age = max_age_secs
        self._timeout = sync_timeout_secs
        self._lock = threading.Lock()

    def resolve_permitted_validators(self) -> set[str]:
        """Return the hotkeys that hold a permit.

        Raises:
            ChainError, LightningConnectionError: The chain cannot be read.
        """
        return set(self._fresh().permitted_validators(self._min_stake))

    def resolve_allowed_sources(self) -> SourceAllowlist:
        """Return the addresses that holders of a permit publish; all if none does.

        Raises:
            ChainError, LightningConnectionError: The chain cannot be read.
        """
        ips = self._fresh().validator_axon_ips()
        return SourceAllowlist.enforce(ips) if ips else SourceAllowlist.bypass()

    def stakes(self) -> dict[str, float]:
        """Return the stake in RAO of each holder of a permit.

        Raises:
            ChainError, LightningConnectionError: The chain cannot be read.
        """
        held = self._fresh().permitted_validators(self._min_stake)
        return {hotkey: float(stake) for hotkey, stake in held.items()}

    def validator_axon_ips(self) -> frozenset[str]:
        """Return the addresses that holders of a permit publish; often none.

        Raises:
            ChainError, LightningConnectionError: The chain cannot be read.
        """
        return self._fresh().validator_axon_ips()

    def close(self) -> None:
        """Close the connection to the chain; a later question makes a new one."""
        if self._source is not None and self._owns:
            self._source.close()

    def _fresh(self) -> Metagraph:
        metagraph = self.metagraph
        if self._source is None:
            return metagraph
        with self._lock:
            age = metagraph.age
            if age is None or age > self._max_age:
                try:
                    metagraph.sync(self._source, self._timeout)
                except BaseException:
                    # The next question makes a new connection.
                    self.close()
                    raise
        return metagraph
