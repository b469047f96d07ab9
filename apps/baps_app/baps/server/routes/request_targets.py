"""Check that the model and the image of a request exist, before its body is read."""

from __future__ import annotations

from urllib.parse import parse_qs

from monailabel.interfaces.utils.app import app_instance
from starlette.types import Scope

from baps.server.middleware.root_path import path_below


def find_missing_target(scope: Scope) -> str:
    """Check that the model and the image of a request exist.

    The PACS is not queried: the route reports images that it does not have.

    Args:
        scope: ASGI scope of the request.

    Returns:
        A message if one does not exist, otherwise "".
    """
    method, path = scope["method"], path_below(scope)
    query = parse_qs(scope["query_string"].decode("latin-1"))
    image = query.get("image", [""])[0]
    instance = app_instance()
    has_pacs = hasattr(instance.datastore(), "forward")
    if path.startswith("/infer/"):
        model = path.removeprefix("/infer/")
        if model not in instance._infers:
            return f"There is no model {model!r}. Known ones: {', '.join(instance._infers)}."
        if query.get("session_id"):  # 3D Slicer then sends its own name of the volume as the image.
            return ""
    elif path.startswith("/proxy/") and not has_pacs:
        return "This server serves a folder of studies; there is no PACS behind it."
    elif (method, path) != ("PUT", "/datastore/label"):
        return ""
    if image and not has_pacs and image not in instance.datastore().list_images():
        return f"There is no image {image!r} in the datastore. Choose one that Next Sample offers."
    return ""
