"""l7lb: a content-aware load balancer cluster for mail, media and web."""

__version__ = "0.1.0"
