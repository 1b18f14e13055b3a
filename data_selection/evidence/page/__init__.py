"""The report's page: one HTML file that holds its data, styles and scripts, and loads nothing.

page.html refers to its style sheet and scripts and has one placeholder, for the data.
"""

import json
import re
from pathlib import Path
from typing import Any

PARTS = Path(__file__).parent
PLACEHOLDER = "{{data}}"


def page(content: dict[str, Any]) -> str:
    """The page as HTML. Everything in `content` reaches it as text, never as markup."""
    html = (PARTS / "page.html").read_text(encoding="utf-8")
    html = re.sub(r'<link rel="stylesheet" href="(.+?)">', lambda part: f"<style>\n{_read(part)}</style>", html)
    html = re.sub(r'<script src="(.+?)"></script>', lambda part: f"<script>\n{_read(part)}</script>", html)
    return html.replace(PLACEHOLDER, json_in_script(content))


def _read(part: re.Match[str]) -> str:
    return (PARTS / part[1]).read_text(encoding="utf-8")


def json_in_script(content: Any) -> str:
    """JSON that no HTML parser takes for markup: it cannot end the <script> that it is in."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
