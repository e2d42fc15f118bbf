"""Who serves a model, and where: what monitoring groups calls by, unlike a backend's name, which is for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from backends.base import Backend

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Who serves a model. A backend of servers tells it as its attribute ``service``, which others may lack.

    Attributes:
        provider: Whose API it is, such as ``openai`` or ``vllm``.
        model: The model's name there.
        host: The server's name or number; None where there is none, or none of its own.
        port: Its port.
    """

    provider: str
    model: str
    host: str | None = None
    port: int | None = None

    @classmethod
    def at(cls, url: str, *, provider: str, model: str) -> Self:
        """Return the service at an address."""
        parts = urlsplit(url)
        return cls(provider=provider, model=model, host=parts.hostname, port=parts.port or _PORTS.get(parts.scheme))


def service_of(backend: Backend) -> Service:
    """Return who serves a backend's model, whatever is around it; of a pool, what its members have in common.

    A backend that does not tell is its own provider: the name of its class, without "Backend".
    """
    told = getattr(backend, "service", None)
    if isinstance(told, Service):
        return told
    services = [service_of(part) for part in getattr(backend, "parts", ())]
    if not services:
        kind = type(backend).__name__
        return Service(provider=(kind.removesuffix("Backend") or kind).lower(), model=backend.name)
    one_server = len({(service.host, service.port) for service in services}) == 1
    return Service(
        provider=" + ".join(dict.fromkeys(service.provider for service in services)),
        model=" + ".join(dict.fromkeys(service.model for service in services)),
        host=services[0].host if one_server else None,
        port=services[0].port if one_server else None,
    )
