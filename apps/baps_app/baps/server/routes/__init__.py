"""What the server answers, a file for each kind of request. Nothing here knows the method; nothing of it knows this."""
