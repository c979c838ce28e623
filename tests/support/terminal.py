"""What a program wrote to a pseudo-terminal."""

import os


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
