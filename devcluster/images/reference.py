"""The name of an image."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageRef:
    """An image by registry, name and tag; without a registry it is in the build store only."""

    registry: str | None
    name: str
    tag: str

    def __str__(self) -> str:
        return f"{self.repository}:{self.tag}"

    @property
    def repository(self) -> str:
        """All but the tag: what a chart calls `image.repository`."""
        return f"{self.registry}/{self.name}" if self.registry else self.name

    @property
    def local(self) -> str:
        """The name in a build store, which knows no registry."""
        return f"{self.name}:{self.tag}"
