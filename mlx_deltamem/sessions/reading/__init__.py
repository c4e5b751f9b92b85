"""Read messages: run their tokens through the model, which writes the memory.

`new_turn` makes a turn, `fitting` checks that it fits into the model's window, and `running` runs it. `prefill` runs
tokens, and `together` those of several chats. `starts` reads the beginning of a new chat. `remembering` writes a text
that is no message.
"""
