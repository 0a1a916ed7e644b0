import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from dynamo.cli.chat import Conversation, chat
from dynamo.cli.openai_client import OpenAIClient, base_url
from dynamo.errors import CannotConnect, ConfigError, Disconnected, DynamoError


class Server(ThreadingHTTPServer):
    """An OpenAI server that answers from a script and keeps what it was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.models = ["demo", "other"]
        self.pieces = [{"content": "Os"}, {"content": "lo."}]
        self.status, self.error_body = 200, ""
        self.asked, self.keys = [], []
        #: Set: stop after the pieces without an end, until the client leaves (then `left` is set).
        self.hang = False
        self.cut = False
        self.left = threading.Event()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer({"object": "list", "data": [{"id": name} for name in self.server.models]})

    def do_POST(self):
        server = self.server
        server.keys.append(self.headers.get("Authorization"))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append(body)
        if server.status != 200:
            self.send_response(server.status)
            self.end_headers()
            self.wfile.write(server.error_body.encode())
        elif body["stream"]:
            self.stream()
        else:
            whole = {key: "".join(p.get(key) or "" for p in server.pieces) for key in ("content", "reasoning_content")}
            self.answer({"choices": [{"message": whole, "finish_reason": "stop"}]})

    def stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        if self.server.cut:
            self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(b": keep-alive\n\n")
        for piece in self.server.pieces:
            self.event({"choices": [{"delta": piece}]} if "error" not in piece else piece)
        if self.server.cut:
            return
        while self.server.hang:
            try:
                self.event({"choices": []})
            except OSError:
                self.server.left.set()
                return
            time.sleep(0.01)
        self.event({"choices": [], "usage": {"total_tokens": 3}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, document):
        self.wfile.write(f"data: {json.dumps(document)}\n\n".encode())
        self.wfile.flush()

    def answer(self, document):
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.hang = False
        running.shutdown()
        thread.join()


def ask(server, *arguments, **kwargs):
    return CliRunner().invoke(chat, ["--url", server.url, *arguments], catch_exceptions=False, **kwargs)


def test_one_question_is_answered_by_the_first_model(server):
    done = ask(server, "What is the capital", "of Norway?")
    assert done.output == "Oslo.\n"
    assert server.asked == [
        {
            "model": "demo",
            "stream": True,
            "messages": [{"role": "user", "content": "What is the capital of Norway?"}],
        }
    ]
    assert server.keys == [None]


def test_options_reach_the_server(server):
    flags = ["--model", "m", "--system", "Be brief.", "--temperature", "0", "--max-tokens", "5", "--api-key", "k"]
    assert ask(server, *flags, "--no-stream", "hi").output == "Oslo.\n"
    [body] = server.asked
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["model"], body["temperature"], body["max_tokens"], body["stream"]) == ("m", 0, 5, False)
    assert server.keys == ["Bearer k"]


def test_environment(server):
    env = {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "secret"}
    assert CliRunner().invoke(chat, ["hi"], env=env).output == "Oslo.\n"
    assert server.keys == ["Bearer secret"]


def test_question_on_stdin(server):
    assert ask(server, input="What is\nthe capital?\n").output == "Oslo.\n"
    assert server.asked[0]["messages"][0]["content"] == "What is\nthe capital?"


def test_no_question_at_all(server):
    done = ask(server, input="  \n")
    assert done.exit_code == 2
    assert "no question" in done.output


@pytest.mark.parametrize("stream", [[], ["--no-stream"]])
def test_reasoning_comes_before_the_answer(server, stream):
    server.pieces = [{"reasoning_content": "Norway, "}, {"reasoning_content": "easy."}, {"content": "Oslo."}]
    assert ask(server, *stream, "hi").output == "Norway, easy.\n\nOslo.\n"


def test_escape_sequences_of_a_model_do_not_reach_the_terminal(server):
    server.pieces = [{"content": "a\x1b]0;title\x07b\x9b2J\tc\n"}]
    assert ask(server, "hi").output == "a]0;titleb2J\tc\n\n"


def test_conversation_remembers_until_reset(server):
    with OpenAIClient(server.url) as client:
        conversation = Conversation(client, "demo", system="Be brief.")
        conversation.ask("one")
        conversation.ask("two")
        conversation.reset()
        conversation.ask("three")
    roles = [[message["role"] for message in body["messages"]] for body in server.asked]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"]]
    assert server.asked[1]["messages"][2] == {"role": "assistant", "content": "Oslo."}


def test_failed_question_is_not_remembered(server):
    with OpenAIClient(server.url) as client:
        conversation = Conversation(client, "demo")
        server.status, server.error_body = 503, '{"error": {"message": "no worker"}}'
        with pytest.raises(DynamoError, match="answers 503: no worker"):
            conversation.ask("one")
        assert conversation.history == []


def test_no_server_says_how_to_start_one(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(CannotConnect, match="no server answers at") as caught:
        ask(server, "hi")
    assert "dynamo serve" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, '{"error": {"message": "wrong key"}}', "answers 401: wrong key\ngive the key with --api-key"),
        (404, '{"detail": "Not Found"}', "answers 404: Not Found"),
        (500, "<html>oops</html>", "answers 500: <html>oops</html>"),
        (502, "", "answers 502: Bad Gateway"),
    ],
)
def test_refusals_are_shown(server, status, body, message):
    server.status, server.error_body = status, body
    with pytest.raises(DynamoError, match=message):
        ask(server, "hi")


def test_error_in_the_middle_of_a_stream(server):
    server.pieces = [{"content": "Os"}, {"error": {"message": "engine died", "code": "engine_shutdown"}}]
    with pytest.raises(DynamoError, match="engine died"):
        ask(server, "hi")


def test_connection_that_breaks_in_the_middle(server):
    server.cut = True
    with pytest.raises(Disconnected, match="broke"):
        ask(server, "hi")


def test_server_without_models(server):
    server.models = []
    with pytest.raises(DynamoError, match="serves no model now"):
        ask(server, "hi")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("localhost:8000", "http://localhost:8000/v1"),
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("https://example.com/openai/v2", "https://example.com/openai/v2"),
    ],
)
def test_base_url(url, expected):
    assert base_url(url) == expected


@pytest.mark.parametrize("url", ["ftp://host", "http://", ""])
def test_wrong_url(url):
    with pytest.raises(ConfigError, match="is not the URL of a server"):
        base_url(url)


def heed_ctrl_c():
    """In a child: a shell starts what runs in its background deaf to Ctrl-C, and so would this one be."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """``dynamo chat`` on a pseudo-terminal."""

    def __init__(self, *arguments):
        self.master, slave = pty.openpty()
        self.shown = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dynamo.cli", "chat", *arguments],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env={**os.environ, "TERM": "dumb"},
            preexec_fn=heed_ctrl_c,
        )  # fmt: skip
        os.close(slave)

    def type(self, text):
        os.write(self.master, text.encode())

    def expect(self, text, timeout_seconds=20):
        deadline = time.monotonic() + timeout_seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.shown!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.shown += os.read(self.master, 4096).decode()
        self.shown = self.shown.partition(text)[2]


@pytest.fixture
def terminal(server):
    running = Terminal("--url", server.url)
    yield running
    running.process.kill()
    running.process.wait()
    os.close(running.master)


def test_interactive_conversation(server, terminal):
    terminal.expect("demo at ")
    terminal.expect("> ")
    for question in ("one", "two"):
        terminal.type(f"{question}\n")
        terminal.expect("Oslo.")
        terminal.expect("> ")
    assert len(server.asked[1]["messages"]) == 3
    terminal.type("/system Be brief.\n")
    terminal.expect("> ")
    terminal.type("/nonsense\n")
    terminal.expect("there is no command /nonsense")
    terminal.expect("> ")
    terminal.type("three\n")
    terminal.expect("Oslo.")
    assert [message["role"] for message in server.asked[2]["messages"]] == ["system", "user"]
    terminal.expect("> ")
    terminal.type("/quit\n")
    assert terminal.process.wait(20) == 0


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(server, terminal):
    server.hang = True
    terminal.expect("> ")
    terminal.type("one\n")
    terminal.expect("Oslo.")
    terminal.process.send_signal(signal.SIGINT)
    terminal.expect("(stopped)")
    assert server.left.wait(20)
    server.hang = False
    terminal.expect("> ")
    terminal.process.send_signal(signal.SIGINT)
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.process.wait(20) == 0


def test_error_does_not_end_the_conversation(server, terminal):
    terminal.expect("> ")
    server.status, server.error_body = 429, '{"error": {"message": "slow down"}}'
    terminal.type("one\n")
    terminal.expect("answers 429: slow down")
    terminal.expect("> ")
    server.status = 200
    terminal.type("two\n")
    terminal.expect("Oslo.")


def test_ctrl_c_of_one_question_exits_quietly(server):
    server.hang = True
    with subprocess.Popen(
        [sys.executable, "-m", "dynamo.cli", "chat", "--url", server.url, "hi"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c,
    ) as process:  # fmt: skip
        assert process.stdout.read(2) == "Os"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.strip() == ""
