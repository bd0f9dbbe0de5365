"""Makes text from files safe to show.

Names of labels, channels, cases, layers and files come from files that strangers made, and go to
terminals, Markdown and HTML.
"""

import re
import unicodedata

_OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Joiners, which the spelling of Persian and Hindi needs, and marks that are drawn
_SHOWN = frozenset("\u200c\u200d\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u08e2")
_BREAKS = frozenset("\t\n\r\v\f\x85\u2028\u2029")


def visible(text: str, keep: str = "") -> str:
    """`text` on one line, with what a terminal or a browser would obey instead of show (escape
    sequences, control and formatting characters, overrides of the direction of reading, halves of
    characters) spelt out: `\\x1b`, `\\u202e`.

    Args:
        keep: characters that stay as they are; `"\\n\\t"` in what a program laid out in lines.
    """
    return re.sub(r"[^ -~]", lambda found: found[0] if found[0] in keep else _shown(found[0]), text)


def _shown(character: str) -> str:
    if character in _BREAKS:
        return " "
    if unicodedata.category(character) not in _OBEYED or character in _SHOWN:
        return character
    return character.encode("unicode_escape").decode("ascii")


_MARKUP = re.compile(
    r"[\\`*\[\]~|#!$]"  # emphasis, code, links, pictures, tables, headings, formulae
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis; inside of a word it is a plain character
    r"|:(?=\S)"  # the scheme of an address; `:name:` is a picture to some readers
    r"|(?<=www)\."
    r"|[&<>]|(?<!\S)@",  # HTML, people
    re.IGNORECASE,
)
_ENTITIES = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "@": "&#64;",
}  # not every reader takes a backslash before these


def markdown(text: str) -> str:
    """`text` for Markdown, with all markup in it escaped: no HTML, no link, no picture, no new
    line.
    """
    return _MARKUP.sub(
        lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), visible(text).strip()
    )


def code(text: str) -> str:
    """`text` as code in Markdown, for commands to be copied."""
    return f"`{visible(text).replace('`', '´')}`"
