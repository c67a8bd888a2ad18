"""Many readers of event streams on one thread."""

import os
import re
import resource
import select
import socket
import struct
import time

STAMP = re.compile(rb"t=(\d+);")


class Stream:
    """One reader of server-sent events: how much it has got, and what of an event is still to come."""

    __slots__ = ("socket", "rest", "is_open", "events")

    def __init__(self, connection):
        self.socket = connection
        self.rest = b""
        self.is_open = False
        self.events = 0

    def take(self, data):
        """The events that are whole now."""
        *events, self.rest = (self.rest + data).split(b"\n\n")
        for event in events:
            if b"data: " not in event:
                # The first thing in a stream is when to try again.
                self.is_open = self.is_open or b"retry: " in event
                continue
            self.events += 1
            yield event


class WebSocketStream(Stream):
    """One reader over a WebSocket, which answers pings."""

    __slots__ = ("is_upgraded",)

    def __init__(self, connection):
        super().__init__(connection)
        self.is_upgraded = False

    def take(self, data):
        self.rest += data
        if not self.is_upgraded:
            head, end, rest = self.rest.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                raise ConnectionError(head.decode(errors="replace"))
            self.is_upgraded, self.rest = True, rest
        while True:
            frame = self.frame()
            if frame is None:
                return
            opcode, payload = frame
            if opcode == 9:
                mask = os.urandom(4)
                masked = bytes(byte ^ mask[place & 3] for place, byte in enumerate(payload))
                self.socket.sendall(bytes((0x8A, 0x80 | len(payload))) + mask + masked)
            elif opcode == 1 and payload.startswith(b'{"type":"ready"'):
                self.is_open = True
            elif opcode == 1:
                self.events += 1
                yield payload

    def frame(self):
        """The next frame, if it is whole; a server masks and cuts nothing."""
        if len(self.rest) < 2:
            return None
        length, start = self.rest[1], 2
        if length >= 126:
            start = 4 if length == 126 else 10
            if len(self.rest) < start:
                return None
            length = int.from_bytes(self.rest[2:start], "big")
        if len(self.rest) < start + length:
            return None
        frame = self.rest[0] & 0x0F, self.rest[start:start + length]
        self.rest = self.rest[start + length:]
        return frame


class Readers:
    """Reads all its streams in one loop; to be used as a context.

    `on_event` is called with the stream, the text of an event and the time of the monotonic clock, in nanoseconds, at
    which its last bytes were received.
    """

    def __init__(self, on_event=None):
        self.on_event = on_event
        self.poll = select.epoll()
        self.streams = {}
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for stream in self.streams.values():
            stream.socket.close()
        self.poll.close()

    def open(self, stack, session, query=""):
        """Through nginx. With HTTP/1.0 the body comes without chunks."""
        connection = socket.create_connection(("127.0.0.1", stack.port))
        connection.sendall(
            f"GET /sessions/{session}/events?{query} HTTP/1.0\r\nHost: localhost\r\n"
            "Accept: text/event-stream\r\n\r\n".encode())
        return self.add(connection)

    def open_directly(self, stack, session, query=""):
        """At the responder's own socket."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(stack.socket)
        connection.sendall(fastcgi_request(f"/sessions/{session}/events", query))
        return self.add(connection)

    def open_websocket(self, stack, session, query=""):
        """Through nginx."""
        return self.upgrade(socket.create_connection(("127.0.0.1", stack.port)), session, query)

    def open_websocket_directly(self, stack, session, query=""):
        """At the responder's own socket, with what nginx says of the client."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(stack.websocket_socket)
        return self.upgrade(connection, session, query, "".join(
            f"Claude-Api-{name}-Addr: 127.0.0.1\r\n" for name in ("Remote", "Server", "Peer")))

    def upgrade(self, connection, session, query, fields=""):
        connection.sendall(
            f"GET /sessions/{session}/ws?{query} HTTP/1.1\r\nHost: localhost\r\n{fields}"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode())
        return self.add(connection, WebSocketStream)

    def add(self, connection, kind=Stream):
        connection.setblocking(False)
        stream = kind(connection)
        self.streams[connection.fileno()] = stream
        self.poll.register(connection, select.EPOLLIN)
        return stream

    def read_until(self, condition, timeout):
        """Reads until the condition holds; false if it doesn't in time, or when all streams have ended."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline or not self.streams:
                return False
            for descriptor, _ in self.poll.poll(0.05, 1024):
                self.receive(self.streams[descriptor])
        return True

    def wait_until_open(self, timeout=60):
        streams = list(self.streams.values())
        if not self.read_until(lambda: all(stream.is_open for stream in streams), timeout):
            raise TimeoutError("not all streams were opened")

    def receive(self, stream):
        try:
            data = stream.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        now = time.monotonic_ns()
        if not data:
            self.poll.unregister(stream.socket)
            del self.streams[stream.socket.fileno()]
            stream.socket.close()
            return
        for event in stream.take(data):
            if self.on_event:
                self.on_event(stream, event, now)


def fastcgi_request(path, query):
    """The records of a request for a stream, on a connection that is kept."""

    def record(kind, content=b""):
        return struct.pack(">BBHHBx", 1, kind, 1, len(content), 0) + content

    params = b""
    for name, value in {
        "REQUEST_METHOD": "GET", "REQUEST_URI": f"{path}?{query}", "DOCUMENT_URI": path, "QUERY_STRING": query,
        "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost",
        "HTTP_ACCEPT": "text/event-stream",
    }.items():
        params += struct.pack("BB", len(name), len(value)) + name.encode() + value.encode()
    begin = struct.pack(">HB5x", 1, 1)
    return record(1, begin) + record(4, params) + record(4) + record(5)
