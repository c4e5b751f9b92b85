"""Chats with one memory across turns.

`session` is what a user of the package calls: `ChatSession`. `comparison` asks a question with and without memory. The
packages, each of which imports from those before it only:

- `text` and `template`: messages, and the tokens that a chat template makes of them.
- `turns`: the turns of a chat, and the state after them.
- `reading`, `changing` and `replies`: what runs a model.
- `foreign`, `stored` and `export`: files of other implementations, session files, and other forms of a chat.
- `batch`: the replies of several sessions together.
"""
