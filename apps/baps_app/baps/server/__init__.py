"""The MONAI Label app and the ASGI application around it."""
