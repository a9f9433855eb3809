"""The options of a storage library, as a Secret holds them."""

from pathlib import Path


def options_in(directory: Path) -> dict[str, str]:
    """The options of fsspec in a mounted Secret: a file per option, its name the option's. Raises
    OSError."""
    # A mounted Secret also holds ..data and ..<date>, the kubelet's own links.
    keys = [key for key in sorted(directory.iterdir()) if not key.name.startswith(".")]
    return {key.name: key.read_text().strip() for key in keys}
