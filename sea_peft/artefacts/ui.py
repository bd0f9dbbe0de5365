"""`seapeft ui`: MLflow's own pages over the run store, behind a secret link.

MLflow's page has no login, and since 3.x it opens with an assistant and with gateways to external
services. Here it answers on 127.0.0.1 alone, and only to whoever has the printed link. Pages that
would forward requests answer 404, or an empty list.
"""

import hmac
import os
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from sea_peft.artefacts import store
from sea_peft.errors import PortError

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
Application = Callable[
    [_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]],
    Awaitable[None],
]

# Routes that contact external services or run what they are given. The pages work without them.
_CLOSED = re.compile(
    r"/+(?:ajax-api/+|api/+)?(?:\d+\.\d+/+)?(?:mlflow/+)?"
    r"(?:assistant|gateway[^/]*|webhooks|jobs|scorer|genai|issues/+invoke|mcp[^/]*|runs/+create-promptlab-run)(?:/|$)",
    re.IGNORECASE,
)
# The list of runs asks this closed route for models behind a gateway, and shows an error if it is
# told 404. So it is told what MLflow's server says without a gateway.
_GATEWAY = "/ajax-api/2.0/mlflow/gateway-proxy"
_NO_MODELS = '{"endpoints": []}'
# Redirects to the link's page without the key. Marks MLflow's assistant as opened before, since it
# would open by itself although it is blocked here.
_ENTRANCE = """<!doctype html><title>MLflow</title><script>
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
location.replace("/" + location.hash);
</script>
"""


def open_ui(runs_root: Path, port: int, opened: Callable[[str], None]) -> None:
    """Serve MLflow's pages until Ctrl-C or SIGTERM. Changes the process's working directory and
    MLflow settings to those of the store.

    Args:
        runs_root: holds the store.
        port: on 127.0.0.1.
        opened: called with the link as soon as a browser can connect.

    Raises:
        UsageError: no run has been logged under `runs_root`, or MLflow is not installed.
        PortError: the port is in use.
    """
    store.require()
    page, uri = store.ui_page(runs_root), store.store_uri(runs_root)
    token = secrets.token_urlsafe(24)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
            listening.listen()
        except OSError as error:
            raise PortError(
                f"Port {port} of 127.0.0.1 cannot be used ({error.strerror}): choose another one."
            ) from error
        opened(f"http://127.0.0.1:{listening.getsockname()[1]}/?key={token}{page}")
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            del os.environ[name]
        os.chdir(runs_root)  # locations of artifacts are relative to it
        store.import_quietly()
        from mlflow.server import constants

        os.environ |= {
            constants.BACKEND_STORE_URI_ENV_VAR: uri,
            constants.ARTIFACT_ROOT_ENV_VAR: store.ARTIFACTS,
        }
        import uvicorn
        from mlflow.server.fastapi_app import app

        # without its lifespan, in which MLflow looks for containers of its assistant
        config = uvicorn.Config(
            behind_a_door(app, token), log_level="error", access_log=False, lifespan="off"
        )
        uvicorn.Server(config).run(sockets=[listening])


def behind_a_door(application: Application, token: str) -> Application:
    """`application`, only for requests that carry `token`.

    A browser sends it in the link, which becomes a cookie; a program as `Authorization: Bearer`
    (`MLFLOW_TRACKING_TOKEN`).
    """

    def known(given: str) -> bool:
        return hmac.compare_digest(given.encode(), token.encode())

    async def door(scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        port = scope["server"][1]
        cookie = f"seapeft_{port}"  # browsers tell cookies apart by host, not by port
        link = parse_qs(scope["query_string"].decode("latin-1")).get("key", [""])[0]
        if known(link):
            kept = f"{cookie}={token}; Path=/; HttpOnly; SameSite=Lax"
            await _answer(send, 200, _ENTRANCE, [(b"set-cookie", kept.encode())], "text/html")
        elif not (
            known(_cookie(headers.get("cookie", ""), cookie))
            or known(headers.get("authorization", "").removeprefix("Bearer "))
        ):
            await _answer(
                send,
                403,
                "Open the link that `seapeft ui` printed: this page answers nobody without it.\n",
            )
        elif scope["method"] == "GET" and scope["path"] == _GATEWAY:
            await _answer(send, 200, _NO_MODELS, kind="application/json")
        elif _CLOSED.match(scope["path"]):
            await _answer(send, 404, "Not offered by `seapeft ui`.\n")
        else:
            await application(scope, receive, send)

    return door


def _cookie(header: str, name: str) -> str:
    try:
        cookies = SimpleCookie(header)
    except CookieError:
        return ""
    return cookies[name].value if name in cookies else ""


async def _answer(
    send: _Send,
    status: int,
    text: str,
    headers: Sequence[tuple[bytes, bytes]] = (),
    kind: str = "text/plain",
) -> None:
    own = [
        (b"content-type", f"{kind}; charset=utf-8".encode()),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": text.encode()})
