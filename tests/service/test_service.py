"""The example service bindings/cpp/examples/server.cpp, as clients see it."""

import json
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

# More than socket buffers hold; the context has 4096 tokens.
LONG = {"prompt": "hi", "ignore_eos": True, "policy": "none", "max_tokens": 4000}


def drained(client):
    """The rest of what `unread` left, through a buffer of ordinary size: a tiny one takes a timer's time for each window."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    received = b""
    while part := client.recv(65536):
        received += part
    return received


@pytest.mark.parametrize("seed", [0, 7])
def test_a_stream_is_the_programs_answer(service, program_answer, seed):
    expected = program_answer("why?", "--raw", "--seed", seed, "--max-tokens", 300, "--ignore-eos", "--interval", 64, "--window", 16)
    answer = service.generate(prompt="why?", seed=seed, max_tokens=300, ignore_eos=True, interval=64, window=16)
    assert answer.status == 200 and answer.response.getheader("Content-Type") == "text/event-stream"
    text, name, end = answer.rest()
    assert (text, name, end["stop_reason"]) == (expected["text"], "end", "length")
    assert end["tokens"] == len(expected["tokens"]) == 300 and end["prompt_tokens"] == len(expected["prompt_ids"])
    assert end["compressions"] == 300 // 64


def test_messages_stop_strings_and_sampling(service, program_answer):
    sampling = ["--temperature", 0.9, "--top-k", 20, "--top-p", 0.8, "--min-p", 0.01, "--repetition-penalty", 1.25, "--seed", 3]
    whole = program_answer("a b", *sampling, "--max-tokens", 60, "--ignore-eos")["text"]
    assert len(whole) > 30
    stop = whole[20:23]
    body = {"messages": [{"role": "user", "content": "a b"}], "temperature": 0.9, "top_k": 20, "top_p": 0.8, "min_p": 0.01}
    body |= {"repetition_penalty": 1.25, "seed": 3, "max_tokens": 60, "ignore_eos": True}
    assert service.generate(**body).rest()[0] == whole
    for stops in (stop, ["never there", stop]):
        text, _, end = service.generate(**body, stop=stops).rest()
        assert (text, end["stop_reason"]) == (whole[: whole.index(stop)], "stop")


def test_clients_at_once_get_their_own_answers(service, program_answer):
    def ask(seed):
        return service.generate(prompt="hi", seed=seed, max_tokens=500, ignore_eos=True).rest()[0]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert found == [program_answer("hi", "--raw", "--seed", s, "--max-tokens", 500, "--ignore-eos")["text"] for s in range(4)]
    assert len(set(found)) == 4


def test_a_client_that_leaves_ends_its_answer_within_one_token(service):
    client = service.unread(**LONG)
    before = service.waiting()
    assert before["budget_used_bytes"] > 0 and before["generated_tokens"] < LONG["max_tokens"]
    client.close()
    after = service.until(lambda figures: figures["answers"] == 0)
    assert after["generated_tokens"] <= before["generated_tokens"] + 1
    assert (after["budget_used_bytes"], after["cancelled"]) == (0, 1)


def test_a_client_that_leaves_orderly_is_noticed_too(service):
    """Everything is read, then the connection closed while the server stands still: no write fails at once."""
    client = service.unread(**LONG)
    service.waiting()
    service.process.send_signal(signal.SIGSTOP)
    received = b""
    client.settimeout(1)
    try:
        while part := client.recv(65536):
            received += part
    except TimeoutError:
        pass
    # Each event is a chunk of its own, the first one that of the prefill.
    events = received.count(b"\r\ndata: ") + received.count(b"\r\n:\n\n") - 1
    client.close()
    service.process.send_signal(signal.SIGCONT)
    after = service.until(lambda figures: figures["answers"] == 0)
    assert 0 < events <= after["generated_tokens"] <= events + 1
    assert (after["budget_used_bytes"], after["cancelled"]) == (0, 1)


def test_what_the_budget_cannot_hold_waits_for_those_before_it(start, program_answer):
    # For the whole long answer, and not a second one.
    service = start("--budget", str(1 << 21))
    first = service.unread(**LONG)
    service.waiting()
    second = service.generate(prompt="hi", seed=1, max_tokens=2000, ignore_eos=True, policy="none")
    third = service.generate(prompt="hi", seed=1, max_tokens=20)  # would fit, but is not the next
    assert second.status == third.status == 200
    for _ in range(3):
        assert second.next() is None and third.next() is None  # comments alone
    assert service.health()["answers"] == 3
    received = drained(first)
    end = json.loads(received.partition(b"event: end\ndata: ")[2].partition(b"\n")[0])
    assert (end["stop_reason"], end["tokens"]) == ("length", LONG["max_tokens"])
    assert second.rest()[2]["tokens"] == 2000
    assert third.rest()[0] == program_answer("hi", "--raw", "--seed", 1, "--max-tokens", 20)["text"]
    # What never fits is refused, and no reason to come again.
    small = start("--budget", str(1 << 18))
    status, code, message, headers = small.refused(LONG)
    assert (status, code, headers["Retry-After"]) == (503, "budget", None)
    assert "budget" in message
    assert small.generate(prompt="hi", max_tokens=20).rest()[1] == "end"


def test_clients_share_the_steps(start):
    service = start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: service.generate(prompt="hi", seed=seed, max_tokens=500, ignore_eos=True).rest(), range(4)))
    connection = service.connect()
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    figures = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}
    assert figures["reasoning_rpc_scheduler_completed_total"] == 4
    assert figures["reasoning_rpc_scheduler_rows_total"] > figures["reasoning_rpc_scheduler_steps_total"]


def test_answers_at_once_are_bounded(start):
    service = start("--answers", "1")
    client = service.unread(**LONG)
    service.waiting()
    status, code, _, headers = service.refused({"prompt": "hi"})
    assert (status, code, headers["Retry-After"]) == (503, "busy", "1")
    client.close()
    service.until(lambda figures: figures["answers"] == 0)
    assert service.generate(prompt="hi", max_tokens=5).rest()[1] == "end"


@pytest.mark.parametrize(
    "body, expected",
    [
        ("", "parse error"),
        ('{"prompt": ', "parse error"),
        (b'{"prompt": "\xff"}', "UTF-8"),
        ("[" * 100000, "parse error"),
        ([], "object"),
        ({}, "prompt or messages"),
        ({"prompt": "a", "messages": []}, "prompt or messages"),
        ({"prompt": 1}, "prompt: expected a string, found number"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens: expected a whole number"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens: expected a whole number"),
        ({"prompt": "a", "top_k": 1 << 32}, "top_k: expected a whole number"),
        ({"prompt": "a", "temperature": "hot"}, "temperature: expected a number"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "window": 0}, "window: expected 1 to"),
        ({"prompt": "a", "policy": "best"}, "name: expected one of none, rpc, snapkv"),
        ({"prompt": "a", "ignore_eos": 1}, "ignore_eos"),
        ({"prompt": "a", "stop": ""}, "stop"),
        ({"prompt": "a", "stop": [1]}, "stop: expected a string"),
        ({"prompt": "a", "tempereture": 1}, "unknown field tempereture"),
        ({"messages": {}}, "messages: expected an array"),
        ({"messages": [{"role": "user"}]}, "role and content"),
        ({"prompt": "a" * 5000}, "context"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_requests(service, body, expected):
    status, code, message, _ = service.refused(body)
    assert (status, code) == (400, "context" if expected == "context" else "bad_request")
    assert expected in message
    assert service.health()["budget_used_bytes"] == service.health()["answers"] == 0


def test_metrics_are_prometheus_text(start):
    service = start()

    def figures():
        connection = service.connect()
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert response.status == 200 and response.headers["Content-Type"] == "text/plain; version=0.0.4"
        lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    before = figures()
    assert service.generate(prompt="hi", max_tokens=7).rest()[1] == "end"
    service.until(lambda health: health["answers"] == 0)
    after = figures()
    assert after.keys() == before.keys() and all(name.startswith("reasoning_rpc_") for name in after)
    grown = {name for name in after if after[name] > before[name]}
    assert {"reasoning_rpc_decode_tokens_total", "reasoning_rpc_sequences_created_total"} <= grown
    assert after["reasoning_rpc_sequences"] == before["reasoning_rpc_sequences"] == 0


def test_other_paths_and_large_bodies(service):
    assert service.refused({"prompt": "a" * (1 << 20)})[:2] == (413, "too_large")
    assert service.post({}, "/nothing").status == 404
    assert service.generate(prompt="hi", max_tokens=5).rest()[1] == "end"


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_service_and_its_answers(start, by):
    assert start().end(by) == (0, "")
    service = start("--budget", str(1 << 22))  # for both
    answers = [service.unread(**LONG), service.unread(**LONG)]
    service.until(lambda figures: figures["answers"] == 2 and figures["generated_tokens"] > 0)
    service.process.send_signal(by)
    for client in answers:
        received = drained(client)
        end = json.loads(received.partition(b"event: end\ndata: ")[2].partition(b"\n")[0])
        assert end["stop_reason"] in ("cancelled", "length")
        assert received.endswith(b"0\r\n\r\n")
    assert service.end(by) == (0, "")


@pytest.mark.parametrize("arguments", [["/nowhere"], [], ["--port", "70000"], ["--colour", "red"]], ids=str)
def test_bad_arguments(program, arguments):
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
