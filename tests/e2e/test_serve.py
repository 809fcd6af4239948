"""The command itself: it starts, answers, reloads under load, and stops; and says what keeps it from that."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from tests.serving_runs import train_small
from torchrec_mtl.serving.bundle import read_about, write_about
from torchrec_mtl.serving.export import Options, export_run

pytestmark = pytest.mark.slow

ASK = {"user": {"user_id": 3, "watched": [1, 2]}, "candidates": {"item_id": [4, 5], "hour": [1, 2]}}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    run = train_small(tmp_path_factory.mktemp("serve"))
    export_run(run, run.parent / "bundle", Options(rows=100))
    return run.parent / "bundle"


class Server:
    """The command in a process of its own."""

    def __init__(self, *words):
        command = [sys.executable, "-m", "torchrec_mtl", "serve", *map(str, words)]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.said = ""
        self.port = 0

    def wait_until_it_listens(self):
        for line in self.process.stderr:
            self.said += line
            if found := re.search(r"http://127\.0\.0\.1:(\d+), its page", line):
                self.port = int(found[1])
                break
        assert self.port, self.said
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self):
        for line in self.process.stderr:
            self.said += line

    def ask(self, method="POST", path="/score", document=ASK, host="localhost"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, json.dumps(document), {"Content-Type": "application/json", "Host": host})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def stop(self, number=signal.SIGTERM):
        """Its exit status, and what it printed."""
        self.process.send_signal(number)
        out = self.process.stdout.read()
        status = self.process.wait(60)
        self._reader.join(10)
        return status, out

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def start():
    with contextlib.ExitStack() as stack:

        def make(*words):
            server = Server(*words, "--port", "0")
            stack.callback(server.kill)
            return server.wait_until_it_listens()

        yield make


def end_of(*words):
    command = [sys.executable, "-m", "torchrec_mtl", "serve", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_and_stops_with_status_0_and_without_a_traceback(start, bundle, number):
    server = start(bundle, "--access-log")
    status, answer = server.ask()
    assert status == 200
    assert {name: len(values) for name, values in json.loads(answer).items()} == {
        "click": 2,
        "long_view": 2,
        "watch_time": 2,
    }
    assert server.ask(host="evil.example")[0] == 400
    status, out = server.stop(number)
    assert status == 0, server.said
    assert server.said.splitlines()[-1].endswith("INFO stopped")
    assert "Traceback" not in server.said
    line, refused = map(json.loads, out.splitlines())
    assert refused["status"] == 400
    assert (line["method"], line["path"], line["status"], line["client"]) == ("POST", "/score", 200, "127.0.0.1")


def test_requests_that_are_inside_end_before_it_does(start, bundle):
    server = start(bundle, "--drain", "1", "--timeout", "30")
    body = json.dumps(ASK).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(head_of(len(body)) + body[:10])  # inside, and not yet whole
    until(lambda: "torchrec_mtl_requests_reading 1.0" in server.ask("GET", "/metrics")[1])
    server.process.send_signal(signal.SIGTERM)
    until(lambda: "stopping" in server.said)
    assert server.ask("GET", "/health")[0] == 503  # it drains: its gateway learns of it
    assert server.ask()[0] == 200
    until(lambda: not _listens(server.port))
    connection.sendall(body[10:])
    assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    connection.close()
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.said


def test_a_request_that_never_ends_does_not_keep_it(start, bundle):
    server = start(bundle, "--stop-timeout", "1", "--timeout", "60", "--connections", "2")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head_of(9))
        until(lambda: "torchrec_mtl_requests_reading 1.0" in server.ask("GET", "/metrics")[1])
        with socket.create_connection(("127.0.0.1", server.port)):  # idle, and one too many beside the next
            until(lambda: server.ask("GET", "/health")[0] == 503)
        until(lambda: server.ask("GET", "/health")[0] == 200)
        server.process.send_signal(signal.SIGTERM)
        assert connection.recv(1000).startswith(b"HTTP/1.1 503")
        assert server.process.wait(60) == 0
    assert "Traceback" not in server.said


def head_of(length):
    """Of a request whose body comes later."""
    fields = ("Host: localhost", "Content-Type: application/json", f"Content-Length: {length}")
    return "\r\n".join(("POST /score HTTP/1.1", *fields, "\r\n")).encode()


def _listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def test_no_request_is_lost_while_bundles_change(start, bundle, tmp_path):
    for step in (1, 2, 3, 4):
        shutil.copytree(bundle, tmp_path / f"v{step}")
        about = read_about(tmp_path / f"v{step}")
        write_about(tmp_path / f"v{step}", about.model_copy(update={"step": step}))
    link = tmp_path / "current"
    link.symlink_to("v1")
    server = start(link, "--allow-reload")
    stop, statuses, step_of = threading.Event(), [], lambda: json.loads(server.ask("GET", "/health")[1])["step"]

    def load():
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        while not stop.is_set():
            connection.request("POST", "/score", json.dumps(ASK), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        connection.close()

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in (2, 3):  # a link is switched, and the server told
        (tmp_path / "new").symlink_to(f"v{step}")
        (tmp_path / "new").replace(link)
        server.process.send_signal(signal.SIGHUP)
        until(lambda step=step: step_of() == step)
    (tmp_path / "v4" / "programs" / "rows.pt2").write_bytes(b"")
    status, said = server.ask(path="/reload", document={"bundle": "v4"})
    assert (status, step_of()) == (422, 3), said
    status, said = server.ask(path="/reload", document={"bundle": "v1"})
    assert (status, step_of()) == (200, 1), said
    stop.set()
    for thread in threads:
        thread.join()
    assert len(statuses) > 10
    assert set(statuses) == {200}
    assert server.stop()[0] == 0
    assert server.said.count("INFO serving") == 4
    assert "reload of" in server.said


def test_a_hangup_while_it_loads_is_acted_on_when_it_listens(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "bundle")
    about = tmp_path / "bundle" / "bundle.json"
    shutil.move(about, tmp_path / "about.json")
    os.mkfifo(about)
    server = Server(tmp_path / "bundle", "--port", "0")
    try:
        with about.open("w") as pipe:  # goes on when the server reads it: it loads
            (tmp_path / "about.json").replace(about)
            server.process.send_signal(signal.SIGHUP)
            pipe.write(about.read_text())
        server.wait_until_it_listens()
        until(lambda: 'reloads_total{result="loaded"} 1.0' in server.ask("GET", "/metrics")[1])
        assert server.stop()[0] == 0
    finally:
        server.kill()


def test_what_keeps_it_from_starting_is_told(bundle, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words, message in (
            ((tmp_path,), f"error: no bundle in {tmp_path}"),
            ((bundle, "--port", port), f"error: cannot listen on 127.0.0.1, port {port}: Address already in use"),
            ((bundle, "--index", tmp_path, "--port", "0"), "retrieves nothing"),
            ((crafted(bundle, tmp_path / "crafted"), "--port", "0"), "it names 'torch.os.system'"),
        ):
            status, said = end_of(*words)
            assert status == 1
            assert message in said
            assert "Traceback" not in said
    assert len(said.splitlines()) == 1, said  # of the crafted one, which is refused before torch opens it


def crafted(bundle, folder):
    """The bundle with a program that calls what it must not, its checksums in order."""
    shutil.copytree(bundle, folder)
    program = folder / "programs" / "rows.pt2"
    with zipfile.ZipFile(program) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (name,) = [name for name in members if name.endswith("models/model.json")]
    model = json.loads(members[name])
    model["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"
    members[name] = json.dumps(model).encode()
    with zipfile.ZipFile(program, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    write_about(folder, read_about(folder))
    return folder


def test_without_its_packages_the_command_that_installs_them_is_named(bundle):
    script = "import sys; sys.modules['uvicorn'] = None; from torchrec_mtl.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "serve", str(bundle)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert done.stderr == 'error: uvicorn is missing; run: pip install "torchrec_mtl[serve]"\n'
