"""Look-ups, the way of a message to the model, rest and start."""

import json
import http.client
import os
import statistics
import subprocess
import time
import uuid

from .report import pairs, report
from .stack import requests_per_second


def bench_rest(stack, _options):
    report("responder at rest after a start", f"{stack.memory / 1e6:.1f} MB resident, {stack.threads} threads")


def bench_lookup(stack, options):
    session = stack.create_session()
    alone, ours = [], []
    for _ in range(options.rounds):
        alone.append(requests_per_second(stack.url + "/bench-return", 64, options.seconds))
        ours.append(requests_per_second(f"{stack.url}/sessions/{session}", 64, options.seconds))
    report("GET /sessions/{id} through nginx, 64 connections", f"{statistics.median(ours):,.0f} requests/s")
    report("  nginx's own `return 200` of the same size", f"{statistics.median(alone):,.0f} requests/s")
    report("  ratio, median of pairs", pairs(ours, alone))


def cli_environment(directory, model_url):
    return {
        "PATH": os.environ["PATH"], "HOME": directory, "CLAUDE_CONFIG_DIR": f"{directory}/config",
        "ANTHROPIC_API_KEY": "demo", "ANTHROPIC_BASE_URL": model_url, "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_TELEMETRY": "1",
    }


def bench_message(stack, options):
    model, rounds = options.model, options.messages
    session = stack.create_session(initial_prompt="warm up")
    by_hand = f"{stack.directory}/by-hand"
    os.makedirs(by_hand + "/config")
    environment = cli_environment(by_hand, model.url)
    cli = subprocess.Popen(
        [stack.claude, "-p", "--input-format=stream-json", "--output-format=stream-json", "--verbose",
         "--include-partial-messages", f"--session-id={uuid.uuid4()}"],
        cwd=by_hand, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=open(f"{by_hand}/stderr", "w"))

    def write_by_hand(text):
        line = json.dumps({"type": "user", "message": {"role": "user", "content": text}}) + "\n"
        began = time.monotonic()
        cli.stdin.write(line.encode())
        cli.stdin.flush()
        arrived = model.arrival(text)
        for output in cli.stdout:
            if b'"type":"result"' in output:
                return arrived - began

    connection = http.client.HTTPConnection("127.0.0.1", stack.port)
    connection.connect()

    def send(text):
        body = json.dumps({"prompt": text})
        began = time.monotonic()
        connection.request("POST", f"/sessions/{session}/messages", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        return model.arrival(text) - began

    def start_new(text):
        began = time.monotonic()
        subprocess.run(
            [stack.claude, "-p", "--continue"], input=text.encode(), cwd=by_hand, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        return model.arrival(text) - began

    write_by_hand("warm up by hand")
    hand, stacked, new = [], [], []
    for number in range(rounds):
        hand.append(write_by_hand(f"hand {number} {uuid.uuid4()}"))
        stacked.append(send(f"stack {number} {uuid.uuid4()}"))
    cli.stdin.close()
    cli.wait()
    for number in range(max(3, rounds // 6)):
        new.append(start_new(f"new {number} {uuid.uuid4()}"))
    report("a message reaches the model: by the stack, median", f"{statistics.median(stacked) * 1000:.1f} ms")
    report("  the same line written to the CLI by hand", f"{statistics.median(hand) * 1000:.1f} ms")
    differences = [s - h for s, h in zip(stacked, hand)]
    report("  later by, median of pairs", f"{statistics.median(differences) * 1000:.1f} ms")
    report("  a new `claude -p --continue` a message", f"{statistics.median(new) * 1000:.0f} ms"
           f"  ({statistics.median(new) / statistics.median(stacked):.1f} times)")


def bench_start(stack, options):
    for _ in range(options.sessions):
        stack.create_session()
    times = []
    for _ in range(5):
        stack.stop_responder()
        times.append(stack.start())
    report(f"start to healthy with {options.sessions} more sessions, median of 5",
           f"{statistics.median(times) * 1000:.0f} ms")
