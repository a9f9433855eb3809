"""What watches the product: alerts and boards as code, over the metrics that the registries name.

Promise: the files that the chart ships are those that this code gives; `make lint` fails on drift.
Nothing here runs in a cluster.
"""
