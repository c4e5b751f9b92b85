"""The settings of the server that the HTTP side needs."""

from dataclasses import dataclass

MEMORY_HEADER = "X-Deltamem-Memory"
# The header of this project first; then those that other clients send: the reference's sidecar, openclaw's plugin and
# Open WebUI, where the header of the chat's id can be renamed.
MEMORY_HEADERS = (
    MEMORY_HEADER,
    "X-Delta-Mem-Session-Key",
    "X-OpenClaw-Session-Key",
    "X-Session-ID",
    "X-OpenWebUI-Chat-Id",
)
# Fields of the body that can name a memory. Not every client means an identity by them, so each must be switched on.
MEMORY_FIELDS = ("conversation", "metadata.memory", "prompt_cache_key", "user")
# How the requests begin that Open WebUI makes by itself: titles, tags and so on; emojis; merged replies. The
# user's own message begins in the same way if it comes with sources.
READ_ONLY_PATTERN = (
    r"^(### Task:(?!\s*Respond to the user query)"
    "|Your task is to reflect the speaker's likely facial expression"
    "|You have been provided with a set of responses from various models)"
)


@dataclass(frozen=True)
class Settings:
    """How the HTTP side behaves.

    Attributes:
        api_key: The key that clients must give; None: no key is needed.
        allowed_hosts: The names that the Host header may have, without port, in small letters; `*` allows all.
        max_body: The largest body of a request, in bytes.
        max_import: The largest session file that can be sent, in bytes.
        given_model: The value of `--model`. Users of mlx_lm.server give it as the model's name. "" if there is none.
        memory_headers: The headers that name a memory. The first that is there counts.
        memory_from: The fields of `MEMORY_FIELDS` that name a memory if nothing else does.
        read_only_pattern: A request only reads its memory if this is found in the last message of the user; "": never.
        max_tokens, temperature, top_p, top_k, min_p: Values for requests that do not give them.
        timeout: The longest time for a reply, in seconds.
        body_timeout: The longest time in which nothing of an unfinished body arrives, in seconds.
        keepalive: A stream in which nothing was sent for this time gets a comment, in seconds.
        stalled: /health says that the engine is stalled after this time, in seconds.
        most_responses: How many replies of /v1/responses are kept.
    """

    api_key: str | None = None
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    max_body: int = 8 << 20
    max_import: int = 512 << 20
    given_model: str = ""
    memory_headers: tuple[str, ...] = MEMORY_HEADERS
    memory_from: tuple[str, ...] = ()
    read_only_pattern: str = READ_ONLY_PATTERN
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    timeout: float = 600.0
    body_timeout: float = 30.0
    keepalive: float = 10.0
    stalled: float = 60.0
    most_responses: int = 1_000
