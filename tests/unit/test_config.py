"""Settings: the peer's names, defaults, rules, texts and order, and our own limits."""

import dataclasses
import itertools
import pickle

import numpy as np
import pytest

from lightning.config import (
    LightningClientConfig,
    LightningClientConfigBuilder,
    LightningServerConfig,
    LightningServerConfigBuilder,
)
from lightning.errors import ConfigError

CLIENT_DEFAULTS = {
    "connect_timeout": 10.0,
    "idle_timeout": 150.0,
    "keep_alive_interval": 30.0,
    "reconnect_initial_backoff": 1.0,
    "reconnect_max_backoff": 60.0,
    "reconnect_max_retries": 5,
    "reconnect_slow_probe_interval": 60.0,
    "max_connections": 1024,
    "max_frame_payload_bytes": 67_108_864,
    "max_stream_payload_bytes": 67_108_864,
    "stream_chunk_timeout": None,
    "unresponsive_timeout": 10.0,
    "background_reconnect": False,
    "reconnect_jitter": 0.25,
    "qlog_dir": None,
    "keylog_file": None,
    "metagraph": None,
}
PEER_SERVER_DEFAULTS = {
    "max_signature_age_secs": 300,
    "idle_timeout_secs": 150,
    "keep_alive_interval_secs": 30,
    "nonce_cleanup_interval_secs": 60,
    "max_connections": 128,
    "max_nonce_entries": 100_000,
    "handshake_timeout_secs": 10,
    "max_handshake_attempts_per_minute": 30,
    "max_concurrent_bidi_streams": 128,
    "require_validator_permit": False,
    "validator_permit_refresh_secs": 1800,
    "max_tracked_rate_ips": 10_000,
    "handler_timeout_secs": 30,
    "max_frame_payload_bytes": 67_108_864,
    "streaming_channel_buffer": 32,
    "enforce_source_allowlist": False,
    "source_allowlist_refresh_secs": 300,
    "require_address_validation": True,
}
OWN_SERVER_DEFAULTS = {
    "handler_threads": 512,
    "login_deadline_secs": 10.0,
    "max_unauthenticated_connections": 256,
    "max_login_frame_bytes": 65_536,
    "frame_timeout_secs": 60.0,
    "max_unauthenticated_per_source": None,
    "max_connections_per_minute": None,
    "max_concurrent_requests": None,
    "max_concurrent_requests_per_validator": None,
    "max_queued_requests": 16_384,
    "max_requests_per_second": None,
    "request_burst": 32,
    "reset_secret": None,
    "qlog_dir": None,
    "keylog_file": None,
}
# Client's settings for which 0 breaks no rule of their own.
NOT_ZERO = (
    "metagraph",
    "max_stream_payload_bytes",
    "background_reconnect",
    "reconnect_jitter",
    "qlog_dir",
    "keylog_file",
)
NO_COUNTS = (
    "max_frame_payload_bytes",
    "max_login_frame_bytes",
    "reset_secret",
    "qlog_dir",
    "keylog_file",
)
CONFIGS = [LightningClientConfig, LightningServerConfig]


def refusal(config: type, **settings: object) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**settings)
    return caught.value.detail


def test_defaults_are_the_peers_and_our_own() -> None:
    """Defaults, and the order of the fields, are pinned."""
    assert dataclasses.asdict(LightningClientConfig()) == CLIENT_DEFAULTS
    server = dataclasses.asdict(LightningServerConfig())
    assert server == PEER_SERVER_DEFAULTS | OWN_SERVER_DEFAULTS


@pytest.mark.parametrize("config", CONFIGS)
def test_is_frozen_slotted_and_keyword_only(config: type) -> None:
    """A config cannot be changed, extended or given by position."""
    made = config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.max_connections = 5
    assert not hasattr(made, "__dict__")
    with pytest.raises(TypeError):
        config(1)
    with pytest.raises(TypeError):
        config(no_such_setting=1)


@pytest.mark.parametrize("config", CONFIGS)
def test_equal_hashable_and_pickled(config: type) -> None:
    """Equal settings make equal configs, also through pickle."""
    made = config(max_connections=7)
    assert made == config(max_connections=7) != config()
    assert hash(made) == hash(config(max_connections=7))
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize("config", CONFIGS)
def test_replace_checks_again(config: type) -> None:
    """dataclasses.replace makes a checked copy."""
    assert dataclasses.replace(config(), max_connections=3).max_connections == 3
    with pytest.raises(ConfigError, match="max_connections"):
        dataclasses.replace(config(), max_connections=0)


def test_every_field_has_a_docstring() -> None:
    """Each field is followed by its docstring, which gives the default."""
    import ast
    import inspect

    for config in CONFIGS:
        (tree,) = ast.parse(inspect.getsource(config)).body
        body = tree.body
        documented = {
            field.target.id
            for field, text in itertools.pairwise(body)
            if isinstance(field, ast.AnnAssign)
            and isinstance(text, ast.Expr)
            and "default" in text.value.value
        }
        assert documented == {f.name for f in dataclasses.fields(config)}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"connect_timeout": 0}, "connect_timeout must be non-zero"),
        ({"idle_timeout": 0.0}, "idle_timeout must be non-zero"),
        ({"keep_alive_interval": 0}, "keep_alive_interval must be non-zero"),
        (
            {"keep_alive_interval": 150},
            "keep_alive_interval (150s) must be less than idle_timeout (150s)",
        ),
        (
            {"keep_alive_interval": 0.5, "idle_timeout": 0.25},
            "keep_alive_interval (0.5s) must be less than idle_timeout (0.25s)",
        ),
        (
            {"reconnect_initial_backoff": 0},
            "reconnect_initial_backoff must be non-zero",
        ),
        ({"reconnect_max_backoff": 0}, "reconnect_max_backoff must be non-zero"),
        (
            {"reconnect_initial_backoff": 61},
            "reconnect_initial_backoff (61s) must be <= reconnect_max_backoff (60s)",
        ),
        ({"reconnect_max_retries": 0}, "reconnect_max_retries must be at least 1"),
        (
            {"reconnect_slow_probe_interval": 0},
            "reconnect_slow_probe_interval must be non-zero",
        ),
        ({"max_connections": 0}, "max_connections must be at least 1"),
        (
            {"max_frame_payload_bytes": 512},
            "max_frame_payload_bytes (512) must be at least 1048576 (1 MB)",
        ),
        (
            {"max_frame_payload_bytes": 2**32},
            "max_frame_payload_bytes (4294967296) must not exceed 4294967295 (u32::MAX)",
        ),
        (
            {"max_frame_payload_bytes": 2**27},
            (
                "max_stream_payload_bytes (67108864) must be >= "
                "max_frame_payload_bytes (134217728)"
            ),
        ),
        ({"stream_chunk_timeout": 0}, "stream_chunk_timeout must be non-zero"),
        ({"unresponsive_timeout": 0}, "unresponsive_timeout must be non-zero"),
        ({"reconnect_jitter": 1.5}, "reconnect_jitter (1.5) must not exceed 1"),
        ({"qlog_dir": ""}, "qlog_dir: '' is no path"),
        ({"keylog_file": "a\0b"}, "keylog_file: 'a\\x00b' is no path"),
        (
            {"connect_timeout": float("inf")},
            "connect_timeout must not exceed 315360000 seconds",
        ),
        (
            {"stream_chunk_timeout": 315_360_001},
            "stream_chunk_timeout must not exceed 315360000 seconds",
        ),
        (
            {"connect_timeout": float("nan")},
            "connect_timeout must be a number, not NaN",
        ),
    ],
)
def test_client_rules(settings: dict, text: str) -> None:
    """Each broken rule of the client is told in the peer's words."""
    assert refusal(LightningClientConfig, **settings) == text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        *(
            ({name: 0}, f"{name} must be non-zero")
            for name, default in (PEER_SERVER_DEFAULTS | OWN_SERVER_DEFAULTS).items()
            if not isinstance(default, bool) and name not in NO_COUNTS
        ),
        (
            {"reset_secret": bytes(31)},
            "reset_secret must have 32 bytes, not 31",
        ),
        ({"qlog_dir": ""}, "qlog_dir: '' is no path"),
        (
            {"max_signature_age_secs": 3601},
            "max_signature_age_secs must not exceed 3600 (1 hour)",
        ),
        *(
            (
                {name: value},
                f"{name} ({value}) must be less than idle_timeout_secs (150)",
            )
            for name in (
                "keep_alive_interval_secs",
                "handshake_timeout_secs",
                "handler_timeout_secs",
            )
            for value in (150, 151)
        ),
        (
            {"max_frame_payload_bytes": 5},
            "max_frame_payload_bytes (5) must be at least 1048576 (1 MB)",
        ),
        (
            {"max_frame_payload_bytes": 2**32},
            "max_frame_payload_bytes (4294967296) must not exceed 4294967295 (u32::MAX)",
        ),
        (
            {"max_login_frame_bytes": 511},
            "max_login_frame_bytes (511) must be at least 512",
        ),
        (
            {"max_login_frame_bytes": 2**27},
            (
                "max_login_frame_bytes (134217728) must be <= "
                "max_frame_payload_bytes (67108864)"
            ),
        ),
        (
            {"idle_timeout_secs": 2**64 - 1},
            "idle_timeout_secs must not exceed 315360000 seconds",
        ),
        (
            {"frame_timeout_secs": float("inf")},
            "frame_timeout_secs must not exceed 315360000 seconds",
        ),
    ],
)
def test_server_rules(settings: dict, text: str) -> None:
    """Each broken rule of the server is told in the peer's words."""
    assert refusal(LightningServerConfig, **settings) == text


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (LightningClientConfig, {"max_frame_payload_bytes": 1_048_576}),
        (
            LightningClientConfig,
            {
                "max_frame_payload_bytes": 2**32 - 1,
                "max_stream_payload_bytes": 2**32 - 1,
            },
        ),
        (LightningClientConfig, {"reconnect_initial_backoff": 60}),
        (LightningClientConfig, {"reconnect_slow_probe_interval": None}),
        (LightningClientConfig, {"keep_alive_interval": 149.999}),
        (LightningClientConfig, {"connect_timeout": 315_360_000}),
        (LightningServerConfig, {"max_signature_age_secs": 3600}),
        (LightningServerConfig, {"max_signature_age_secs": 1}),
        (LightningServerConfig, {"max_frame_payload_bytes": 2**32 - 1}),
        (LightningServerConfig, {"handler_timeout_secs": 149}),
        (LightningServerConfig, {"max_login_frame_bytes": 512}),
        (LightningServerConfig, {"max_nonce_entries": 2**64 - 1}),
    ],
)
def test_accepts_the_edge_of_each_rule(config: type, settings: dict) -> None:
    """The last value that a rule allows is allowed."""
    made = config(**settings)
    assert {name: getattr(made, name) for name in settings} == settings


def test_client_reports_the_first_broken_rule() -> None:
    """With every setting wrong, the rules are reported in the peer's order."""
    wrong = {name: 0 for name in CLIENT_DEFAULTS if name not in NOT_ZERO}
    seen = []
    while wrong:
        name = refusal(LightningClientConfig, **wrong).split()[0]
        seen.append(name)
        del wrong[name]
    assert seen == [n for n in CLIENT_DEFAULTS if n not in NOT_ZERO]


def test_server_reports_the_first_broken_rule() -> None:
    """With every setting wrong, the rules are reported in the peer's order."""
    # Captured from 0.2.15; the two settings its Python lacks stand where its table has them.
    order = [
        "max_signature_age_secs",
        "nonce_cleanup_interval_secs",
        "idle_timeout_secs",
        "keep_alive_interval_secs",
        "max_connections",
        "max_nonce_entries",
        "handshake_timeout_secs",
        "max_handshake_attempts_per_minute",
        "max_concurrent_bidi_streams",
        "validator_permit_refresh_secs",
        "max_tracked_rate_ips",
        "handler_timeout_secs",
        "max_frame_payload_bytes",
        "streaming_channel_buffer",
        "source_allowlist_refresh_secs",
    ]
    wrong = dict.fromkeys(order, 0)
    seen = []
    while wrong:
        name = refusal(LightningServerConfig, **wrong).split()[0]
        seen.append(name)
        del wrong[name]
    assert seen == order


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"keep_alive_interval_secs": 150, "max_nonce_entries": 0}, "keep_alive"),
        ({"keep_alive_interval_secs": 150, "nonce_cleanup_interval_secs": 0}, "nonce"),
        ({"handshake_timeout_secs": 150, "handler_timeout_secs": 0}, "handshake"),
        ({"handshake_timeout_secs": 150, "max_connections": 0}, "max_connections"),
        ({"max_signature_age_secs": 3601, "idle_timeout_secs": 0}, "max_signature"),
        ({"handler_timeout_secs": 150, "max_frame_payload_bytes": 2**32}, "handler"),
    ],
)
def test_comparisons_stand_where_the_peer_has_them(settings: dict, first: str) -> None:
    """A comparison is reported before or after other rules as the peer does."""
    assert refusal(LightningServerConfig, **settings).startswith(first)


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (LightningServerConfig, "max_connections", 1.5),
        (LightningServerConfig, "max_connections", True),
        (LightningServerConfig, "max_connections", "5"),
        (LightningServerConfig, "max_connections", None),
        (LightningServerConfig, "handler_timeout_secs", 5.0),
        (LightningServerConfig, "require_validator_permit", 1),
        (LightningServerConfig, "login_deadline_secs", None),
        (LightningClientConfig, "max_connections", np.float64(5)),
        (LightningClientConfig, "connect_timeout", "5"),
        (LightningClientConfig, "connect_timeout", True),
        (LightningClientConfig, "connect_timeout", None),
        (LightningClientConfig, "stream_chunk_timeout", b"1"),
        (LightningClientConfig, "background_reconnect", None),
        (LightningClientConfig, "qlog_dir", 5),
        (LightningClientConfig, "keylog_file", b"x"),
        (LightningServerConfig, "max_concurrent_requests", 1.5),
        (LightningServerConfig, "reset_secret", "x" * 32),
    ],
)
def test_refuses_other_types(config: type, name: str, value: object) -> None:
    """A value of a wrong type is a TypeError that names the field."""
    with pytest.raises(TypeError, match=f"{name} must be"):
        config(**{name: value})


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (LightningServerConfig, "max_connections", -1),
        (LightningServerConfig, "max_connections", 2**64),
        (LightningServerConfig, "max_concurrent_bidi_streams", 2**32),
        (LightningServerConfig, "max_handshake_attempts_per_minute", 2**32),
        (LightningServerConfig, "frame_timeout_secs", -0.5),
        (LightningClientConfig, "reconnect_max_retries", 2**32),
        (LightningClientConfig, "connect_timeout", -1),
        (LightningClientConfig, "stream_chunk_timeout", -1.0),
        (LightningClientConfig, "connect_timeout", 10**400),
    ],
)
def test_refuses_numbers_that_no_field_can_hold(
    config: type, name: str, value: object
) -> None:
    """A negative number, or one beyond the peer's width, is an OverflowError."""
    with pytest.raises(OverflowError):
        config(**{name: value})


def test_paths_may_be_path_objects(tmp_path) -> None:
    """A path ends as text, in either config."""
    for config in CONFIGS:
        assert config(qlog_dir=tmp_path).qlog_dir == str(tmp_path)


def test_the_secret_is_not_shown() -> None:
    """A config's repr does not give the secret away."""
    assert "secret" not in repr(LightningServerConfig(reset_secret=b"s" * 32))


def test_converts_what_stands_for_a_number() -> None:
    """numpy numbers and ints for floats end as plain Python numbers."""
    client = LightningClientConfig(connect_timeout=5, max_connections=np.int32(9))
    assert type(client.connect_timeout) is float
    assert type(client.max_connections) is int
    assert client.max_connections == 9


@pytest.mark.parametrize(
    ("config", "builder"),
    [
        (LightningClientConfig, LightningClientConfigBuilder),
        (LightningServerConfig, LightningServerConfigBuilder),
    ],
)
def test_builder_sets_every_field(config: type, builder: type) -> None:
    """There is one chainable setter for each field, and no other."""
    assert isinstance(config.builder(), builder)
    assert config.builder().build() == config()
    for field in dataclasses.fields(config):
        made = config.builder()
        assert getattr(made, field.name)(field.default) is made
        assert made.build() == config()
        assert getattr(builder, field.name) is not None
    with pytest.raises(AttributeError):
        builder().no_such_setting(1)
    with pytest.raises(AttributeError):
        builder().max_connections = 5


def test_builder_checks_when_it_builds() -> None:
    """A setter takes anything; building applies the rules; the last call wins."""
    builder = LightningServerConfig.builder().max_connections(0)
    with pytest.raises(ConfigError, match="max_connections must be non-zero"):
        builder.build()
    assert builder.max_connections(4).build().max_connections == 4
    client = LightningClientConfig.builder().stream_chunk_timeout(2.5).build()
    assert client.stream_chunk_timeout == 2.5
