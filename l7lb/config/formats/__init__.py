"""The file formats: each module reads text into the nodes of ``l7lb.config.document``."""
