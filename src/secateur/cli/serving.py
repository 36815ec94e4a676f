"""Commands that let people and programs talk to a model: serve, chat. What they start is part of transformers."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.cli.common import app
from secateur.errors import InputError, install

if TYPE_CHECKING:
    from transformers.cli.serve import Serve


@app.command
def serve(
    model: str, /, *, host: str = "localhost", port: int = 8000, device: str = "auto", dtype: str = "auto"
) -> None:
    """Answer requests for MODEL, as OpenAI's interface has them, by the server of transformers.

    Chat completions, completions and responses, each streamed or not, under http://HOST:PORT/v1. A request names MODEL
    as it is named here, or none.

    Parameters
    ----------
    model
        A hub name, a folder, packed or not, or a .gguf file.
    host
        The address to listen on. Nobody is asked for a password.
    port
        The port to listen on.
    device
        auto (a GPU if there is one), cpu, cuda, …
    dtype
        auto (as stored), float32, bfloat16 or float16.
    """
    from secateur.console.terminal import err

    if not 0 < port < 1 << 16:
        raise InputError(f"there is no port {port}")
    with socket.socket() as listening:
        if not listening.connect_ex((host, port)):
            raise InputError(f"something listens on port {port} of {host} already: give another --port")
    with _serving(model, host, port, device, dtype) as (server, name):
        err.print(
            f"serving {name} on http://{host}:{port}/v1 (Ctrl-C ends it)",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        server._thread.join()


@app.command
def chat(model: str, /, *, system: str | None = None, device: str = "auto", dtype: str = "auto") -> None:
    """Chat with MODEL in the terminal, by what transformers has for that.

    Parameters
    ----------
    model
        A hub name, a folder, packed or not, or a .gguf file.
    system
        What the model is told before anything else.
    device
        auto (a GPU if there is one), cpu, cuda, …
    dtype
        auto (as stored), float32, bfloat16 or float16.
    """
    from transformers.cli.chat import Chat

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with _serving(model, "localhost", port, device, dtype) as (_, name):
        Chat(name, f"http://localhost:{port}", system_prompt=system)


@contextmanager
def _serving(model: str, host: str, port: int, device: str, dtype: str) -> Iterator[tuple["Serve", str]]:
    """A server of one model, for as long as the context is open, and what requests call that; it answers when entered.

    Raises:
        InputError: when the model cannot be read, a package is missing, or the port cannot be had.
    """
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise InputError(f"transformers cannot serve without some packages: {install('serve')}")
    from transformers.cli.serve import Serve

    import secateur.transformers  # noqa: F401 (packed models load after it)
    from secateur.checkpoint import Source, local_folder
    from secateur.devices import check_dtype, choose_device

    check_dtype(dtype)
    chosen = str(choose_device(device))
    with local_folder(model) as folder:
        Source(folder).tokenizer()  # says what it lacks before the weights are read
        path = Path(model)  # of a GGUF file a folder is made, and of an older layout
        name = str(folder) if path.exists() and path.resolve() != folder.resolve() else model
        server = Serve(name, device=chosen, dtype=dtype, host=host, port=port, non_blocking=True)
        try:
            while server._thread.is_alive() and not server.server.started:
                server._thread.join(0.05)
            if not server.server.started:
                raise InputError(f"there is no listening on port {port} of {host}")
            logging.getLogger("uvicorn.access").disabled = True  # a line a request, amid what is said in a chat
            yield server, name
        finally:
            server.kill_server()
