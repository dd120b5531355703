"""`l7lb demo`, and what the examples run: real servers, a real node and clients, all on one machine."""
