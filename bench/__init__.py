"""Measurements of a mount against plain requests to the same server. Never imported by the product."""
