"""Equations as MathML, which browsers draw without JavaScript and without a network."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
"""What the Markdown extension pymdownx.arithmatex makes of $…$ and $$…$$."""


def with_mathml(page: str) -> str:
    """An HTML page whose LaTeX is replaced by MathML."""
    page = DISPLAY.sub(lambda found: f'<div class="equation" tabindex="0">{_mathml(found[1], "block")}</div>', page)
    return INLINE.sub(lambda found: _mathml(found[1], "inline"), page)


def _mathml(latex: str, display: str) -> str:
    return convert(html.unescape(latex).strip(), display=display)
