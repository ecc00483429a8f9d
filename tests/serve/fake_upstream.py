"""A small OpenAI-compatible server whose answers are known, and which can misbehave."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

MODEL = "fake-model"
ANSWERS = (
    "It was a day, and there is a great deal that could be said of it at length, in many words.",
    "Fine.",
    "My dear friend, thank you so much for asking, I love that you care, it was wonderful!",
    "- Good\n- Short",
)
"""Draws in order; the first is the plain one."""
LONG = 2000
"""Times that a long stream repeats an answer: more than the buffers of sockets hold."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        world = self.server.world
        if world.mode == "fail_models":
            return self._send(500, {"error": {"message": "secret of the inside"}})
        if world.mode == "lists_nothing":
            return self._send(404, {"detail": "Not Found"})
        data = [
            {"id": name, "object": "model", "parent": base} for name, base in world.models.items()
        ]
        self._send(200, {"object": "list", "data": data})

    def do_POST(self):
        world = self.server.world
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        world.asked.set()
        world.requests.append(SimpleNamespace(path=self.path, body=body, headers=self.headers))
        mode = world.mode
        if world.dropped:  # as a server that closes an idle connection while a request arrives
            world.dropped -= 1
            self.close_connection = True
            return None
        if "prompt_embeds" in body and not world.takes_embeddings:
            return self._send(400, {"error": {"message": "prompt_embeds is not supported"}})
        if mode == "fail":
            return self._send(500, {"error": {"message": "secret of the inside"}})
        if mode == "refuse":
            detail = {"message": "context too long", "code": "context_length_exceeded"}
            return self._send(400, {"error": detail})
        if mode == "busy":
            return self._send(429, {"error": {"message": "slow down"}})
        if mode == "nonsense":
            return self._send(200, {"no": "choices"})
        if mode == "break" and not body.get("stream"):
            self.close_connection = True
            return self._send(200, self._reply(body, 1), missing=10)
        if mode == "slow":
            time.sleep(world.pause)
        if body.get("stream"):
            return self._stream(body, mode)
        n = 1 if mode == "ignores_n" else body.get("n", 1)
        self._send(200, self._reply(body, n))

    def _reply(self, body, n):
        chat = self.path.endswith("/chat/completions")
        choices = []
        for number in range(n):
            text = self.server.world.next_answer() if n == 1 else ANSWERS[number % len(ANSWERS)]
            said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            choices.append({"index": number, "finish_reason": "stop", "logprobs": None, **said})
        usage = {"prompt_tokens": 5, "completion_tokens": 7 * n, "total_tokens": 5 + 7 * n}
        return {
            "id": "up-1", "object": "chat.completion" if chat else "text_completion",
            "created": 1, "model": body["model"], "choices": choices, "usage": usage,
        }  # fmt: skip

    def _stream(self, body, mode):
        chat = self.path.endswith("/chat/completions")
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        words = self.server.world.next_answer().split(" ") * (LONG if mode == "long" else 1)
        for number, word in enumerate(words):
            if number == 2 and mode == "break":
                return
            if number == 2 and mode == "garble":
                self.wfile.write(b"data: {no json\n\n")
            if number == 2 and mode == "stall":
                time.sleep(self.server.world.pause)
            text = word if number == 0 else " " + word
            said = {"delta": {"content": text}} if chat else {"text": text}
            self._event({"choices": [{"index": 0, "finish_reason": None, **said}]})
        said = {"delta": {}} if chat else {"text": ""}
        self._event({"choices": [{"index": 0, "finish_reason": "stop", **said}]})
        usage = {"prompt_tokens": 5, "completion_tokens": len(words), "total_tokens": 0}
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def handle(self):
        with contextlib.suppress(ConnectionError):  # the service broke off
            super().handle()

    def _event(self, chunk):
        whole = {"id": "up-1", "object": "chunk", "created": 1, "model": MODEL, **chunk}
        # As vLLM, which escapes nothing.
        self.wfile.write(b"data: " + json.dumps(whole, ensure_ascii=False).encode() + b"\n\n")
        self.wfile.flush()

    def _send(self, status, body, missing=0):
        """Send a body, or break off before its last bytes."""
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) - missing])


class World:
    """What the server does, and what it was asked."""

    def __init__(self):
        self.mode, self.pause, self.requests, self._drawn = "well", 0.5, [], 0
        self.asked = threading.Event()
        self.takes_embeddings = False
        self.dropped = 0  # requests whose connections are closed without an answer
        self.models = {MODEL: None}  # name -> model that it is an adapter of

    def next_answer(self):
        answer = ANSWERS[self._drawn % len(ANSWERS)]
        self._drawn += 1
        return answer

    def reset(self):
        self.__init__()


def start():
    """Return a running server; `.world` says what it does, `.url` where it is."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.world = World()
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.thread = threading.Thread(target=server.serve_forever, daemon=True)
    server.thread.start()
    return server


def stop(server):
    server.shutdown()
    server.server_close()
    server.thread.join()
