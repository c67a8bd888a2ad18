"""Many readers of event streams on one thread."""

import re
import resource
import select
import socket
import struct
import time

STAMP = re.compile(rb"t=(\d+);")


class Stream:
    """One reader: how much it has got, and what it has got if that is to be kept."""

    __slots__ = ("socket", "rest", "is_open", "events", "last")

    def __init__(self, connection):
        self.socket = connection
        self.rest = b""
        self.is_open = False
        self.events = 0
        self.last = 0


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

    def add(self, connection):
        connection.setblocking(False)
        stream = Stream(connection)
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
        *events, stream.rest = (stream.rest + data).split(b"\n\n")
        for event in events:
            if b"data: " not in event:
                # The first thing in a stream is when to try again.
                stream.is_open = stream.is_open or b"retry: " in event
                continue
            stream.events += 1
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
