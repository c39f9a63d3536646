"""The main text of an HTML page. Run as a program: the page comes in, and the text goes out, by standard streams."""

from __future__ import annotations

import logging
import sys

_MEMORY_BYTES = 4 << 30


def main_text(page: str) -> str | None:
    """What a reader comes for, without navigation, comments and markup; None if there is none.

    Raises:
        Exception: whatever a parser can make of a page that was built to break it.
    """
    import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    return trafilatura.extract(page, include_comments=False) or None


def _main() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    page = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    sys.stdout.buffer.write((main_text(page) or "").encode("utf-8", "surrogatepass"))


if __name__ == "__main__":
    _main()
