"""The example service: how it is built, started and spoken to."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = Path(os.environ.get("RRPC_MODELS") or ROOT / "models") / "golden/qwen2_p32-cached"
LIBRARY = ROOT / "target/release"
DEBIAN = ROOT / "third_party/debian/usr"
SECONDS = 60
FLAGS = {"plain": ["-O1"], "sanitized": ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]}
ENVIRONMENT = {
    "RRPC_ONNXRUNTIME": str(ROOT / "third_party/onnxruntime/libonnxruntime.so"),
    **os.environ,
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "ASAN_OPTIONS": "detect_leaks=1",
}


class Answer:
    """An answer as it comes: the events' names and data; None for a comment."""

    def __init__(self, response):
        self.response = response
        self.status = response.status

    def next(self):
        lines = []
        while (line := self.response.readline().decode().rstrip("\n")) or not lines:
            assert line, "the stream broke off"
            lines.append(line)
        fields = dict(line.split(": ", 1) for line in lines if not line.startswith(":"))
        return (fields.get("event", "text"), json.loads(fields["data"])) if fields else None

    def rest(self):
        """The text to the end, and the last event's name and data."""
        text = ""
        while True:
            event = self.next()
            if event is None:
                continue
            if event[0] != "text":
                assert self.response.read() == b""
                return text, *event
            text += event[1]["text"]


class Service:
    """A running server."""

    def __init__(self, program, model, *arguments):
        self.process = subprocess.Popen(
            [program, model, "--port", "0", "--threads", "1", *arguments],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()
        assert line.startswith("listening on 127.0.0.1:"), line or self.process.stderr.read()
        self.port = int(line.rsplit(":", 1)[1])

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)

    def post(self, body, path="/generate"):
        connection = self.connect()
        connection.request("POST", path, body if isinstance(body, (bytes, str)) else json.dumps(body))
        return connection.getresponse()

    def generate(self, **body):
        return Answer(self.post(body))

    def refused(self, body):
        """Status and error of a request that is refused."""
        response = self.post(body)
        error = json.loads(response.read())["error"]
        return response.status, error["code"], error["message"], response.headers

    def unread(self, **body):
        """A socket whose answer nobody reads: the server soon waits in the middle of it."""
        client = socket.socket()
        client.settimeout(SECONDS)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(("127.0.0.1", self.port))
        data = json.dumps(body).encode()
        client.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        return client

    def health(self):
        connection = self.connect()
        connection.request("GET", "/health")
        response = connection.getresponse()
        assert response.status == 200
        return json.loads(response.read())

    def until(self, condition):
        """The first figures that meet a condition."""
        end = time.monotonic() + SECONDS
        while not condition(figures := self.health()):
            assert time.monotonic() < end, figures
            time.sleep(0.01)
        return figures

    def waiting(self):
        """The figures once the one answer under way waits for its client: a second long, nothing is generated."""
        last, since = None, 0.0
        end = time.monotonic() + SECONDS
        while True:
            figures = self.until(lambda figures: figures["answers"] == 1)
            if figures["generated_tokens"] == 0 or figures != last:
                last, since = figures, time.monotonic()
            elif time.monotonic() - since > 1:
                return figures
            assert time.monotonic() < end, figures
            time.sleep(0.01)

    def end(self, by=signal.SIGTERM):
        """Return code and what was printed on stderr, a sanitizer's report for one."""
        self.process.send_signal(by)
        _, printed = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, printed


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A golden model with a tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("model") / "text"
    subprocess.run([sys.executable, ROOT / "tests/abi/text_model.py", MODEL, folder], check=True)
    return folder


@pytest.fixture(scope="session", params=FLAGS)
def program(request, tmp_path_factory):
    assert (DEBIAN / "include/httplib.h").is_file(), "run scripts/fetch-cpp-httplib"
    libraries = DEBIAN / "lib/x86_64-linux-gnu"
    built = tmp_path_factory.mktemp(request.param) / "server"
    subprocess.run(
        ["g++", "-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", *FLAGS[request.param]]
        + ["-DCPPHTTPLIB_OPENSSL_SUPPORT", f"-I{ROOT}/include", f"-I{ROOT}/bindings/cpp"]
        + ["-isystem", DEBIAN / "include", "-isystem", DEBIAN / "include/x86_64-linux-gnu"]
        + [ROOT / "bindings/cpp/examples/server.cpp", "-o", built]
        + [f"-L{LIBRARY}", "-lreasoning_rpc", f"-Wl,-rpath,{LIBRARY}"]
        + [f"-L{libraries}", "-lcpp-httplib", f"-Wl,-rpath,{libraries}", "-pthread"],
        check=True,
    )
    return built


@pytest.fixture
def start(program, model):
    """Starts services; each is to end well by SIGTERM unless the test ended it."""
    started = []

    def start(*arguments):
        started.append(Service(program, model, *arguments))
        return started[-1]

    yield start
    try:
        for service in started:
            if service.process.returncode is None:
                assert service.end() == (0, "")
    finally:
        for service in started:
            service.process.kill()
            service.process.wait()


@pytest.fixture
def service(start):
    return start()


@pytest.fixture(scope="session")
def program_answer(model):
    """The answer of reasoning-rpc, the program, to a raw prompt or a user's message."""

    def answer(prompt, *arguments):
        done = subprocess.run(
            [LIBRARY / "reasoning-rpc", "generate", "--model", model, "--prompt", prompt, "--output", "json"]
            + ["--threads", "1", *map(str, arguments)],
            env=ENVIRONMENT,
            check=True,
            capture_output=True,
            timeout=SECONDS,
        )
        return json.loads(done.stdout)

    return answer
