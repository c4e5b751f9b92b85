"""Messages and their tokens.

`messages` checks messages in OpenAI's form. `segments` are tokens, each with its message and its sentence. `token_ids`
are the tokens of a text. `json_text` checks JSON values of a chat.
"""
