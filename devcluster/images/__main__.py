"""`python -m devcluster.images`: the same commands as `python -m devcluster image`."""

from devcluster.images.cli import app

app()
