"""Signals between the steps of a loop."""

import signal
import subprocess
import sys
import threading

import pytest

from jaxalign.runs.stop import stop_request

LOOP = """
import pathlib, signal, sys, threading, time
from jaxalign.runs.stop import stop_request
state, slow = pathlib.Path(sys.argv[1]), len(sys.argv) > 2
with stop_request() as stop:
    print("ready", flush=True)
    for step in range(600):
        time.sleep(0.05)
        if stop.asked:
            time.sleep(60 if slow else 0)
            state.write_text(str(step))
            break
print("went on")
"""


def start(*arguments):
    code = [sys.executable, "-c", LOOP, *map(str, arguments)]
    process = subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_sigterm_ends_the_process_once_the_state_is_written(tmp_path):
    process = start(tmp_path / "state")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert (out, err.count("stopping when the state is written")) == ("", 1)
    assert int((tmp_path / "state").read_text()) < 600


def test_a_second_signal_stops_at_once(tmp_path):
    process = start(tmp_path / "state", "slow")
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "\n"
    assert "stopping" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    assert not (tmp_path / "state").exists()


def test_handlers_are_put_back_and_a_stop_is_no_return():
    # Where tests run in the background of a shell, Ctrl-C is ignored at first.
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stop_request() as stop:
            assert not stop.asked
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt), stop_request():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, old)


def test_a_handler_that_returns_is_followed_by_an_interrupt(monkeypatch):
    calls = []
    old = signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    try:
        with pytest.raises(KeyboardInterrupt), stop_request():
            signal.raise_signal(signal.SIGTERM)
        assert calls == [1]
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with stop_request() as stop:
            signal.raise_signal(signal.SIGTERM)
        assert not stop.asked
    finally:
        signal.signal(signal.SIGTERM, old)


def test_other_threads_leave_signals_alone():
    found = []

    def loop():
        with stop_request() as stop:
            found.append(stop.asked)

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    assert found == [False]
