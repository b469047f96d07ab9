"""Check that what a request names exists, before its body is read."""

from __future__ import annotations

from urllib.parse import parse_qs

from monailabel.interfaces.utils.app import app_instance
from starlette.types import Scope

from baps.server.middleware.root_path import path_below


def find_missing_target(scope: Scope) -> str:
    """Return a sentence on what a request names that does not exist, or "".

    The PACS is not queried: the route reports images that it does not have.

    Args:
        scope: ASGI scope of the request.
    """
    method, path = scope["method"], path_below(scope)
    query = parse_qs(scope["query_string"].decode("latin-1"))
    image = query.get("image", [""])[0]
    instance = app_instance()
    of_pacs = hasattr(instance.datastore(), "forward")
    if path.startswith("/infer/"):
        model = path.removeprefix("/infer/")
        if model not in instance._infers:
            return f"There is no model {model!r}. Known ones: {', '.join(instance._infers)}."
        if query.get("session_id"):  # Beside it, 3D Slicer names the volume as it does itself.
            return ""
    elif path.startswith("/proxy/") and not of_pacs:
        return "This server serves a folder of studies; there is no PACS behind it."
    elif (method, path) != ("PUT", "/datastore/label"):
        return ""
    if image and not of_pacs and image not in instance.datastore().list_images():
        return f"There is no image {image!r} in the datastore. Choose one that Next Sample offers."
    return ""
