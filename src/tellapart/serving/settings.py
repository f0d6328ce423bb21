"""What the server may be asked to do, and how much of it."""

from dataclasses import dataclass, field
from pathlib import Path

from tellapart.imaging.decode import DecodeLimits


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What requests may cost.

    Attributes:
        head_bytes: request line and headers.
        head_seconds: from the first byte, or from the connection, to the end of the headers.
        body_bytes: one request.
        body_seconds: from the end of the headers to the end of the body; and for a client to read what was answered.
        body_grace_seconds: after which, and from then on over each such stretch, ``body_bytes_per_second`` is asked for; a second
            while bodies hold more than half of ``buffered_bytes``.
        discarded_bytes: of a refused body that are read, so that the client can read the refusal, before the line is cut.
        parts: of one multipart request.
        buffered_bytes: of all bodies that are held at a time.
        queue_images: taken in and not yet answered; beyond, requests are refused at once.
        explain_requests: the same for heat maps.
        connections: open at a time.
        pipelined: requests that one connection may send ahead of the one that is answered.
        decode_seconds: one image.
        inference_seconds: one image; noticed within a second.
        explain_seconds: one heat map, from when its turn comes.
        look_seconds: between two looks at the model files.
        shutdown_seconds: for what is under way when the server is asked to end.
        image: one image file.
    """

    head_bytes: int = 32 * 2**10
    head_seconds: float = 10.0
    body_bytes: int = 64 * 2**20
    body_seconds: float = 120.0
    body_grace_seconds: float = 10.0
    body_bytes_per_second: float = 4096.0
    discarded_bytes: int = 2**20
    parts: int = 32
    buffered_bytes: int = 256 * 2**20
    queue_images: int = 64
    explain_requests: int = 4
    connections: int = 512
    pipelined: int = 8
    decode_seconds: float = 10.0
    inference_seconds: float = 20.0
    explain_seconds: float = 60.0
    look_seconds: float = 0.5
    shutdown_seconds: float = 30.0
    image: DecodeLimits = field(default_factory=lambda: DecodeLimits(max_bytes=32 * 2**20))


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How to serve.

    Attributes:
        host: address to listen at.
        port: 0 takes a free one.
        token: demanded on every route; empty: none is.
        allowed_hosts: names that requests may give as theirs, beside addresses and this machine's own.
        collect: folder for images that the model was unsure about; None keeps none.
        access_log: whether each request gets a line.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    allowed_hosts: tuple[str, ...] = ()
    collect: Path | None = None
    access_log: bool = True
    limits: Limits = field(default_factory=Limits)
