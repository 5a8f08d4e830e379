"""The two HTML documents: self-contained files that load nothing from elsewhere, with a policy that says so."""

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class HtmlPage:
    html: str
    headers: dict[str, str]


def front_page() -> HtmlPage:
    """`/`: drop images, read decisions."""
    return _with_policy((_FOLDER / "page.html").read_text(encoding="utf-8"))


def docs_page(openapi: dict[str, Any], codes: dict[str, str]) -> HtmlPage:
    """`/docs`, drawn from the OpenAPI description; Swagger UI would have to come from another host.

    `codes` of errors and what they mean each get an anchor, to which the `type` of a problem leads.
    """
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (_FOLDER / "docs.html.j2").read_text(encoding="utf-8")
    )
    return _with_policy(template.render(api=openapi, codes=codes))


def _with_policy(html: str) -> HtmlPage:
    """Allow exactly the inline script and style that are in the file, by hash (CSP Level 3, section 2.3.1)."""
    policy = [
        "default-src 'none'",
        f"script-src {_hashes(html, 'script')}",
        f"style-src {_hashes(html, 'style')}",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return HtmlPage(html, {"Content-Security-Policy": "; ".join(policy)})


def _hashes(html: str, tag: str) -> str:
    bodies = re.findall(f"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
