"""Change a chat: take turns back, change a message, and turns that belong together because of tool calls."""
