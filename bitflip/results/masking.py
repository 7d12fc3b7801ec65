"""Secrets taken out of texts, however a server or a library that quotes them escaped them."""

from __future__ import annotations

import html.entities
import re
from collections.abc import Iterable

MASK = "***"
BACKSLASH = r"(?:\\|(?i:%(?:25)*5c)|&(?:amp;)*(?:#0*92|#x0*5[cC]|bsol);)"  # which may itself be escaped
LETTERS = {"\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}  # behind a backslash


def without(text: str, secrets: Iterable[str]) -> str:
    """A text with a mask in place of each secret: as it is, or escaped for a URL, JSON, HTML or Python, also twice.

    >>> without("GET /?token=a%2Fb%3D, &quot;a&#x2F;b=&quot;", ["a/b="])
    'GET /?token=***, &quot;***&quot;'
    """
    for secret in sorted(
        {form for one in secrets for form in (one, one.strip()) if form.strip()}, key=len, reverse=True
    ):
        text = re.sub("".join(map(_forms, secret)), MASK, text)
    return text


def _forms(character: str) -> str:
    """A pattern for a character and all that may stand for it; longer ones come first."""
    code, utf16 = ord(character), character.encode("utf-16-be", errors="surrogatepass")
    url = "".join(f"%(?:25)*{byte:02x}" for byte in character.encode(errors="surrogatepass"))
    number = f"#0*{code};?|#x0*{code:x};?"
    names = [re.escape(name) for name, value in html.entities.html5.items() if value == character]
    named = f"|(?-i:{'|'.join(sorted(names, key=len, reverse=True))})" if names else ""  # the case of a name counts
    plain = [f"(?i:&(?:amp;)*(?:{number}{named}))", f"(?i:{url})", re.escape(character)]
    plain += [r"\+"] if character == " " else []
    units = [f"u{utf16[i]:02x}{utf16[i + 1]:02x}" for i in range(0, len(utf16), 2)]
    spelled = [f"(?i:{f'{BACKSLASH}+'.join(units)})", f"(?i:U{code:08x})"]
    spelled += [f"(?i:x{code:02x})"] if code < 256 else []
    spelled += [LETTERS[character]] if character in LETTERS else []
    return f"(?:{BACKSLASH}+(?:{'|'.join(spelled)})|{BACKSLASH}*(?:{'|'.join(plain)}))"
