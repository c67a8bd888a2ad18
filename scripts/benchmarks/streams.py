"""Events on their way from the CLI to those who follow a session."""

import json
import statistics
import time

from .readers import STAMP, Readers
from .report import milliseconds, report, spread


def begin_turn(stack, session, **prompt):
    """Has the stand-in of the CLI say something, and doesn't wait for it."""
    return stack.post(
        f"/sessions/{session}/messages", {"prompt": json.dumps(prompt)}, {"Prefer": "respond-async"})["id"]


def wait_for_turn(stack, session, turn):
    while True:
        found = stack.get(f"/sessions/{session}/turns/{turn}?wait=30s")
        if found["state"] not in ("queued", "running"):
            assert found["state"] == "completed", found
            return


class Delays:
    """The times from the writing of a line to its arrival, by the type of the event."""

    def __init__(self):
        self.by_type = {}
        # When the stored ones were written, in seconds.
        self.stamps = []
        self.ends = 0

    def __call__(self, _stream, event, now):
        kind = event[event.index(b"event: ") + 7:event.index(b"\n", event.index(b"event: "))]
        if kind == b"turn.completed":
            self.ends += 1
        stamp = STAMP.search(event)
        if stamp:
            self.by_type.setdefault(kind.decode(), []).append((now - int(stamp[1])) / 1e9)
            if kind == b"agent.message":
                self.stamps.append(int(stamp[1]) / 1e9)


def bench_latency(stack, _options):
    sessions = [stack.create_session() for _ in range(20)]
    delays = Delays()
    with Readers(delays) as readers:
        for session in sessions * 5:
            readers.open(stack, session, "deltas=false")
        readers.wait_until_open()
        for session in sessions:
            begin_turn(stack, session, lines=100, rate=10)
        assert readers.read_until(lambda: delays.ends == 100, 120)
    report("from a line of the CLI to an SSE client, 100 streams", f"median {spread(delays.by_type['agent.message'])}")
    report("  20 sessions with 5 readers each, through nginx", "200 lines/s, 1,000 deliveries/s, 10,000 in all")


def bench_append(stack, _options):
    # Of one session's previews those that come faster wait a moment for each other.
    sessions = [stack.create_session() for _ in range(10)]
    delays = Delays()
    with Readers(delays) as readers:
        for session in sessions:
            readers.open(stack, session)
        readers.wait_until_open()
        for session in sessions:
            begin_turn(stack, session, lines=500, rate=100, previews=True)
        assert readers.read_until(lambda: delays.ends == len(sessions), 120)
    rate = (len(delays.stamps) - 1) / (max(delays.stamps) - min(delays.stamps))
    stored, shown = delays.by_type["agent.message"], delays.by_type["event_delta"]
    added = statistics.median(stored) - statistics.median(shown)
    report(f"added by storing an event first, at {rate:,.0f} events/s", f"{milliseconds(added)}, median")
    report("  events, which are stored before they are shown", f"median {spread(stored)}")
    report("  previews on the same way, which are not stored", f"median {spread(shown)}")


def bench_replay(stack, _options):
    session = stack.create_session()
    began = time.monotonic()
    turn = begin_turn(stack, session, lines=10_000)
    wait_for_turn(stack, session, turn)
    wrote = time.monotonic() - began
    count = stack.get(f"/sessions/{session}/events?limit=1")["last"]
    times = []
    for _ in range(7):
        with Readers() as readers:
            began = time.monotonic()
            stream = readers.open(stack, session, "after=0")
            assert readers.read_until(lambda: stream.events >= count, 60)
            times.append(time.monotonic() - began)
    took = statistics.median(times)
    report(f"replay of {count:,} events to a client, median of 7", f"{count / took:,.0f} events/s ({milliseconds(took)})")
    report("  written by one CLI as fast as it goes", f"{count / wrote:,.0f} events/s")


def bench_idle(stack, options):
    """Each transport at the responder's socket and through nginx, whose own share is told apart."""
    sessions = [stack.create_session() for _ in range(100)]
    # Each takes two of nginx's connections, and one worker may get most of them.
    through = min(options.streams, min(16_384, stack.descriptors // 2) * 9 // 20)
    for name, directly, proxied in (
            ("SSE streams", Readers.open_directly, Readers.open),
            ("WebSockets", Readers.open_websocket_directly, Readers.open_websocket)):
        # A few first, so that what is made once isn't counted.
        for opened in (directly, proxied):
            with Readers() as readers:
                open_all(readers, opened, stack, sessions, len(sessions))
        time.sleep(0.5)
        measure_idle(stack, sessions, options.streams, f"{name} at the responder's socket", directly)
        measure_idle(stack, sessions, through, f"{name} through nginx", proxied)


def open_all(readers, opened, stack, sessions, count):
    for number in range(count):
        opened(readers, stack, sessions[number % len(sessions)], "after=latest")
        # Not all at once: what a storm of requests takes while they are answered isn't what a stream at rest takes.
        if number % 100 == 99:
            readers.wait_until_open()
    readers.wait_until_open()


def measure_idle(stack, sessions, count, what, opened):
    memory, nginx, threads = stack.memory, stack.memory_of_nginx, stack.threads
    with Readers() as readers:
        open_all(readers, opened, stack, sessions, count)
        readers.read_until(lambda: False, 1)
        seconds = stack.processor_seconds
        readers.read_until(lambda: False, 5)
        seconds = stack.processor_seconds - seconds
        report(f"{count:,} idle {what}",
               f"{(stack.memory - memory) / count / 1024:.2f} KB each, {stack.threads - threads:+d} threads, "
               f"{seconds / 5 * 100:.1f} % of a processor")
        if opened in (Readers.open, Readers.open_websocket):
            report("  of nginx beside that", f"{(stack.memory_of_nginx - nginx) / count / 1024:.2f} KB each")
    # The next ones should find as much as these.
    time.sleep(1)


def bench_broadcast(stack, _options):
    session = stack.create_session()
    delays = Delays()
    with Readers(delays) as readers:
        for _ in range(1000):
            readers.open(stack, session, "deltas=false")
        readers.wait_until_open()
        begin_turn(stack, session, lines=20, rate=2)
        assert readers.read_until(lambda: delays.ends == 1000, 120)
    report("an event to 1,000 readers of one session, through nginx",
           f"median {spread(delays.by_type['agent.message'])}")
