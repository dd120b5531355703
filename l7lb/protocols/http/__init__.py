"""HTTP/1.1: a strict parser, the exchange of requests and answers, and what l7lb adds to them."""
