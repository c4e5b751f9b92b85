"""Tool calls as messages have them."""


def call(name: object, arguments: object) -> dict:
    """A call in OpenAI's form, its arguments as they are given."""
    return {"id": "0a1b2c3d4", "type": "function", "function": {"name": name, "arguments": arguments}}
