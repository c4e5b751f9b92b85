"""A server of named memories: the engine that generates replies, and the interfaces of other APIs to it.

- `run` starts the server. `watchdog` ends it if it stalls.
- `api` is the HTTP side, and `page` the page of the server. `service` is all that they can ask of the engine, and
  `exchange` the data of a request for a reply and of its answer.
- `local` answers them with the engine in this process: `calls` lets its thread do `operations` on memories, and
  `special_tokens` are taken out of what clients send back.
- `engine` is the thread, with its rounds and its end. Its `inbox` takes what is asked of it, and its `agenda` is the
  order of that; several ranks that hold the model share it, with requests as `request_json`. `replies` are the requests
  for replies, those that wait and those whose replies are generated. One of them is a `reply_job`.
- `finding` finds the memory of a request, and `asking` the place in it that the request goes on from. `reply_turn`
  begins the turn there, with the `sampling` of the request, and keeps it or takes it back.
- `memories` has all memories, and `folder` their files. `memory` is one, and `readers` are its copies for chats that
  only read it. `work` is the order of the work on it, `saver` when it is saved, and `watching` what those who watch it
  are told.
- `metrics` are the figures of the server.
"""
