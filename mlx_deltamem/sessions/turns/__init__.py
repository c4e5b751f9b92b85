"""The turns of a chat, and the state after them. Nothing runs a model here.

- `turn` is one turn, and `drift` what it changed. `restore` has places in a chat that it can be taken back to.
- `state` holds the data of a chat, `chat_text` its text, `snapshot` a copy of the data. `progression` tells how far a
  chat has gone.
- `history` and `writing` are two options: what the model sees of earlier turns (`seen`), and what is written.
- `place` and `trimmed` find the place in a chat from which a list of messages goes on.
"""
