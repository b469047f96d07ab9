"""What viewers and the command line send, checked and read into one form."""
