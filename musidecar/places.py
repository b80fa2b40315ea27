"""Where a node meets its clients and its backend, and what it and the backend know each other by."""

from __future__ import annotations

import hashlib
import hmac
import socket
from pathlib import Path

from musidecar import mesh
from musidecar.config import Cluster, ConfigError, Node, split_address
from musidecar.protocols.backend import Address, Wanted


def feed_token(member: mesh.Member, node: int) -> str:
    """What a node's backend shows when it asks for its feed: the same in every life of the node, and nobody else's."""
    words = f"musidecar feed\0{member.cluster}\0{node}".encode()
    return hmac.new(member.secret, words, hashlib.sha256).hexdigest()


def backend_address(config: Cluster, node: Node) -> Address:
    """Where a node's backend listens and how to log in. ConfigError when its password cannot be read."""
    backend = node.backend
    user, password = backend.user or "", backend.password() or ""
    if backend.socket is not None:
        return Address(path=str(backend.socket), user=user, password=password)
    host, port = split_address(backend.address)
    return Address(host=host, port=port, user=user, password=password)


def wanted_backend(config: Cluster, node: Node, token: str) -> Wanted:
    """What a node's backend is to be. ConfigError when its password cannot be read."""
    backend = node.backend
    return Wanted(
        address=backend_address(config, node),
        home=home(config, node),
        spawn=backend.spawn,
        binary=backend.program,
        token=token,
        timeout_ms=config.timing.backend_timeout_ms,
        options=backend.options(),
    )


def home(config: Cluster, node: Node) -> Path:
    """The backend's working folder; what its node keeps for another start, and copies on their way, are there, too."""
    return config.directory / f"{node.backend.kind}-{node.id}"


def bind(host: str, port: int, whom: str = "for clients") -> socket.socket:
    """The socket of a port of this node, bound, not listening yet. ConfigError when the address cannot be had."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigError([in_use(host, port, whom, error)]) from None
    return sock


def in_use(host: str, port: int, whom: str, error: OSError) -> str:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"cannot listen {whom} on {address}: {error.strerror or error}"


def near(host: str) -> str:
    """Where this host itself connects to what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
