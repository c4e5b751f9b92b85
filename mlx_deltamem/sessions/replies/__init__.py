"""Generate the reply of one chat.

`replying` runs a whole turn. `reply` generates with mlx-lm, and `drafted_reply` with a draft model. `beginning` makes
a reply begin with a given text. `tool_calls` finds the tool calls in a reply.
"""
