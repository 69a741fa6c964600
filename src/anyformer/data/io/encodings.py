"""What a file that is not UTF-8 looks like, and how to convert it."""

from pathlib import Path

BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
UNDEFINED_IN_CP1252 = bytes([0x81, 0x8D, 0x8F, 0x90, 0x9D])
MAX_LATIN_SHARE = 0.25  # of bytes above 127 in a text in Latin letters


def guess_encoding(raw: bytes) -> str:
    """Return the likeliest encoding of a text that is not UTF-8; "" for an alphabet that is not Latin."""
    if raw[:2] in BYTE_ORDER_MARKS:
        return BYTE_ORDER_MARKS[raw[:2]]
    if sum(byte > 127 for byte in raw) > MAX_LATIN_SHARE * len(raw.translate(None, b" \t\r\n,;")):
        return ""
    return "latin-1" if any(byte in raw for byte in UNDEFINED_IN_CP1252) else "cp1252"


def explain_encoding(raw: bytes, path: Path | str) -> str:
    """Say what the bytes of a file look like, and the command that converts it."""
    name = Path(path).name
    if not (encoding := guess_encoding(raw)):
        return "it is in another encoding, perhaps cp1251, gb18030 or shift_jis: save it as UTF-8"
    target = f"{Path(name).stem}-utf8{Path(name).suffix}"
    return f"it looks like {encoding}: convert it: iconv -f {encoding} -t utf-8 '{name}' > '{target}'"
