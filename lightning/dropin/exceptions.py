"""What an axon's functions raise, by the names that subnets know."""

from __future__ import annotations

from typing import Any

__all__ = [
    "BlacklistedException",
    "InternalServerError",
    "InvalidRequestNameError",
    "NotVerifiedException",
    "PostProcessException",
    "PriorityException",
    "RunException",
    "SynapseDendriteNoneException",
    "SynapseException",
    "SynapseParsingError",
    "UnknownSynapseError",
]


class SynapseException(Exception):
    """Something went wrong with a synapse.

    A forward function that raises one, with a synapse whose ``axon.status_code`` is
    set, has that code and the message answered.

    Args:
        message: What went wrong.
        synapse: Which synapse it happened to, if it is known.
    """

    def __init__(
        self, message: str = "Synapse Exception", synapse: Any | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.synapse = synapse


class UnknownSynapseError(SynapseException):
    """No function is attached for a synapse of this name."""


class NotVerifiedException(SynapseException):
    """The caller is not who it says."""


class BlacklistedException(SynapseException):
    """The blacklist function refused the caller."""


class PriorityException(SynapseException):
    """The priority function failed, or there was no room in the queue."""


class PostProcessException(SynapseException):
    """An answer could not be made from what the forward function returned."""


class RunException(SynapseException):
    """The forward function failed."""


class InternalServerError(SynapseException):
    """Something failed whose details are only in the axon's log."""


class SynapseDendriteNoneException(SynapseException):
    """A synapse does not say who sent it."""

    def __init__(
        self, message: str = "Synapse Dendrite is None", synapse: Any | None = None
    ) -> None:
        super().__init__(message, synapse)


class InvalidRequestNameError(Exception):
    """A request does not name a synapse."""


class SynapseParsingError(Exception):
    """What came cannot be made into a synapse of its class."""
