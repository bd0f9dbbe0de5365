"""The MLflow UI as `seapeft ui` starts it, asked by real requests."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from example_run import make_events, write_run

from sea_peft.artefacts import ui
from sea_peft.artefacts.tracker import rebuild
from sea_peft.errors import PortError, UsageError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="ends the server by a POSIX signal")
_CODE = """
import sys
from pathlib import Path
from sea_peft.artefacts.ui import open_ui
open_ui(Path(sys.argv[1]), 0, lambda link: print(link, flush=True))
"""


class _Server:
    def __init__(self, link: str, run_id: str, root: Path) -> None:
        self.run_id, self.root = run_id, root
        self.base, self.key = re.fullmatch(
            r"(http://127\.0\.0\.1:\d+)/\?key=([\w-]{32})#/experiments/1/runs\?.*", link
        ).groups()

    def ask(self, path: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        request = urllib.request.Request(self.base + path, data, headers)
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=240) as answer:
                self.headers = answer.headers
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            self.headers = error.headers
            return error.code, error.read()

    def inside(self, path: str, data: bytes | None = None) -> tuple[int, bytes]:
        return self.ask(path, data, Authorization=f"Bearer {self.key}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Server]:
    before = tmp_path_factory.mktemp("ui") / "before"
    run_id = rebuild(write_run(before, make_events()))
    root = before.rename(before.with_name("moved"))
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": "http://elsewhere.example",
        "MLFLOW_ENABLE_AI_GATEWAY": "true",
    }
    with subprocess.Popen(
        [sys.executable, "-c", _CODE, str(root)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            server = _Server(process.stdout.readline().strip(), run_id, root)
            assert server.inside("/health") == (200, b"OK")
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
    host, port = server.base.removeprefix("http://").split(":")
    with pytest.raises(ConnectionRefusedError):  # no process was left behind
        socket.create_connection((host, int(port)), timeout=5)


def test_it_shows_the_run_of_a_folder_that_was_moved(server: _Server) -> None:
    status, page = server.inside("/")
    assert status == 200
    assert b"MLflow" in page
    status, table = server.inside(
        f"/get-artifact?path=allocation/units.json&run_uuid={server.run_id}"
    )
    assert status == 200
    assert table.startswith(b'{"columns": ["')
    assert b'"disable_ui_telemetry":true' in server.inside("/ajax-api/3.0/mlflow/ui-telemetry")[1]


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/ajax-api/3.0/mlflow/assistant/config",
            "/ajax-api/3.0/mlflow/assistant/message",
            "/ajax-api/3.0/mlflow/assistant",
        ),
        *(
            "/gateway/x/mlflow/invocations",
            "/ajax-api/2.0/mlflow/gateway-proxy/x",
            "/ajax-api/3.0/mlflow/gateway/supported-providers",
        ),
        *(
            "/api/2.0/mlflow/webhooks",
            "/ajax-api/2.0/mlflow/webhooks/create",
            "/ajax-api/3.0/jobs/1",
            "/ajax-api/3.0/mlflow/scorer/invoke",
        ),
    ],
)
def test_what_would_pass_on_what_it_is_asked_is_not_there(server: _Server, path: str) -> None:
    assert server.inside(path)[0] == 404
    assert server.inside(path, b"{}")[0] == 404


def test_the_list_of_runs_hears_of_no_models_behind_a_gateway(server: _Server) -> None:
    path = "/ajax-api/2.0/mlflow/gateway-proxy"
    asked = f"{path}?gateway_path=api%2F2.0%2Fendpoints%2F"
    assert server.inside(asked) == (200, b'{"endpoints": []}')
    assert server.headers["content-type"].startswith("application/json")
    assert server.inside(asked, b"{}")[0] == 404
    assert server.ask(asked)[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/ajax-api/2.0/mlflow/experiments/search",
        "/static-files/index.html",
        "/nothing",
    ],
)
def test_nobody_gets_in_without_the_link(server: _Server, path: str) -> None:
    assert server.ask(path)[0] == 403
    assert server.ask(path, b"{}")[0] == 403
    for wrong in ("", server.key[:-1], server.key + "x", "ü"):
        quoted = urllib.request.quote(wrong)
        assert server.ask(f"{path}?key={quoted}")[0] == 403
        assert server.ask(path, Authorization=f"Bearer {quoted}")[0] == 403
        assert (
            server.ask(path, Cookie=f"seapeft_{server.base.rsplit(':', 1)[1]}={quoted}")[0] == 403
        )
    assert server.ask(path, Cookie=f"seapeft_1={server.key}")[0] == 403


def test_the_link_becomes_a_cookie(server: _Server) -> None:
    status, entrance = server.ask(f"/?key={server.key}")
    assert status == 200
    assert "location.replace" in entrance.decode()
    assert server.key not in entrance.decode()
    cookie = server.headers["set-cookie"]
    assert "HttpOnly; SameSite=Lax" in cookie
    assert server.ask("/health", Cookie=f"other=1; {cookie.split(';')[0]}") == (200, b"OK")


def test_it_listens_on_this_machine_alone(server: _Server) -> None:
    port = int(server.base.rsplit(":", 1)[1])
    table = Path("/proc/net/tcp")
    if not table.is_file():
        pytest.skip("no /proc/net/tcp on this system")
    listening = [
        row.split()[1] for row in table.read_text().splitlines()[1:] if row.split()[3] == "0A"
    ]
    assert [at for at in listening if at.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    with pytest.raises(PortError, match=f"Port {port} .* choose another"):
        ui.open_ui(server.root, port, lambda _: pytest.fail("it opened"))


def test_without_a_store_it_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"")
    for root in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="run `seapeft adapt` first"):
            ui.open_ui(root, 0, lambda _: pytest.fail("it opened"))
    assert not (tmp_path / "none").exists()
