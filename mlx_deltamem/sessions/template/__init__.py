"""The chat template: what it writes for messages.

`chat_template` gives the tokens of messages, with the help of `text`, which finds out what a template writes for each
of them. `options` are its tools and other variables. `guarded`, `guards` and `limits` end a template that takes too
long or writes too much.
"""
