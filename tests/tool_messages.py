"""Tool calls in the form of chat messages."""


def call(name: object, arguments: object) -> dict:
    """Return a call in OpenAI's form. The arguments are not changed."""
    return {"id": "0a1b2c3d4", "type": "function", "function": {"name": name, "arguments": arguments}}
