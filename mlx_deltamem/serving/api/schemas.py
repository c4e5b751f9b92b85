"""JSON schemas of the bodies of requests, for the OpenAPI document. Fields that may be absent may be null as well."""

from collections.abc import Mapping

from mlx_deltamem.serving.names import NAME_PATTERN

Schema = dict[str, object]

# Some of the names that `check_names` refuses.
RESERVED = ("chat_template", "tools", "documents", "tokenizer", "messages", "conversation", "tokenize", "self")
_SOME_TEXT: Schema = {"type": "string", "pattern": r"\S"}
_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": ["boolean", "null"]}
_OBJECT: Schema = {"type": ["object", "null"]}


def _number(low: float, high: float) -> Schema:
    return {"type": ["number", "null"], "minimum": low, "maximum": high}


def _whole(low: int, high: int) -> Schema:
    return {"type": ["integer", "null"], "minimum": low, "maximum": high}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _one_of(*values: str) -> Schema:
    return {"enum": [*values, None]}


def _object(required: tuple[str, ...], **properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


_COUNT = _whole(0, 2**31 - 1)
_LENGTH: Schema = {"anyOf": [_whole(1, 2**63 - 1), {"const": -1}]}
_LENGTH_OR_NONE: Schema = {"anyOf": [_whole(0, 2**63 - 1), {"const": -1}]}
_STOP = _or_null({"anyOf": [{"type": "string", "maxLength": 4096}, {"$ref": "#/components/schemas/StopList"}]})
_MODEL: Schema = {
    "type": ["string", "null"],
    "description": "The model's name, also with @MEMORY or @MEMORY:ro behind it; absent: the model without a memory.",
}
_MEMORY: Schema = _or_null(
    _object((), name={"type": ["string", "null"], "pattern": NAME_PATTERN}, mode=_one_of("write", "read", "off"))
)
_TEMPERATURE: Schema = {"anyOf": [_number(1e-6, 3e38), {"const": 0}]}
_REPETITION: Schema = {"anyOf": [_number(0.01, 100), {"const": 0}]}
# Other fields of the body that choose a memory are only read if the server was told so.
_COMMON: dict[str, Schema] = {
    "model": _MODEL,
    "memory": _MEMORY,
    "stream": _FLAG,
    "temperature": _TEMPERATURE,
    "top_p": _number(0, 1),
    "top_k": _COUNT,
    "min_p": _number(0, 1),
    "xtc_probability": _number(0, 1),
    "xtc_threshold": _number(0, 0.5),
    "logit_bias": {
        "type": ["object", "null"],
        "propertyNames": {"enum": ["0"]},
        "additionalProperties": _number(-100, 100),
        "description": "By token id. The ids depend on the model; this schema has only the first.",
    },
    "repetition_penalty": _REPETITION,
    "repetition_context_size": _COUNT,
    "presence_penalty": _number(-100, 100),
    "presence_context_size": _COUNT,
    "frequency_penalty": _number(-100, 100),
    "frequency_context_size": _COUNT,
    "seed": _whole(-(2**63), 2**64 - 1),
}
_COMPLETION: dict[str, Schema] = {
    **_COMMON,
    "max_tokens": _LENGTH,
    "max_completion_tokens": _LENGTH,
    "stop": _STOP,
    "n": _whole(1, 8),
    "stream_options": _or_null(_object((), include_usage=_FLAG)),
}
_TEMPLATE: dict[str, Schema] = {
    "chat_template_kwargs": {
        "type": ["object", "null"],
        "description": "Variables of the chat template.",
        "propertyNames": {"pattern": r"^[A-Za-z_][A-Za-z0-9_]*$", "not": {"enum": [*RESERVED]}},
        "properties": {"enable_thinking": _FLAG},
    }
}
_ONLY_TEXT = _or_null(_object((), type=_one_of("text")))
_PARTS: Schema = {
    "type": "array",
    "minItems": 1,
    "items": _object(("type", "text"), type={"const": "text"}, text=_SOME_TEXT),
}
_CONTENT: Schema = {"anyOf": [_SOME_TEXT, _PARTS]}


def _message(*roles: str) -> Schema:
    return _object(("role", "content"), role={"enum": list(roles)}, content=_CONTENT)


_FUNCTION = _object(
    ("name",), name={"type": "string", "minLength": 1}, description={"type": ["string", "null"]}, parameters=_OBJECT
)
_HISTORY: Schema = {
    "anyOf": [{"enum": ["full", "none", None]}, {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}]
}
_WRITE = _one_of("all", "after", "user", "assistant", "none")
_NEW_NAME: Schema = {"type": "string", "pattern": NAME_PATTERN}
_MESSAGES: Schema = {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Message"}}

SCHEMAS: Mapping[str, Schema] = {
    "StopList": {"type": "array", "maxItems": 16, "items": {"type": "string", "minLength": 1, "maxLength": 4096}},
    "Message": _message("system", "developer", "user", "assistant"),
    "ChatRequest": _object(
        ("messages",),
        **_COMPLETION,
        **_TEMPLATE,
        messages=_MESSAGES,
        logprobs=_FLAG,
        top_logprobs=_whole(0, 20),
        response_format=_ONLY_TEXT,
        tools={
            "type": ["array", "null"],
            "items": _object(("type", "function"), type={"const": "function"}, function=_FUNCTION),
        },
        tool_choice={"anyOf": [_one_of("none", "auto", "required"), {"type": "object"}]},
    ),
    "CompletionRequest": _object(
        ("prompt",),
        **{**_COMPLETION, "max_tokens": _LENGTH_OR_NONE, "max_completion_tokens": _LENGTH_OR_NONE},
        prompt={
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "minItems": 1, "maxItems": 4, "items": {"type": "string", "minLength": 1}},
            ]
        },
        echo=_FLAG,
        logprobs=_whole(0, 20),
    ),
    "ResponseRequest": _object(
        ("input",),
        **_COMMON,
        **_TEMPLATE,
        input={
            "anyOf": [_SOME_TEXT, {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/InputItem"}}]
        },
        instructions={"type": ["string", "null"]},
        previous_response_id={"type": ["string", "null"], "description": "The id of a response that is kept."},
        max_output_tokens=_LENGTH,
        store=_FLAG,
        metadata=_OBJECT,
        tools={
            "type": ["array", "null"],
            "items": {
                **_FUNCTION,
                "required": ["type", "name"],
                "properties": {
                    "type": {"const": "function"},
                    "name": {"type": "string", "minLength": 1},
                    "description": {"type": ["string", "null"]},
                    "parameters": _OBJECT,
                },
            },
        },
        tool_choice={"anyOf": [_one_of("none", "auto", "required"), {"type": "object"}]},
        text=_or_null(_object((), format=_ONLY_TEXT)),
    ),
    "InputItem": _object(
        ("role", "content"),
        type={"enum": ["message"]},
        role={"enum": ["system", "developer", "user", "assistant"]},
        content={
            "anyOf": [
                _SOME_TEXT,
                {
                    "type": "array",
                    "minItems": 1,
                    "items": _object(("type", "text"), type={"enum": ["input_text", "output_text"]}, text=_SOME_TEXT),
                },
            ]
        },
    ),
    "AnthropicRequest": _object(
        ("messages",),
        **_COMMON,
        **_TEMPLATE,
        messages={"type": "array", "minItems": 1, "items": _message("user", "assistant")},
        system=_or_null({"anyOf": [_TEXT, {**_PARTS, "minItems": 0}]}),
        max_tokens=_LENGTH,
        stop_sequences=_or_null({"$ref": "#/components/schemas/StopList"}),
        tools={
            "type": ["array", "null"],
            "items": _object(
                ("name",),
                name={"type": "string", "minLength": 1},
                description={"type": ["string", "null"]},
                input_schema=_OBJECT,
            ),
        },
        tool_choice=_or_null(_object((), type=_one_of("auto", "any", "tool", "none"))),
    ),
    "NewMemory": _object(("name",), name=_NEW_NAME, history=_HISTORY, write=_WRITE),
    "MemoryChange": _object((), history=_HISTORY, write=_WRITE),
    "Fork": _object(("name",), name=_NEW_NAME),
    "Remember": {
        "oneOf": [
            _object(("text",), text=_SOME_TEXT, messages={"type": "null"}, write=_one_of("all", "user", "assistant")),
            _object(
                ("messages",), messages=_MESSAGES, text={"type": "null"}, write=_one_of("all", "user", "assistant")
            ),
        ]
    },
    "Error": _object(
        ("error",),
        error=_object(
            ("message", "type", "param", "code"),
            message=_TEXT,
            type=_TEXT,
            param={"type": ["string", "null"]},
            code={"type": ["string", "null"]},
        ),
    ),
    "AnthropicError": _object(
        ("type", "error"), type={"const": "error"}, error=_object(("type", "message"), type=_TEXT, message=_TEXT)
    ),
    "Memory": _object(
        ("id", "object", "name", "revision", "turns", "tokens", "state_bytes", "history", "write", "loaded", "saved"),
        id=_TEXT,
        object={"const": "memory"},
        name=_TEXT,
        revision=_TEXT,
        turns={"type": "integer"},
        tokens={"type": "integer"},
        state_bytes={"type": "integer"},
        history={"type": ["string", "integer"]},
        write=_TEXT,
        loaded={"type": "boolean"},
        saved={"type": "boolean"},
    ),
    "Any": {"type": "object"},
}
