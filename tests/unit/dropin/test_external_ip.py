"""Our address on the internet, without the internet."""

import io
import urllib.error
import urllib.request

import pytest

from lightning.dropin import external_ip as module
from lightning.dropin.external_ip import SERVICES, TIMEOUT, UNKNOWN, external_ip


@pytest.fixture
def services(monkeypatch):
    """What each of the services says, in turn; what was asked is noted."""
    answers, asked = [], []

    def urlopen(url, timeout):
        asked.append((url, timeout))
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return answers, asked


@pytest.mark.parametrize(
    ("said", "address"),
    [(b"192.0.2.7\n", "192.0.2.7"), (b" 2001:DB8:0::1 ", "2001:db8::1")],
)
def test_the_first_that_says_an_address_is_believed(services, said, address):
    """Of both families, whatever is around it."""
    answers, asked = services
    answers.append(said)
    assert external_ip() == address
    assert asked == [(SERVICES[0], TIMEOUT)]


def test_who_says_no_address_is_passed_over(services):
    """A page, a number that is none, bytes that are no text."""
    answers, asked = services
    answers += [b"<html>busy</html>", b"\xff\xfe", b"192.0.2.8"]
    assert external_ip() == "192.0.2.8"
    assert [url for url, _ in asked] == list(SERVICES)


def test_without_internet_there_is_none(services):
    """Nothing is raised."""
    answers, _ = services
    answers += [TimeoutError(), urllib.error.URLError("no route"), OSError("gone")]
    assert external_ip() == UNKNOWN == "0.0.0.0"


def test_little_is_read(services, monkeypatch):
    """A service may send whatever it likes."""
    answers, _ = services
    monkeypatch.setattr(module, "SERVICES", SERVICES[:1])
    answers.append(b"192.0.2.9" + b" " * 55 + b"no address")
    assert external_ip() == "192.0.2.9"
