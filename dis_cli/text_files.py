"""Text files that a person may have written or edited, on any system."""

import codecs
from pathlib import Path

# UTF-32 first: its mark begins with that of UTF-16
_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class NotUtf8(ValueError):
    """The content of a text file is in another encoding; the message says which, and where it shows."""


def decode_text(data: bytes) -> str:
    r"""The text in ``data``: UTF-8, with or without the byte order mark that editors on Windows write first.

    Lines end with ``\n`` in the result, whatever they end with in the file.

    Raises:
        NotUtf8: It is in another encoding.
    """
    for mark, encoding in _OTHER_ENCODINGS.items():
        if data.startswith(mark):
            raise NotUtf8(f"line 1: not UTF-8 but {encoding}, as PowerShell's `>` and Notepad's \"Unicode\" write it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise NotUtf8(f"line {line}: not UTF-8") from error
    if "\0" in text[:100]:
        raise NotUtf8("line 1: holds zero bytes, as UTF-16 without a byte order mark does")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path) -> str:
    """The text in a file; see ``decode_text``.

    Raises:
        OSError: It cannot be read.
        NotUtf8: It is in another encoding.
    """
    return decode_text(path.read_bytes())
