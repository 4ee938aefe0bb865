"""Arrays as models, in bittensor's form."""

import base64

import msgpack
import numpy as np
import pytest
from pydantic import ValidationError

from lightning import Tensor, tensor


@pytest.mark.parametrize(
    "array",
    [np.arange(6, dtype="f4").reshape(2, 3), np.array([True, False]), np.array(7.5)],
    ids=str,
)
def test_an_array_comes_back(array):
    sent = Tensor(**tensor(array).model_dump())
    for back in (sent.deserialize(), sent.tensor(), sent.numpy()):
        assert back.dtype == array.dtype
        assert (back == array).all()
    assert sent.tolist() == array.tolist()


def test_the_buffer_is_as_msgpack_numpy_has_it():
    """Keys are bytes; shape and type say how to read the data."""
    form = msgpack.unpackb(
        base64.b64decode(tensor([[1, 2]]).buffer), strict_map_key=False
    )
    assert form == {
        b"nd": True,
        b"type": "<i8",
        b"kind": b"",
        b"shape": [1, 2],
        b"data": np.array([1, 2]).tobytes(),
    }


def test_other_types_are_refused_and_torchs_names_taken():
    assert Tensor(dtype="torch.float32", shape="[2, 1]").shape == [2, 1]
    assert Tensor(dtype="torch.float32", shape=[1]).dtype == "float32"
    with pytest.raises(ValidationError, match="is none of"):
        Tensor(dtype="object", shape=[1])


@pytest.mark.parametrize(
    "form",
    [None, 1, {}, {b"type": "O", b"data": bytes(8), b"shape": [1]},
     {b"type": "<f4", b"data": b"1", b"shape": [1]}],
    ids=str,
)  # fmt: skip
def test_a_buffer_that_holds_no_array_is_told(form):
    buffer = base64.b64encode(msgpack.packb(form)).decode()
    with pytest.raises(ValueError, match=r".+"):
        Tensor(buffer=buffer, dtype="float32", shape=[1]).deserialize()
