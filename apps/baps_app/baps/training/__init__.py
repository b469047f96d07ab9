"""On-site adaptation of a black box from labelled volumes."""
