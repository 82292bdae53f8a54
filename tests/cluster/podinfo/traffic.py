"""A steady client that notes who answered, and a receiver of alerts."""

import http.client
import http.server
import json
import math
import select
import threading
import time
from collections import namedtuple

# `pod` is podinfo's own word, in its answer; empty when it did not say. Status 0: no answer, `error` says why.
Answer = namedtuple("Answer", "sent status pod error")


class Traffic:
    """Asks a Service at a rate, evenly, over connections that are kept, until it is stopped."""

    CLIENTS = 4
    LIMIT = 30

    def __init__(self, address, port, rate):
        self.address, self.port, self.rate = address, port, rate
        self.lock, self.answers, self.ended = threading.Lock(), [], threading.Event()
        self.begun = time.monotonic()
        self.threads = [threading.Thread(target=self._client, args=(number,), daemon=True) for number in range(self.CLIENTS)]
        for thread in self.threads:
            thread.start()

    def _client(self, number):
        connection, due = None, self.begun + number / self.rate
        while not self.ended.wait(max(0.0, due - time.monotonic())):
            due += self.CLIENTS / self.rate
            connection = connection or http.client.HTTPConnection(self.address, self.port, timeout=self.LIMIT)
            if connection.sock and select.select([connection.sock], [], [], 0)[0]:
                # Closed while it was idle, as any server may: every client looks before it sends.
                connection.close()
            sent = time.monotonic()
            try:
                connection.request("GET", "/api/info")
                reply = connection.getresponse()
                body = reply.read()
                pod = json.loads(body)["hostname"] if reply.status == 200 else ""
                answer = Answer(sent, reply.status, pod, "")
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                connection.close()
                connection, answer = None, Answer(sent, 0, "", repr(error))
            with self.lock:
                self.answers.append(answer)

    def between(self, since=0.0, until=math.inf):
        with self.lock:
            return [answer for answer in self.answers if since <= answer.sent < until]

    def stop(self):
        self.ended.set()
        for thread in self.threads:
            thread.join(self.LIMIT + 5)
        return self.between()


def answers(address, port=80):
    """Whether a request is answered."""
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        connection.request("GET", "/version")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def failed(seen):
    """What counts as bad by default: 5xx, and no answer. podinfo's other errors, 400 and 409, are the client's."""
    return [answer for answer in seen if answer.status >= 500 or answer.status == 0]


def of(seen, revision):
    """Answers of a revision's pods, whose names begin with its own."""
    return [answer for answer in seen if answer.pod.startswith(f"{revision}-")]


class Receiver:
    """Where alerts go: notes what is posted to it."""

    def __init__(self, address):
        self.texts = texts = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                texts.append(json.loads(self.rfile.read(int(self.headers["content-length"])))["text"])
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer((address, 0), Handler)
        self.url = f"http://{address}:{self.server.server_address[1]}/alerts"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def about(self, name):
        return [text for text in list(self.texts) if name in text]
