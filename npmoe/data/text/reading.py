"""Text out of files that anyone may have written, or an error that says which file is no text and what to do."""

import hashlib
from pathlib import Path

__all__ = ["fingerprint", "read_text"]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte-order mark, its lines ended by a newline each.

    Raises
    ------
    ValueError : for a file that is empty or no UTF-8 text: says where, and what to do.
    """
    content = path.read_bytes()
    if (at := content.find(b"\0")) >= 0:
        raise ValueError(
            f"{path}: expected UTF-8 text; got a zero byte at {at}, as binary and UTF-16 files have: "
            "save it as plain text in UTF-8"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-8 text; got the byte 0x{error.object[error.start]:02x} at {error.start}, "
            "which is not UTF-8: save it as UTF-8, for example with `iconv -f latin1 -t utf-8`"
        ) from error
    if not text.strip():
        got = "only white space" if text else "an empty file"
        raise ValueError(f"{path}: expected UTF-8 text; got {got}: give a file with text in it")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def fingerprint(path: Path) -> str:
    """A file by its name and the beginning of its SHA-256, so that a result says which file it was."""
    return f"{path.name} (SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]})"
