"""Ports of this machine that a server listens on."""

import ipaddress
import socket
from urllib.parse import urlsplit

from modeling_detr.errors_detr import OutputError


LAST_PORT = 65535


def listen(host: str, port: int, remedy: str = "choose another --port or --host") -> socket.socket:
    """Opens a port.

    Args:
        host: A name or address of this machine.
        port: The port; 0: one that is free.
        remedy: What to do if it cannot be opened.

    Raises:
        OutputError: The port is in use or not allowed, or the host is not this machine.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        # Python adds the address to the system's reason
        reason = (error.strerror or str(error)).partition(" (while attempting")[0]
        problem = f"cannot be opened ({reason})"
        raise OutputError(f"port {port} of {host}", problem, remedy) from error


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine for itself only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url_of(host: str, listener: socket.socket) -> str:
    """The address of a server that listens on a port of `host`, ending in a slash."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"


def host_of(address: str) -> str:
    """The host of `host:port`; empty if it is malformed."""
    try:
        return urlsplit(f"//{address}").hostname or ""
    except ValueError:
        return ""
