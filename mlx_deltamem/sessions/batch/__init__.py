"""Generate the replies of several chats together.

`reply_batch` has `ReplyBatch`, and `batched_reply` is one of its replies. `opener` reads the messages before,
`row_batch` is mlx-lm's batch, and `rows` says how each row of it runs. `rerun` goes on after a failure.
"""
