"""No spelling of a secret, and no half of one, is left in a text."""

import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.log import configure
from relay.redaction import CUT_CHARS_MIN, MASK, START_CHARS, Redactor

SHAPES = {
    "uuid": "6c5d0a52-6a0e-4c0b-9d1e-0f4b6a1f2c11",
    "base64": "q83vEjRWeJq83+7/3J0vEjRWeJq83vEjRWeJq+/==",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJlLWNhbmFyeQ",
    "blanks": 'two words "quoted" it\'s \\ back',
    "url": "a&b=c%d?e/f#g:h",
    "letters": "clé-sécrète-été",
}


@pytest.mark.parametrize("secret", SHAPES.values(), ids=SHAPES)
def test_every_spelling_is_masked(secret: str) -> None:
    redactor = Redactor([secret])
    once = json.dumps(secret)[1:-1]
    for spelling in (
        secret,
        once,
        json.dumps(once)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        repr(secret)[1:-1],
        " ".join(secret.split()),
    ):
        assert redactor.text(f"before {spelling} behind") == f"before {MASK} behind", spelling
        assert redactor.text(f"{spelling}{spelling}") == MASK * 2


@pytest.mark.parametrize("secret", SHAPES.values(), ids=SHAPES)
def test_what_a_cut_leaves_of_a_secret_is_masked(secret: str) -> None:
    redactor = Redactor([secret])
    for count in range(CUT_CHARS_MIN, len(secret)):
        assert redactor.text("said " + secret[:count]) == f"said {MASK}"
    for count in range(START_CHARS, len(secret)):
        assert redactor.text(f"{secret[:count]}|cut") == f"{MASK}|cut"


def test_secrets_that_come_later_are_masked_from_then_on() -> None:
    redactor = Redactor()
    assert redactor.text("fresh-token") == "fresh-token"
    redactor.add(["fresh-token"])
    redactor.add(["fresh-token", "another-one"])
    assert redactor.text("fresh-token another-one") == f"{MASK} {MASK}"


def test_short_ones_and_other_text_stay() -> None:
    redactor = Redactor(["abc", "", "secret-of-length"])
    assert redactor.text("abc, secretary, secret-of-len, secret") == "abc, secretary, ***, ***"
    assert redactor.text("redis://user:pw@host/0?token=x&a=1") == f"redis://{MASK}@host/0?token={MASK}&a=1"


def test_a_frame_without_secrets_is_the_same_bytes() -> None:
    redactor = Redactor(["canary-key"])
    frame = b'{"a":"\xff\x00"}'
    assert redactor.data(frame) is frame
    assert redactor.data(b'\xff{"k":"canary-key"}') == b'\xff{"k":"***"}'


@given(st.text(min_size=13, max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_no_text_keeps_a_secret(secret: str, before: str, behind: str) -> None:
    told = Redactor([secret]).text(before + secret + behind)
    assert secret not in told.replace(MASK, "") or secret in before + behind


def test_the_log_masks_what_is_added_while_it_runs() -> None:
    lines: list[str] = []
    redactor = Redactor(["known-at-start"])
    log = configure(redactor, form="json", write=lines.append)
    redactor.add(["came-by-REST"])
    log.warning("said known-at-start", why="came-by-REST", error=ValueError("came-by-REST"))
    assert lines and "known-at-start" not in lines[0] and "came-by-REST" not in lines[0] and MASK in lines[0]
