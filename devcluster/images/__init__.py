"""The two images of the product, built on this machine and pushed to a registry on loopback.

Promise: `ensure_image` returns the name of an image that is really there, and does only the work
that is missing: minutes the first time, about a second after a change of code, nothing otherwise.
A name is the hash of all that goes in, so a name never changes its meaning. Trap avoided: `:latest`
and a kubelet that runs yesterday's code.
"""

from devcluster.images.build import ensure_base, ensure_dependencies, ensure_image
from devcluster.images.cli import app
from devcluster.images.reference import ImageRef
from devcluster.images.store import bytes_used, clean

__all__ = [
    "ImageRef",
    "app",
    "bytes_used",
    "clean",
    "ensure_base",
    "ensure_dependencies",
    "ensure_image",
]
