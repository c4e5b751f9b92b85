"""Requests of `tools.measure.storm_client` that must be refused, and unusual ones that must be served."""

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
_HELLO = [{"role": "user", "content": "Hello."}]
_SHORT = {"messages": _HELLO, "max_tokens": 2}

# More than the 8 MiB that a body may have.
TOO_LARGE = [{"role": "user", "content": "word " * 1_800_000}]

# Method, path, body, status.
MALFORMED: tuple[tuple[str, str, object, int], ...] = (
    ("POST", CHAT, b"", 400),
    ("POST", CHAT, b"{", 400),
    ("POST", CHAT, b"\xff\xfe", 400),
    ("POST", CHAT, b"[1]", 400),
    ("POST", CHAT, b'{"messages": NaN}', 400),
    ("POST", CHAT, b"[" * 100_000, 400),
    ("POST", CHAT, {}, 400),
    ("POST", CHAT, {"messages": []}, 400),
    ("POST", CHAT, {"messages": "hello"}, 400),
    ("POST", CHAT, {"messages": [{"role": "robot", "content": "a"}]}, 400),
    ("POST", CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, 400),
    ("POST", CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400),
    ("POST", CHAT, {"messages": [{"role": "system", "content": "a"}]}, 400),
    ("POST", CHAT, {**_SHORT, "stop": [1]}, 400),
    ("POST", CHAT, {**_SHORT, "temperature": "hot"}, 400),
    ("POST", CHAT, {**_SHORT, "temperature": 10**400}, 400),
    ("POST", CHAT, {**_SHORT, "max_tokens": -5}, 400),
    ("POST", CHAT, {**_SHORT, "max_tokens": 1.5}, 400),
    ("POST", CHAT, {**_SHORT, "n": 0}, 400),
    ("POST", CHAT, {**_SHORT, "seed": 2**70}, 400),
    ("POST", CHAT, {**_SHORT, "logit_bias": {"999999999": 1}}, 400),
    ("POST", CHAT, {**_SHORT, "tools": [{"type": "function"}]}, 400),
    ("POST", CHAT, {**_SHORT, "memory": {"name": "../x"}}, 400),
    ("POST", CHAT, {**_SHORT, "memory": {"mode": "append"}}, 400),
    ("POST", CHAT, {**_SHORT, "model": "another"}, 404),
    ("POST", CHAT, {**_SHORT, "chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, 400),
    ("POST", CHAT, {"messages": [{"role": "user", "content": "word " * 2_000}]}, 400),
    ("POST", TEXT, {"prompt": ""}, 400),
    ("POST", TEXT, {"prompt": []}, 400),
    ("POST", TEXT, {"prompt": "a", "stop": 5}, 400),
    ("POST", TEXT, {"prompt": "word " * 2_000}, 400),
    ("POST", "/v1/messages", {"messages": []}, 400),
    ("POST", "/v1/responses", {"input": 3}, 400),
    ("POST", "/v1/responses", {"input": "a", "previous_response_id": "resp_x"}, 400),
    ("POST", "/v1/memories", {"name": "a/b"}, 400),
    ("GET", "/v1/memories/nobody", b"", 404),
    ("PUT", "/v1/memories/nobody/import", b"no file", 422),
    ("GET", "/v1/nothing", b"", 404),
    ("DELETE", CHAT, b"", 405),
)

# Path and body. Each of these, or one like it, ends mlx_lm.server's generation or its connection.
ODD: tuple[tuple[str, dict[str, object]], ...] = (
    (TEXT, {"prompt": ["a", "b"], "max_tokens": 2}),
    (TEXT, {"prompt": "a", "n": 2, "max_tokens": 2}),
    (TEXT, {"prompt": "a", "echo": True, "max_tokens": 2}),
    (CHAT, {**_SHORT, "top_k": 10_000_000}),
    (CHAT, {**_SHORT, "stream": None, "temperature": None, "stop": None, "seed": None}),
    (CHAT, {**_SHORT, "seed": -1}),
    (CHAT, {**_SHORT, "n": 2}),
    (CHAT, {**_SHORT, "logprobs": True, "top_logprobs": 3}),
    (CHAT, {**_SHORT, "stop": ["a", "b", "c"]}),
    (CHAT, {**_SHORT, "temperature": 2, "top_p": 0.1, "top_k": 5, "min_p": 0.1}),
    (CHAT, {**_SHORT, "repetition_penalty": 1.3, "logit_bias": {"5": 2}}),
    (CHAT, {**_SHORT, "stream": True, "stream_options": {"include_usage": True}}),
    (CHAT, {"messages": [{"role": "assistant", "content": "Hi!"}, *_HELLO], "max_tokens": 2}),
    (CHAT, {"messages": [*_HELLO, {"role": "assistant", "content": "a"}], "max_tokens": 2}),
    (CHAT, {"messages": [{"role": "system", "content": "Be brief."}, *_HELLO], "max_tokens": 2, "tools": []}),
)
