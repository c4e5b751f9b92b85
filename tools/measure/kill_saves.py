"""Kill a process while it saves a chat, many times: `python -m tools.measure.kill_saves --kills 500`.

After each kill the file must hold a complete chat. Each kill needs a new process, so this is slow.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlx_deltamem.cli.command import command
from mlx_deltamem import ChatSession, load
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.options.rule import POSITIVE, SEED

_SAVING = """
import sys
import tools.openblas
from mlx_deltamem import ChatSession, load
model, tokenizer = load(sys.argv[1], adapter=sys.argv[2])
chat = ChatSession.load(model, tokenizer, sys.argv[3])
print("ready", flush=True)
while True:
    chat.save(sys.argv[3], save_kv=True)
    print("saved", flush=True)
"""


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="python -m tools.measure.kill_saves", description=__doc__)
    parser.add_argument("--model", required=True, help="Folder or Hub repo of a small model.")
    parser.add_argument("--adapter", required=True, help="The adapter of the model.")
    parser.add_argument("--kills", type=POSITIVE, default=500, help="How many times to kill (default: 500).")
    parser.add_argument("--seed", type=SEED, default=0, help="Seed of the random delays before the kills (default: 0).")
    return parser


@command
def main() -> None:
    """Kill the saving process again and again; stop at the first damaged file."""
    args = setup_arg_parser().parse_args()
    model, tokenizer = load(args.model, adapter=args.adapter)
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chat.safetensors"
        chat = ChatSession(model, tokenizer)
        chat.send("Remember the word jade.", 8)
        chat.save(path, save_kv=True)
        start, unfinished = time.monotonic(), 0
        for kill in range(1, args.kills + 1):
            kill_while_saving(args, path, moments.uniform(0.0, 0.03))
            unfinished += len(list(path.parent.iterdir())) > 1
            found = ChatSession.load(model, tokenizer, path)
            if found.messages != chat.messages or found.segments != chat.segments:
                sys.exit(f"kill {kill}: the file holds a different chat")
            if kill % 50 == 0:
                print(f"{kill} kills, {unfinished} of them in the middle of a save: no session lost", flush=True)
        print(f"{args.kills} kills in {time.monotonic() - start:.0f} s")


def kill_while_saving(args: argparse.Namespace, path: Path, seconds: float) -> None:
    """Start a process that saves the chat in a loop, and kill it `seconds` after it has started to save."""
    command = [sys.executable, "-c", _SAVING, args.model, args.adapter, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            sys.exit("the saving process did not start")
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)


if __name__ == "__main__":
    main()
