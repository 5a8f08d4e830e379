"""The HTML documents: self-contained answers that load nothing from elsewhere, with a policy that says so.

The front page is put together from the files in `page/` when the application starts: markup, style, scripts in order,
and the words of each language.
"""

import base64
import hashlib
import html
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment

from pipeline.images.load import IMAGE_SUFFIXES
from serving.clinical import SUBJECT

_FOLDER = Path(__file__).parent
_PAGE = _FOLDER / "page"
# One script in one scope; what is called while it is read stands last.
SCRIPTS = ("words", "service", "queue", "pictures", "card", "markdown", "list", "subject", "saving", "intake", "main")
LANGUAGES = ("en", "de")  # the first is what stands in the document before its script runs
_ONLY_A_CAMERA = "camera=(self), display-capture=(), geolocation=(), microphone=(), usb=()"


@dataclass(frozen=True)
class HtmlPage:
    html: str
    headers: dict[str, str]


def front_page() -> HtmlPage:
    """`/`: drop images, read decisions."""
    words = {language: words_of(language) for language in LANGUAGES}
    about = {"suffixes": sorted(IMAGE_SUFFIXES), "subject": SUBJECT, "words": words}
    markup = _with_words((_PAGE / "page.html").read_text(encoding="utf-8"), words[LANGUAGES[0]])
    page = (
        Environment(autoescape=False)
        .from_string(markup)
        .render(  # of our own files, and nothing that is sent
            style=(_PAGE / "style.css").read_text(encoding="utf-8"),
            about=json.dumps(about, ensure_ascii=False).replace("<", "\\u003c"),
            script="".join((_PAGE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS),
        )
    )
    made = _with_policy(page)
    return HtmlPage(made.html, {**made.headers, "Permissions-Policy": _ONLY_A_CAMERA})


def words_of(language: str) -> dict[str, str]:
    """Each sentence of the page by its key; `error.CODE` says what a code means and what to do."""
    words: dict[str, str] = json.loads((_PAGE / f"{language}.json").read_text(encoding="utf-8"))
    return words


def _with_words(markup: str, words: dict[str, str]) -> str:
    """Elements with `data-word` hold the words of that key."""
    return re.sub(r'( data-word="([\w.]+)"[^>]*>)(?=</)', lambda at: at[1] + html.escape(words[at[2]]), markup)


def docs_page(openapi: dict[str, Any], codes: dict[str, str]) -> HtmlPage:
    """`/docs`, drawn from the OpenAPI description; Swagger UI would have to come from another host.

    `codes` of errors and what they mean each get an anchor, to which the `type` of a problem leads.
    """
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (_FOLDER / "docs.html.j2").read_text(encoding="utf-8")
    )
    return _with_policy(template.render(api=openapi, codes=codes))


def _with_policy(page: str) -> HtmlPage:
    """Allow exactly the inline script and style that are in the file, by hash (CSP Level 3, section 2.3.1).

    No text becomes markup either: a script that tried would be stopped (Trusted Types, which Chromium and Safari know).
    """
    policy = [
        "default-src 'none'",
        f"script-src {_hashes(page, 'script')}",
        f"style-src {_hashes(page, 'style')}",
        "img-src blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    return HtmlPage(page, {"Content-Security-Policy": "; ".join(policy)})


def _hashes(page: str, tag: str) -> str:
    bodies = re.findall(f'<{tag}(?: type="module")?>(.*?)</{tag}>', page, flags=re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
