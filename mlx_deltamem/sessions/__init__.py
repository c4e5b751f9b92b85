"""Chats with one memory across turns.

- `session` is what a user of the package calls: `ChatSession`. `comparison` asks a question with and without memory.
- `state` holds the data of a chat, `snapshot` is a copy of them, and `progression` how far the chat has gone.
- `new_turn` makes a turn, and `fitting` checks that it fits into the model's window. `running` runs it. `remembering`
  writes a text that is no message.
- `replying` generates replies (one of them: `reply`, which `beginning` makes begin with a given text). `editing`
  changes messages, and `going_back` takes turns back, to the places in `restore`. `drift` measures turns.
- `batch` generates replies of several chats together (one of them: `batched_reply`). `opener` reads their messages,
  and `rerun` goes on after a failure. `row_batch` is mlx-lm's batch of them, and `rows` says how each row of it runs.
- `turn` is one turn. Its messages are checked in `messages`, and become tokens in `chat_text`, by the chat template in
  `template` (and `template_text`, `template_options`). `segments` are such tokens, `prefill` runs them.
- `guarded_template`, `template_guards` and `template_limits` end a template that takes too long or writes too much.
- `history` and `writing` are two options of a chat: what the model sees of earlier turns (`seen`), and what is written.
- `saving` and `stored` are session files, and `foreign` the files of other implementations. `exported` is a chat as a
  dict, with `reply_rest` for the replies that a stop text ended.
"""
