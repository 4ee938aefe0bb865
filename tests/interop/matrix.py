"""Which case is tested with which other end, and why not with the rest."""

STACKS = ("aioquic", "quic-go", "btlightning")
# What the other end is.
ROLES = ("server", "client")

# By name, as in the public interop runner where that has it.
CASES = {
    "handshake": "connects and exchanges a few bytes",
    "transfer": "10 MB there and back on one stream",
    "multiplexing": "1000 streams, more than are allowed at a time",
    "retry": "the server asks for a proof of the client's address first",
    "addresstoken": "a token of an earlier connection saves the Retry",
    "resumption": "a session ticket is not taken up: the handshake is a full one",
    "zerortt": "data that comes before the handshake is refused, and sent again",
    "keyupdate": "both ends change their keys under way",
    "versionnegotiation": "a first packet of an unknown version is answered with ours",
    "noversion": "a server without a common version is given up at once",
    "chacha20": "ChaCha20-Poly1305 is the only cipher suite",
    "zerocid": "the other end's connection IDs have no bytes",
    "longcid": "the other end's connection IDs have 20 bytes",
    "rebind-port": "the client's port changes under way",
    "rebind-addr": "the client's address changes under way",
    "connectionmigration": "the client moves to another socket on purpose",
    "statelessreset": "the server forgets everything; the client learns of it at once",
    "handshakeloss": "10 handshakes while a fifth of the datagrams is lost",
    "transferloss": "1 MB there and back while 3 % are lost",
    "handshakecorruption": "10 handshakes while a fifth has a wrong bit",
    "transfercorruption": "1 MB there and back while 3 % have a wrong bit",
    "transferreordering": "1 MB there and back while 5 % come late and 5 % twice",
    "blackhole": "nothing arrives for a second under way",
    "ecn": "both ends mark their packets and count the other's",
    "close": "each end closes, with a code and a reason that the other is told",
    "amplificationlimit": "at most three times as much is sent to an unproven address",
}

_CLIENT_ONLY = "only a client's packets can have this"
_NO_SWITCH = "no setting of it brings this about"
_NOT_PART = "not part of it"
_OURS = "our client does not do this"

# By case, then other end; what is not here is tested.
LEFT_OUT = {
    "addresstoken": {("aioquic", "server"): _NOT_PART},
    "zerortt": {
        ("aioquic", "server"): _OURS,
        ("quic-go", "server"): _OURS,
        ("btlightning", "server"): _OURS,
        ("btlightning", "client"): _NO_SWITCH,
    },
    "resumption": {("btlightning", "client"): _NO_SWITCH},
    "noversion": {
        ("aioquic", "client"): _CLIENT_ONLY,
        ("quic-go", "client"): _CLIENT_ONLY,
        ("btlightning", "client"): _CLIENT_ONLY,
        ("btlightning", "server"): _NO_SWITCH,
    },
    "zerocid": {
        ("aioquic", "server"): _NO_SWITCH,
        ("aioquic", "client"): _NO_SWITCH,
        ("quic-go", "server"): _NO_SWITCH,
        ("btlightning", "server"): _NO_SWITCH,
        ("btlightning", "client"): _NO_SWITCH,
    },
    "longcid": {
        ("btlightning", "server"): _NO_SWITCH,
        ("btlightning", "client"): _NO_SWITCH,
    },
    "connectionmigration": {
        ("aioquic", "server"): _OURS,
        ("quic-go", "server"): _OURS,
        ("btlightning", "server"): _OURS,
        ("aioquic", "client"): _NO_SWITCH,
        ("btlightning", "client"): _NO_SWITCH,
    },
    "statelessreset": {
        ("aioquic", "server"): _NOT_PART,
        ("aioquic", "client"): _NOT_PART,
        ("btlightning", "server"): _NO_SWITCH,
    },
    "ecn": {
        ("aioquic", "server"): _NOT_PART,
        ("aioquic", "client"): _NOT_PART,
    },
}


def tested(case: str) -> list[tuple[str, str]]:
    """Return the other ends of a case."""
    out = LEFT_OUT.get(case, {})
    return [(s, r) for s in STACKS for r in ROLES if (s, r) not in out]


def table() -> str:
    """Return the matrix as it stands in the documentation."""
    reasons: list[str] = []
    columns = [(stack, role) for stack in STACKS for role in ROLES]
    rows = [
        "| case | what happens | "
        + " | ".join(f"{stack} {role}" for stack, role in columns)
        + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for case, text in CASES.items():
        cells = []
        for column in columns:
            reason = LEFT_OUT.get(case, {}).get(column)
            if reason is None:
                cells.append("yes")
                continue
            if reason not in reasons:
                reasons.append(reason)
            cells.append(f"no ({reasons.index(reason) + 1})")
        rows.append(f"| {case} | {text} | " + " | ".join(cells) + " |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*rows, "", *notes])
