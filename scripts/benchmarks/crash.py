"""The responder is killed with much in its store and work under way."""

import http.client
import json
import re
import threading
import time
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor

from .readers import Readers
from .report import milliseconds, report
from .streams import begin_turn, wait_for_turn

IDENTIFIER = re.compile(rb"^id: (\d+)$", re.M)


def bench_crash(stack, options):
    sessions = [stack.create_session() for _ in range(options.sessions)]
    began = time.monotonic()
    filled = sessions[:100]
    for session in filled:
        wait_for_turn(stack, session, begin_turn(stack, session, lines=1000))
    took = time.monotonic() - began
    events = sum(stack.get(f"/sessions/{session}/events?limit=1")["last"] for session in filled)
    report(f"{len(sessions):,} sessions, {events:,} events", f"written at {events / took:,.0f} events/s")

    # Ten sessions at work with followers, and messages that come in all the time.
    busy, waiting = sessions[:10], sessions[10:30]
    seen = {session: {} for session in busy}
    accepted = []
    by_stream = {}

    def note(stream, event, _now):
        number = IDENTIFIER.search(event)
        if number:
            seen[by_stream[stream]][int(number[1])] = json.loads(event[event.index(b"data: ") + 6:])

    with Readers(note) as readers:
        for session in busy * 3:
            last = stack.get(f"/sessions/{session}/events?limit=1")["last"]
            by_stream[readers.open(stack, session, f"deltas=false&after={last}")] = session
        readers.wait_until_open()
        for session in busy:
            begin_turn(stack, session, lines=10_000, rate=100)
        reading = threading.Thread(target=readers.read_until, args=(lambda: False, 60))
        reading.start()
        posting = threading.Event()
        poster = threading.Thread(target=post_until_it_fails, args=(stack.port, waiting, accepted, posting))
        poster.start()
        posting.wait()
        time.sleep(1.5)
        began = time.monotonic()
        stack.kill_responder()
        killed = time.monotonic() - began
        healthy = killed + stack.start()
        poster.join()
        reading.join()
    report("  killed under load: healthy again after", milliseconds(healthy))

    missing = 0
    for session, shown in seen.items():
        stored = log(stack, session, min(shown) - 1)
        missing += sum(stored.get(number) != event for number, event in shown.items())
    shown = sum(map(len, seen.values()))
    report("  events shown before the kill, and of them missing", f"{shown:,}, {missing}")
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda turn: final_state(stack.url, *turn), accepted))
    lost = sum(state not in ("completed", "interrupted") for state in states)
    report("  messages accepted before the kill, and of them missing", f"{len(accepted):,}, {lost}")


def post_until_it_fails(port, sessions, accepted, posting):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Content-Type": "application/json", "Prefer": "respond-async"}
    while True:
        for session in sessions:
            try:
                connection.request(
                    "POST", f"/sessions/{session}/messages", json.dumps({"prompt": '{"lines": 1}'}),
                    {**headers, "Idempotency-Key": str(uuid.uuid4())})
                answer = connection.getresponse()
                body = json.loads(answer.read())
            except (OSError, http.client.HTTPException, ValueError):
                return posting.set()
            if answer.status == 202:
                accepted.append((session, body["id"]))
            elif answer.status != 429:
                return posting.set()
            if len(accepted) >= 20:
                posting.set()
        time.sleep(0.01)


def log(stack, session, after):
    found = {}
    while True:
        page = stack.get(f"/sessions/{session}/events?limit=1000&after={after}")
        found.update((event["sequence"], event) for event in page["events"])
        if not page["has_more"]:
            return found
        after = page["next"]


def final_state(url, session, turn):
    deadline = time.monotonic() + 120
    state = "queued"
    while state in ("queued", "running") and time.monotonic() < deadline:
        with urllib.request.urlopen(f"{url}/sessions/{session}/turns/{turn}?wait=30s", timeout=60) as answer:
            state = json.load(answer)["state"]
    return state
