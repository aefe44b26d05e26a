"""HTTP/2 frames by hand, with only the standard library: just enough to misuse it.

A frame is 24 bits of length, a type, flags, a stream id, and a payload (RFC 9113, section 4.1).
"""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
_CANCEL = 8
_INITIAL_WINDOW_SIZE = 4  # a setting

SCORE = "/lectern.v1.Teacher/LogitsForBatch"
HEALTH = "/grpc.health.v1.Health/Check"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Returns one frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def call_headers(path: str) -> bytes:
    """Returns the header block of a gRPC call: HPACK literals, never indexed, not compressed."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(
        b"\x00" + _text(name.encode()) + _text(value.encode()) for name, value in fields.items()
    )


def call(stream: int, path: str) -> bytes:
    """Returns the frame that starts a call."""
    return frame(HEADERS, END_HEADERS, stream, call_headers(path))


def message(payload: bytes, length: int | None = None) -> bytes:
    """Returns a gRPC message with its prefix; `length` overrides the length in the prefix."""
    size = len(payload) if length is None else length
    return b"\x00" + struct.pack(">I", size) + payload


def reset(stream: int) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", _CANCEL))


def connected(address: str) -> socket.socket:
    """Returns a socket to host:port, with preface and settings sent."""
    host, _, port = address.rpartition(":")
    opened = socket.create_connection((host, int(port)), timeout=10)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.sendall(PREFACE + frame(SETTINGS, 0, 0))
    return opened


def send_as_taken(
    connection: socket.socket, begin: bytes, number: int, patience_seconds: float = 2.0
) -> int:
    """Sends `begin`, then zeros, on stream 1 as the peer's windows allow; returns how many zeros.

    Ends after `number` zeros, if the peer ends the stream or the connection, or if it opens no
    window for `patience_seconds`.
    """
    initial, sent, received = 65_535, 0, b""
    windows = {stream: initial - len(begin) for stream in (0, 1)}
    connection.settimeout(patience_seconds)
    try:
        connection.sendall(frame(DATA, 0, 1, begin))
        while sent < number:
            size = min(16_384, number - sent, *windows.values())
            if size > 0:
                connection.sendall(frame(DATA, 0, 1, bytes(size)))
                windows = {stream: left - size for stream, left in windows.items()}
                sent += size
                continue
            received += connection.recv(65_536) or _closed()
            while len(received) >= 9 and len(received) >= 9 + (size := _length(received)):
                kind, flags, stream = received[3], received[4], _number(received[5:9])
                payload, received = received[9 : 9 + size], received[9 + size :]
                if kind == WINDOW_UPDATE:
                    windows[stream] += _number(payload)
                elif kind == SETTINGS and not flags & ACK:
                    for at in range(0, len(payload), 6):
                        if payload[at : at + 2] == struct.pack(">H", _INITIAL_WINDOW_SIZE):
                            value = _number(payload[at + 2 : at + 6])
                            windows[1] += value - initial
                            initial = value
                    connection.sendall(frame(SETTINGS, ACK, 0))
                elif kind == PING and not flags & ACK:
                    connection.sendall(frame(PING, ACK, 0, payload))
                elif kind in (HEADERS, RST_STREAM, GOAWAY):
                    return sent
    except OSError:
        pass
    return sent


def _length(header: bytes) -> int:
    return int.from_bytes(header[:3], "big")


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big") & 0x7FFFFFFF


def _closed() -> bytes:
    raise ConnectionResetError("the peer has closed")


def _text(data: bytes) -> bytes:
    if len(data) > 126:
        raise ValueError("headers must be at most 126 bytes")
    return bytes([len(data)]) + data
