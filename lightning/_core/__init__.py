"""Everything that runs per datagram, per frame or per request."""
