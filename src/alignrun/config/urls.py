"""Server URLs."""


def is_base(url: str) -> bool:
    """Whether it is an http(s) URL to which a path can be appended, without a password."""
    import httpx2  # expensive to import, and few configurations name a URL

    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError):
        return False
    there = parsed.scheme in ("http", "https") and bool(parsed.host) and (parsed.port or 80) < 1 << 16
    return there and not (parsed.userinfo or {"?", "#"} & set(url))
