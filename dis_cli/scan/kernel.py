"""The compiled CPU kernel."""


def why_not() -> str | None:
    """Why the kernel cannot be used; None when it can."""
    return "it was not built"
