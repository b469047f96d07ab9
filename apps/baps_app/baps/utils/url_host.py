"""Hosts as URLs have them."""

from __future__ import annotations

from ipaddress import IPv6Address


def url_host(host: str) -> str:
    """Return a host as it stands before the port of a URL: an IPv6 address in brackets, ``[::1]``.

    Args:
        host: A name, or an IPv4 or IPv6 address.

    Returns:
        The host, in brackets if it is an IPv6 address.
    """
    try:
        return f"[{IPv6Address(host)}]"
    except ValueError:
        return host
