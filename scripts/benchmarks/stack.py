"""The responder and nginx on a state directory of the benchmark's own, and what is measured of them."""

import http.client
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Stack:
    """The responder behind nginx; beside them, in the same nginx, what they are compared with.

    `static_url` is a plain server of the workspaces' files, `dav_url` a plain folder into which nginx's DAV module
    writes, and `/bench-return` an answer of a look-up's size by nginx alone.
    """

    def __init__(self, directory, binaries, claude, model_url, flags=(), nginx_options=()):
        self.directory, self.binaries, self.claude, self.model_url = directory, binaries, claude, model_url
        self.flags = flags
        self.port, plain_port = free_port(), free_port()
        self.url, self.static_url = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{plain_port}"
        self.dav_url = self.static_url + "/dav"
        self.socket = f"{directory}/r.sock"
        self.websocket_socket = f"{directory}/websocket.sock"
        self.workspaces = f"{directory}/state/workspaces"
        self.responder = None
        self.connection = None
        os.makedirs(f"{directory}/dav/dav")
        self.model_socket = f"{directory}/model/api.sock"
        os.makedirs(f"{directory}/model")
        subprocess.run(
            [ROOT / "scripts/render-nginx", f"{directory}/nginx", "--socket", self.socket, "--workspaces",
             self.workspaces, "--listen", f"127.0.0.1:{self.port}", "--model-socket", self.model_socket,
             "--model-tokens", f"{directory}/state/run/model-tokens", *nginx_options], check=True,
            env={**os.environ, "ANTHROPIC_API_KEY": "demo", "ANTHROPIC_BASE_URL": self.model_url})
        self.add_comparisons(Path(f"{directory}/nginx/nginx.conf"), plain_port)
        globals_ = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
        self.nginx = subprocess.Popen(
            ["nginx", "-p", f"{directory}/nginx", "-c", "nginx.conf", "-e", "stderr", "-g", globals_],
            stderr=open(f"{directory}/nginx.log", "w"), env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin"})

    def add_comparisons(self, configuration, plain_port):
        sample = json.dumps({
            "id": str(uuid.uuid4()), "name": "Session 12345678", "created_at": "2026-01-01T00:00:00.000000Z",
            "last_used": "2026-01-01T00:00:00.000000Z", "workspace": f"{self.workspaces}/{uuid.uuid4()}"})
        location = "location = /bench-return { default_type application/json; return 200 '%s\\n'; }" % sample
        api = configuration.parent / "claude-api/api.conf"
        text, count = re.subn(
            r"\n(include claude-api/locations\.conf;)", rf"\n{location}\n\1", api.read_text(), count=1)
        assert count == 1, "nginx's template has no place for the comparison"
        api.write_text(text)
        # The log and the options of the main server's files hold here too.
        plain = f"""
    server {{
        listen 127.0.0.1:{plain_port};
        root {self.workspaces};
        sendfile on;
        tcp_nopush on;
        keepalive_requests 10000;
        location /dav/ {{
            root {self.directory}/dav;
            dav_methods PUT;
            client_max_body_size 0;
        }}
    }}
}}
"""
        text = configuration.read_text()
        end = text.rstrip().rindex("}")
        configuration.write_text(text[:end] + plain.lstrip("\n"))

    # The responder.

    def start(self):
        """Starts the responder and returns how long it took until it was healthy through nginx."""
        began = time.monotonic()
        self.responder = subprocess.Popen(
            [self.binaries / "claude-api-server", "serve", "--state-dir", f"{self.directory}/state",
             "--socket-path", self.socket, "--claude-path", self.claude, "--demo-model-url", self.model_url,
             "--model-socket", self.model_socket, *self.flags],
            stderr=open(f"{self.directory}/responder.log", "a"))
        while True:
            try:
                with urllib.request.urlopen(self.url + "/healthz", timeout=1) as answer:
                    if answer.status == 200:
                        return time.monotonic() - began
            except OSError:
                if self.responder.poll() is not None:
                    sys.exit(Path(f"{self.directory}/responder.log").read_text())
            time.sleep(0.001)

    def stop_responder(self):
        self.responder.send_signal(signal.SIGTERM)
        self.responder.wait()

    def kill_responder(self):
        self.responder.kill()
        self.responder.wait()

    def stop(self):
        if self.responder and self.responder.poll() is None:
            self.stop_responder()
        self.nginx.send_signal(signal.SIGTERM)
        self.nginx.wait()

    # Requests, over one kept connection.

    def request(self, method, path, body=None, headers=None):
        headers = dict(headers or {})
        if body is not None:
            body = json.dumps(body)
            headers["Content-Type"] = "application/json"
        for attempt in range(2):
            if self.connection is None:
                self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            try:
                self.connection.request(method, path, body, headers)
                answer = self.connection.getresponse()
                return answer.status, json.loads(answer.read())
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                # nginx has closed a connection that was at rest.
                self.connection = None
                if attempt:
                    raise

    def get(self, path):
        return self.checked("GET", path)

    def post(self, path, body, headers=None):
        return self.checked("POST", path, body, headers)

    def checked(self, method, path, body=None, headers=None):
        status, answer = self.request(method, path, body, headers)
        if status >= 300:
            sys.exit(f"{method} {path}: {status} {answer}")
        return answer

    def create_session(self, **fields):
        return self.post("/sessions", fields)["session"]["id"]

    # What the responder uses.

    def status(self, name, pid=None):
        text = Path(f"/proc/{pid or self.responder.pid}/status").read_text()
        return int(re.search(rf"^{name}:\s+(\d+)", text, re.M)[1])

    @property
    def memory(self):
        """Bytes that are resident."""
        return self.status("VmRSS") * 1024

    @property
    def memory_of_nginx(self):
        """Bytes that its workers have for themselves."""
        workers = Path(f"/proc/{self.nginx.pid}/task/{self.nginx.pid}/children").read_text().split()
        return sum(self.status("RssAnon", pid) for pid in workers) * 1024

    @property
    def descriptors(self):
        """How many descriptors the programs may have open, as scripts/render-nginx sees it."""
        return min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65_536)

    @property
    def threads(self):
        return self.status("Threads")

    @property
    def processor_seconds(self):
        fields = Path(f"/proc/{self.responder.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Usage:
    """What the responder used while a block ran."""

    def __init__(self, stack):
        self.stack = stack

    def __enter__(self):
        self.memory, self.seconds, self.began = self.stack.memory, self.stack.processor_seconds, time.monotonic()
        return self

    def __exit__(self, *_):
        self.after = self.stack.memory
        self.seconds = self.stack.processor_seconds - self.seconds
        self.elapsed = time.monotonic() - self.began

    def __str__(self):
        return (f"{self.memory / 1e6:.1f} MB before, {self.after / 1e6:.1f} MB after, "
                f"{self.seconds:.2f} s of processor in {self.elapsed:.1f} s")


def requests_per_second(url, connections, seconds):
    output = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", url], check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in output:
        sys.exit(f"{url} did not always answer 200:\n{output}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])
