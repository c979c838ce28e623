"""What a program wrote to a pseudo-terminal."""

import os
import pty
import subprocess
import sys


def in_terminal(*arguments: str, columns: int) -> str:
    """What `dis` writes, a few lines of text, to a terminal of so many columns."""
    terminal, other_end = pty.openpty()
    command = [sys.executable, "-m", "dis_cli", *arguments]
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm"}
    subprocess.run(command, stdout=other_end, stderr=other_end, env=environment, check=True)
    os.close(other_end)
    return read_all(terminal).decode().replace("\r\n", "\n")


def read_all(terminal: int) -> bytes:
    """All that arrives until the other end is closed; this end is closed then too."""
    received = b""
    # Linux reports the other end's closing as an error, macOS as an empty read.
    while True:
        try:
            data = os.read(terminal, 4096)
        except OSError:
            break
        if not data:
            break
        received += data
    os.close(terminal)
    return received
