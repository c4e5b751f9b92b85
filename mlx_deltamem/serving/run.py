"""Run the server: the engine in its thread, and the HTTP side in this one."""

import argparse
import contextlib
import signal
import time
from types import FrameType

import mlx.nn as nn
import uvicorn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.serving.api.app import make_app
from mlx_deltamem.serving.api.settings import MEMORY_HEADERS, Settings
from mlx_deltamem.serving.engine import Engine
from mlx_deltamem.serving.exchange import ending
from mlx_deltamem.serving.local import LocalService
from mlx_deltamem.serving.memories import Memories
from mlx_deltamem.serving.watchdog import watch

# The time in which the last answers are sent when all replies have ended, in seconds.
_LAST_ANSWERS = 5


class _Server(uvicorn.Server):
    """uvicorn, which ends with exit code 0 on SIGTERM, SIGHUP and Ctrl-C once everything is saved.

    After a signal it goes on to listen, so that new requests get 503, until the replies under way have ended or the
    grace is over. A second signal ends it at once.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine, service: LocalService, grace: float):
        super().__init__(config)
        self._engine = engine
        self._service = service
        self._grace = grace
        self._ends_at: float | None = None

    @contextlib.contextmanager
    def capture_signals(self):
        """Let the signals end the server, without raising them again afterwards as uvicorn does."""
        before = {each: signal.signal(each, self._on_signal) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._engine.inbox.is_accepting = False
        if self._ends_at is None:
            self._ends_at = time.monotonic() + self._grace
        else:
            self.handle_exit(number, frame)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: return whether the server ends now."""
        if self._engine.failure is not None and not self.should_exit:
            self._service.fail_all(ending())
            self.should_exit = True
        if self._ends_at is not None and not self.should_exit:
            is_over = time.monotonic() >= self._ends_at
            if is_over:
                self._engine.cut()
            self.should_exit = is_over or self._engine.is_idle
        if self.should_exit:
            self._service.end_events()
        return await super().on_tick(counter)

    async def startup(self, sockets=None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        for server in self.servers if self.started else ():
            host, port = server.sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"Serving on http://{shown}:{port} (Ctrl-C ends it)", flush=True)


def serve(
    model: nn.Module, tokenizer: TokenizerWrapper, model_name: str, key: str | None, args: argparse.Namespace
) -> None:
    """Serve until a signal comes. If several ranks hold the model, rank 0 serves, and the others do what it does.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        model_name: The name of the model for clients.
        key: The key that clients give, or None.
        args: The options of `mlx_deltamem.server`.

    Raises:
        ValueError: Another server uses the folder of memories, or the port is taken.
        OSError: The folder cannot be written, or a memory could not be saved at the end.
        RuntimeError: Something failed in one of several ranks.
    """
    memories = Memories(model, tokenizer, args.memories, args.history, args.write, args.memory_bytes)
    engine = Engine(model, tokenizer, memories, args.max_batch, args.queue, args.replay_limit, args.durability)
    engine.start()
    is_listening = _serve_http(engine, model_name, key, args) if engine.world.is_first else _follow(engine)
    engine.wait()
    engine.world.first(lambda: _check_end(engine, is_listening, args))


def _follow(engine: Engine) -> bool:
    """Do what rank 0 does until it ends. Signals are for rank 0."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    engine.wait()
    return True


def _check_end(engine: Engine, is_listening: bool, args: argparse.Namespace) -> None:
    """Check that the server has ended as it should.

    Raises:
        ValueError: The port was taken.
        OSError: A memory could not be saved.
    """
    if not is_listening:
        raise ValueError(f"cannot listen on {args.host}:{args.port}; is the port taken? name another --port")
    if engine.unsaved:
        raise OSError(
            f"{engine.unsaved} memories could not be saved at the end, and their last turns are lost; is the disk full?"
        )


def _serve_http(engine: Engine, model_name: str, key: str | None, args: argparse.Namespace) -> bool:
    """Serve HTTP until a signal comes or the engine has failed, and end the engine.

    Returns:
        False if the port is taken.
    """
    service = LocalService(engine, model_name)
    app = make_app(service, _settings(key, args))
    config = uvicorn.Config(
        app,
        host=args.host,
        port=args.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_LAST_ANSWERS,
        server_header=False,
        lifespan="off",
    )
    server = _Server(config, engine, service, args.grace)
    if args.exit_on_stall is not None:
        watch(engine, args.exit_on_stall, service.fail_all)
    try:
        server.run()
    except SystemExit:
        return False
    finally:
        engine.stop(0)
    return True


def _settings(key: str | None, args: argparse.Namespace) -> Settings:
    hosts = ("*",) if args.host in ("0.0.0.0", "::") and not args.allowed_host else tuple(args.allowed_host)
    # In a URL, an address with colons has brackets.
    own = f"[{args.host}]" if ":" in args.host else args.host
    return Settings(
        api_key=key,
        allowed_hosts=(*Settings.allowed_hosts, own.lower(), *(name.lower() for name in hosts)),
        memory_headers=tuple(args.memory_header or MEMORY_HEADERS),
        memory_from=tuple(args.memory_from),
        given_model=args.model or "",
        read_only_pattern=args.read_only_pattern,
        max_tokens=args.max_tokens,
        temperature=args.temp,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        timeout=args.reply_timeout,
    )
