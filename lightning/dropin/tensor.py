"""An array as a pydantic model, in the form that bittensor gives it; needs numpy.

In new synapses an array can be a field itself, see `lightning.dropin.codec`.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field, field_validator

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Tensor", "tensor"]

DTYPES: Final = frozenset(
    {
        "bool",
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
    }
)
_NUMBERS: Final = "biuf"


class Tensor(BaseModel):
    """An array that travels as text.

    Attributes:
        buffer: Base64 of MessagePack, as msgpack-numpy has it.
        dtype: The name of numpy's type; a leading ``torch.`` is left out.
        shape: Lengths along the axes; ``[0]`` of a single number.
    """

    model_config = ConfigDict(validate_assignment=True)

    buffer: str | None = Field(default=None, title="buffer", frozen=True, repr=False)
    dtype: str = Field(title="dtype", frozen=True)
    shape: list[int] = Field(title="shape", frozen=True)

    @field_validator("shape", mode="before")
    @classmethod
    def _take_shape(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [int(part) for part in value.strip("[] ").split(",") if part.strip()]
        return value

    @field_validator("dtype", mode="before")
    @classmethod
    def _take_dtype(cls, value: Any) -> Any:
        name = str(value).removeprefix("torch.")
        if name not in DTYPES:
            raise ValueError(f"{value!r} is none of {', '.join(sorted(DTYPES))}")
        return name

    @classmethod
    def serialize(cls, tensor_: Any) -> Self:
        """Make one of a numpy array, or of a torch tensor."""
        if hasattr(tensor_, "detach"):
            tensor_ = tensor_.detach().cpu().numpy()
        packed = msgspec.msgpack.encode(
            {
                b"nd": True,
                b"type": tensor_.dtype.str,
                b"kind": b"",
                b"shape": list(tensor_.shape),
                b"data": tensor_.tobytes(),
            }
        )
        return cls(
            buffer=base64.b64encode(packed).decode(),
            dtype=str(tensor_.dtype),
            shape=list(tensor_.shape) or [0],
        )

    def deserialize(self) -> np.ndarray[Any, Any]:
        """Return the array.

        Raises:
            ValueError: The buffer holds none.
        """
        import numpy as np  # noqa: PLC0415 - only who has arrays needs it.

        try:
            form = msgspec.msgpack.decode(base64.b64decode(self.buffer or ""))
            if form[b"type"].lstrip("<>=|")[:1] not in tuple(_NUMBERS):
                raise ValueError("no array of numbers")
            array = np.frombuffer(form[b"data"], form[b"type"])
            shape = form[b"shape"] if self.shape == [0] else self.shape
            return array.reshape(shape).astype(self.dtype)
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the buffer holds no array: {error}") from error

    def tensor(self) -> np.ndarray[Any, Any]:
        """Do as `deserialize`."""
        return self.deserialize()

    def numpy(self) -> np.ndarray[Any, Any]:
        """Do as `deserialize`."""
        return self.deserialize()

    def tolist(self) -> Any:
        """Return the array as nested lists."""
        return self.deserialize().tolist()


def tensor(tensor: Any) -> Tensor:
    """Make a `Tensor` of nested lists or an array."""
    import numpy as np  # noqa: PLC0415 - as above.

    return Tensor.serialize(np.asarray(tensor))
