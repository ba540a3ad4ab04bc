"""What every page must be, read as a browser reads it."""

import base64
import hashlib
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import alignrun

SCRIPT = (Path(alignrun.__file__).parent / "reports/templates/script.js").read_text(encoding="utf-8")
VOID = {"meta", "img", "br", "hr", "link", "input"}
ADDRESSES = {"src", "href", "xlink:href", "action", "data", "poster", "srcset"}


class Page(HTMLParser):
    """A page taken apart; fails on wrong nesting."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        """Each piece of text and the tag that it stands in."""
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def text(self) -> str:
        """What a reader sees, in one line."""
        return " ".join(" ".join(text for tag, text in self.texts if tag not in ("style", "title", "script")).split())

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]

    def rows(self, name: str = "") -> list[list[str]]:
        """The cells of all tables of a class, row by row."""
        found = []
        opening = f'<table class="{name}[^>]*>' if name else "<table[^>]*>"
        for table in re.findall(f"{opening}(.*?)</table>", self.html, re.S):
            for row in re.findall(r"<tr>(.*?)</tr>", table, re.S):
                cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)
                found.append([" ".join(unescape(re.sub(r"<[^>]*>", " ", cell)).split()) for cell in cells])
        return found


def check(html: str) -> Page:
    """A page that is well-formed, valid UTF-8, self-contained, and runs alignrun's own script and no other."""
    page = Page(html)
    assert html.startswith("<!doctype html>")
    html.encode("utf-8")
    assert not [code for code in map(ord, html) if code < 32 and code not in (10, 9)]
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"iframe", "object", "embed", "link", "base", "form", "foreignobject", "animate"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ADDRESSES & attributes.keys():
            value = attributes[name]
            assert not re.match(r"\s*([a-z][a-z0-9+.-]*:|//)", value, re.I) or value.startswith(
                "data:image/svg+xml;"
            ), value
    assert not re.search(r"@import|url\((?!#)", html), "a style loads something"
    ids = page.attributes("id")
    assert len(ids) == len(set(ids)), "ids collide"
    drawn = [value for _, found in page.tags for name, value in found.items() if name in ("style", "clip-path", "fill")]
    used = re.findall(r"url\(#([^)]+)\)", " ".join(drawn))
    used += [found["href"][1:] for tag, found in page.tags if tag == "use"]
    assert set(used) <= set(ids)
    scripts = re.findall(r"<script(.*?)>(.*?)</script", html, re.S | re.I)
    assert scripts == [("", SCRIPT)], "the page's own script, whole and once"
    assert [tag for tag, _ in page.tags].count("script") == len(re.findall("<script", html, re.I)) == 1
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"#0101\d\d", " ".join(drawn)), "a stand-in colour was left"
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
    return page
