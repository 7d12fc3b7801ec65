"""A secret is taken out of a text in whatever way it is escaped there."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitflip.results import masking, tracking

Escape = Callable[[str], str]


def json_escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


ESCAPES: dict[str, Escape] = {
    "as it is": str,
    "a URL": lambda text: quote(text, safe=""),
    "a path": quote,
    "a query": quote_plus,
    "a URL in small letters": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "a URL in a URL": lambda text: quote(quote(text, safe=""), safe=""),
    "JSON": json_escaped,
    "JSON in JSON": lambda text: json_escaped(json_escaped(text)),
    "JSON that keeps letters": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "JSON of PHP": lambda text: json_escaped(text).replace("/", r"\/"),
    "JSON of numbers": lambda text: "".join(f"\\u{ord(c):04X}" if ord(c) < 0xFFFF else c for c in text),
    "JSON safe in HTML": lambda text: json_escaped(text).replace("<", r"\u003c").replace("&", r"\u0026"),
    "HTML": html.escape,
    "HTML in HTML": lambda text: html.escape(html.escape(text)),
    "HTML of decimals": lambda text: "".join(f"&#{ord(c)};" for c in text),
    "HTML of hexadecimals": lambda text: "".join(f"&#x{ord(c):04X};" for c in text),
    "HTML of names": lambda text: text.translate({43: "&plus;", 47: "&sol;", 61: "&equals;", 38: "&AMP"}),
    "JSON in HTML": lambda text: html.escape(json_escaped(text)),
    "Python": lambda text: repr(text)[1:-1],
    "bytes of Python": lambda text: repr(text.encode("latin-1"))[2:-1],
}
SECRETS = ["abc/DEF+123==", "a&b<c>\"d'e", "it's 1 % of\\it", "grüße/🙂", "tok"]


@pytest.mark.parametrize("escape", [pytest.param(escape, id=name) for name, escape in ESCAPES.items()])
@pytest.mark.parametrize("secret", SECRETS)
def test_no_escape_hides_a_secret(secret: str, escape: Escape) -> None:
    if escape is ESCAPES["bytes of Python"] and not secret.isascii():
        secret = "a\xe9=\x07"
    found = masking.without(f"GET /?x=1 {escape(secret)}, and {escape(secret)}.", [secret])
    assert found == "GET /?x=1 ***, and ***."


WITHIN = "\N{BROKEN BAR}"
texts = st.text(st.characters(codec="utf-8", exclude_characters=WITHIN), min_size=1).filter(str.strip)


@given(secret=texts, name=st.sampled_from(sorted(ESCAPES.keys() - {"bytes of Python"})))
def test_whatever_the_secret_is(secret: str, name: str) -> None:
    assert masking.without(f"{WITHIN}{ESCAPES[name](secret)}{WITHIN}", [secret]) == f"{WITHIN}***{WITHIN}"


def test_nothing_else_is_masked() -> None:
    text = "a/DEF+123== &amp; %2F \\u002f abc/DEF-123=="
    assert masking.without(text, ["abc/DEF+123=="]) == text
    assert masking.without(text, []) == text
    assert masking.without(text, ["", " "]) == text


@pytest.mark.parametrize("name", ["a URL", "JSON of PHP", "HTML of hexadecimals"])
def test_the_token_of_the_environment_is_taken_out_of_what_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESSL_ACCESS_TOKEN", "abc/DEF+123==")
    error = RuntimeError(f"not known: {ESCAPES[name]('abc/DEF+123==')}")
    assert tracking._describe(error) == "RuntimeError: not known: ***"
