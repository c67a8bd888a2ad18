#!/usr/bin/python3 -IS
"""A stand-in for the CLI that says when it said what.

A prompt is a JSON object: `lines` messages are printed, `rate` of them a second (0: as fast as it goes). Each holds
`t=NANOSECONDS;`, the time of the monotonic clock at which it was written. With `previews`, a piece of a streamed text
with such a time is printed halfway between two messages.
"""

import json
import os
import sys
import time

# What only the events of tools and the like would need.
ASSISTANT = '{"type":"assistant","message":{"role":"assistant","model":"m","content":[{"type":"text","text":"t=%d; %s"}]}}'
DELTA = ('{"type":"stream_event","event":{"type":"content_block_delta","index":0,'
         '"delta":{"type":"text_delta","text":"t=%d; %s"}}}')
OPENING = (
    {"type": "stream_event", "event": {"type": "message_start", "message": {"id": "m1", "model": "m"}}},
    {"type": "stream_event", "event": {
        "type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}},
)


def emit(text):
    data = text.encode() + b"\n"
    while data:
        data = data[os.write(1, data):]


def stamped(template):
    emit(template % (time.monotonic_ns(), "x" * 100))


def sleep_until(when):
    left = when - time.monotonic()
    if left > 0:
        time.sleep(left)


def perform(lines=0, rate=0, previews=False):
    for message in OPENING if previews else ():
        emit(json.dumps(message))
    began = time.monotonic()
    for number in range(lines):
        if rate:
            sleep_until(began + number / rate)
        stamped(ASSISTANT)
        if previews:
            sleep_until(began + (number + 0.5) / rate)
            stamped(DELTA)


def main():
    if "--version" in sys.argv:
        return print("2.1.330 (Claude Code)")
    # It is resumed if there is a file of the conversation.
    session = next((a.split("=")[1] for a in sys.argv if a.startswith(("--session-id=", "--resume="))), "none")
    transcript = f"{os.environ['CLAUDE_CONFIG_DIR']}/projects/-workspace/{session}.jsonl"
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "control_request":
            emit(json.dumps({"type": "control_response", "response": {
                "request_id": message["request_id"], "subtype": "success", "response": {}}}))
        elif message["type"] == "user":
            prompt = message["message"]["content"]
            os.makedirs(os.path.dirname(transcript), exist_ok=True)
            with open(transcript, "a") as file:
                file.write(json.dumps({"type": "user", "text": prompt}) + "\n")
            emit(json.dumps({"type": "system", "subtype": "init", "session_id": session}))
            perform(**json.loads(prompt))
            emit(json.dumps({
                "type": "result", "subtype": "success", "is_error": False, "num_turns": 1, "result": "done",
                "session_id": session, "total_cost_usd": 0, "terminal_reason": "completed"}))


main()
