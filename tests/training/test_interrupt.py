import os
import signal
import subprocess
import sys
import threading

import pytest

from mlx_deltamem.training.interrupt import noticed_interrupts

pytestmark = pytest.mark.usefixtures("ctrl_c")
# Python does not get to run within it, so that a handler of Python's would wait.
_SCRIPT = """
import hashlib, sys
from mlx_deltamem.training.interrupt import noticed_interrupts

with noticed_interrupts(lambda: print("noticed", flush=True), lambda: print("given up", flush=True)):
    print("began", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_noticed_while_python_does_not_run(number):
    process = subprocess.Popen([sys.executable, "-c", _SCRIPT], stdout=subprocess.PIPE, text=True)
    try:
        for line in ("began", "noticed", "given up"):
            assert process.stdout.readline() == f"{line}\n"
            process.send_signal(number)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()


def test_afterwards_ctrl_c_is_as_before():
    before = signal.getsignal(signal.SIGTERM)
    seen, noticed = [], threading.Event()
    with noticed_interrupts(noticed.set, lambda: seen.append("second")):
        os.kill(os.getpid(), signal.SIGINT)
        assert noticed.wait(60)
    assert not seen
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_other_signals_are_ignored():
    seen, before = [], signal.signal(signal.SIGUSR1, lambda *_: seen.append("other"))
    try:
        with noticed_interrupts(lambda: seen.append("first"), lambda: seen.append("second")):
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == ["other"]


def test_an_error_within_it_goes_through():
    with pytest.raises(ValueError, match="mine"), noticed_interrupts(print, print):
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_that_was_started_with_ctrl_c_ignored_notices_it():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    noticed = threading.Event()
    with noticed_interrupts(noticed.set, print):
        os.kill(os.getpid(), signal.SIGINT)
        assert noticed.wait(60)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
