"""board/serve.sh, which keeps a board's server alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from intcert.runtime.boards import Patience, Servers, open_board
from intcert.runtime.errors import DeviceLostError
from intcert.runtime.rpc_link import Address

SCRIPT = Path(__file__).parents[2] / "board" / "serve.sh"


def test_a_board_is_back_after_a_crash(artifact, free_port, tmp_path):
    import psutil

    words = ["--host", "127.0.0.1", "--port", str(free_port), "--port-end", str(free_port + 1)]
    environment = os.environ | {"PYTHON": sys.executable, "TVM_USE_RUNTIME_LIB": "1"}
    log = tmp_path / "log"
    with log.open("wb") as output:
        script = subprocess.Popen([SCRIPT, *words], stdout=output, stderr=output, env=environment)
    try:
        source, patience = Servers([Address("127.0.0.1", free_port)]), Patience(answer=20, board=60)
        image = np.zeros(artifact.manifest.input_shape, np.uint8)
        with open_board(artifact, source, patience) as session:
            expected = session.counts(image, 1, 0, 100)
            (server,) = psutil.Process(script.pid).children()
            descendants = server.children(recursive=True)
            descendants[-1].send_signal(signal.SIGILL)
            with pytest.raises(DeviceLostError):
                session.counts(image, 1, 0, 100)
        with open_board(artifact, source, patience) as session:
            assert (session.counts(image, 1, 0, 100) == expected).all()
        assert "starting the server again" in log.read_text()
    finally:
        script.terminate()
        script.wait()
    deadline = time.monotonic() + 20
    while any(process.is_running() for process in descendants):
        assert time.monotonic() < deadline
        time.sleep(0.1)
