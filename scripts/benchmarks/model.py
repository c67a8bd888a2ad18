"""A stand-in for the model's API."""

import http.server
import json
import threading
import time


class Model(http.server.ThreadingHTTPServer):
    """Just enough of the Messages API to see when a message arrives."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), ModelHandler)
        self.arrivals = []
        self.condition = threading.Condition()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def arrival(self, text, timeout=60):
        """The time at which a request arrived whose last messages hold `text`."""
        with self.condition:
            deadline = time.monotonic() + timeout
            while True:
                for when, body in self.arrivals:
                    if text in body:
                        return when
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(text)
                self.condition.wait(left)


class ModelHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(200, b"{}", "application/json")

    do_HEAD = do_GET

    def do_POST(self):
        when = time.monotonic()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = json.loads(body)
        if not self.path.startswith("/v1/messages") or "count_tokens" in self.path:
            return self.answer(200, b'{"input_tokens":1}', "application/json")
        with self.server.condition:
            self.server.arrivals.append((when, json.dumps(request.get("messages", [])[-3:])))
            self.server.condition.notify_all()
        message = {
            "id": "msg_1", "type": "message", "role": "assistant", "model": request.get("model"), "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1},
        }
        if not request.get("stream"):
            message.update(content=[{"type": "text", "text": "ok"}], stop_reason="end_turn")
            return self.answer(200, json.dumps(message).encode(), "application/json")
        events = [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "ok"}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
            {"type": "message_stop"},
        ]
        stream = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events)
        self.answer(200, stream.encode(), "text/event-stream")

    def answer(self, status, body, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
