"""The page on which one chats, compares two answers, and sees one's own taste."""

import importlib.resources
import secrets

from fastapi.responses import HTMLResponse

_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def render_page(token: str) -> HTMLResponse:
    """Return the page, which loads nothing from anywhere and cannot be framed.

    Args:
        token: that its requests carry, which tells them apart from those of other pages.
    """
    nonce = secrets.token_urlsafe(16)
    text = (importlib.resources.files(__package__) / "index.html").read_text("utf-8")
    text = text.replace("{{TOKEN}}", token).replace("{{NONCE}}", nonce)
    headers = {
        "content-security-policy": _POLICY.format(nonce=nonce),
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    return HTMLResponse(text, headers=headers)
