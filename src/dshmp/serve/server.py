"""The server of the page. gradio is imported once it is told where its files lie."""

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from dshmp.common.errors import UserError
from dshmp.common.options import Options
from dshmp.common.signals import held
from dshmp.inference.segment import load
from dshmp.serve.html import CSS

POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; frame-ancestors 'self'"
SETTINGS: dict[str, Any] = {
    **{"share": False, "ssr_mode": False, "mcp_server": False, "run_history": False, "enable_monitoring": False},
    **{"quiet": True, "prevent_thread_lock": True, "footer_links": ["api"], "css": CSS},
}


class NothingFetched:
    """Neither server nor browser fetch anything from elsewhere: gradio answers `/file=https://...` by fetching
    that, and its video editor comes from a public address."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
            await send(message)

        fetched = scope["type"] == "http" and "=http" in scope["path"]
        await (PlainTextResponse("not found", 404) if fetched else self.app)(scope, receive, send_with_policy)


@contextlib.contextmanager
def serving(models: Sequence[str], device: str, host: str, port: int, max_upload: int) -> Iterator[str]:
    """Serve the page while this is open; gives its address. Files are in a temporary folder, which is removed in the
    end; `max_upload` is in MB. Sets gradio's environment variables, so gradio may not have been imported before. Raises
    UserError where the first model cannot be loaded or the port is taken."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        fault = "another program listens there, or it is no address of this machine"
        raise UserError(f"{host}:{port}: {fault}; choose another --port or --host") from None
    threshold = load(Options(model=models[0], device=device)).config.readout.threshold
    with contextlib.ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="dshmp-serve-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}

        from dshmp.serve.app import App
        from dshmp.serve.page import THEME, layout

        app = App(device, Path(folder))
        page = layout(app, models, threshold)
        stack.callback(page.close, verbose=False)
        stack.callback(app.runs.stop_all)
        settings = SETTINGS | {"theme": THEME, "app_kwargs": {"middleware": [Middleware(NothingFetched)]}}
        settings |= {"server_name": host, "server_port": port, "max_file_size": f"{max_upload}mb"}
        _, address, _ = page.launch(**settings)
        try:
            yield address
        finally:
            with held():  # a second Ctrl-C
                stack.close()
