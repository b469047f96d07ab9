"""The server for real use: MONAI Label's own application with its faults mended.

``python .../baps/server/launch.py start_server --app apps/baps_app --uvicorn_app baps.server.asgi:app ...`` (what
``baps serve`` runs).

* Who asks must be known, where users or an OpenID provider are named; else only this machine is answered.
* Inference, Next Sample, label upload and training run in threads, so that /info/ and other users are answered
  meanwhile. The tasks are thread-safe; the black box locks itself.
* Bodies are read to disk within bounds (``middleware/bodies.py``), requests wait in fair queues by kind and user
  (``middleware/quotas.py``), and connections that do nothing are closed (``middleware/connections.py``).
* What a request names must exist: no path is built from a request, and ``params`` cannot override image or model.
* A caller's fault is a 4xx with a sentence, not a 500.
* Only what the viewers ask for is served (``auth/access_policy.py``): nothing deletes, replaces an image or weights,
  or unpacks an archive. Other origins get no leave unless they are named, and the proxy reaches DICOMweb alone.
* The training process ends with the server.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

os.environ["BAPS_SERVING"] = "protected"

from anyio import to_thread
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from monailabel.config import settings as _host_settings
from monailabel.endpoints import datastore as host_datastore
from monailabel.endpoints import info as host_info
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.utils import stop_background_task
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from baps.errors import BapsError
from baps.server.auth.authenticator import Authenticator
from baps.server.auth.guard import Guard, Rules
from baps.server.auth.request_audit import Audit
from baps.server.error_handlers import handle_domain_error, handle_http_error, handle_os_error, handle_validation_error
from baps.server.host import app as _host
from baps.server.listening import parse_bind_host, parse_root_path_option, say_what_a_proxy_does
from baps.server.middleware.bodies import Bodies, BoundedRoute, CloseUnread
from baps.server.middleware.connections import bound_connections
from baps.server.middleware.quotas import THREADS, Quotas
from baps.server.middleware.root_path import RootPath
from baps.server.middleware.security_headers import SecurityHeaders
from baps.server.routes.datastore import (
    add_image,
    all_images,
    all_labelled,
    check_image,
    image_for_viewer,
    label_for_viewer,
    save_label,
)
from baps.server.routes.dicomweb_proxy import forward_to_pacs
from baps.server.routes.existing import missing
from baps.server.routes.exports import label_for_radiotherapy
from baps.server.routes.infer import cancel, progress, run_infer
from baps.server.routes.login import Login
from baps.server.routes.ohif import configure_ohif, ohif_file
from baps.server.routes.pages import docs_page, start_page
from baps.server.routes.sessions import close_session, open_session, read_session
from baps.server.routes.train import next_sample, start_all_training, start_training
from baps.server.routes.without_paths import stop_training, training_status, without_folders
from baps.server.startup_message import announce, server_lines
from baps.site.audit import AuditFile
from baps.site.server_command import check_listening
from baps.site.settings import check_settings, parse_root_path, read_settings

os.umask(0o077)  # As launch.py does, also where MONAI Label's own command starts it.
app: FastAPI = _host

_SPARE_THREADS = 16
"""Threads beside those of the quotas, which read the files of answers in small parts."""

try:
    _site = read_settings(_host_settings.MONAI_LABEL_APP_CONF)
    check_settings(_site)
    check_listening(parse_bind_host(sys.argv), _site.closed)
    _root = parse_root_path(parse_root_path_option(sys.argv)) or _site.root_path
    _signing_in = Authenticator.of(_site)
    _audit = Audit(AuditFile(_site.audit_file, _site.audit_max_mb, _site.audit_keep))
    _audit.file.check()
    say_what_a_proxy_does(parse_bind_host(sys.argv))
except BapsError as error:
    raise SystemExit(str(error)) from None


@asynccontextmanager
async def _lifespan(application: FastAPI) -> AsyncIterator[None]:
    to_thread.current_default_thread_limiter().total_tokens = THREADS + _SPARE_THREADS
    async with _host_lifespan(application):
        if "start_server" in sys.argv:
            where = parse_bind_host(sys.argv), _host_settings.MONAI_LABEL_SERVER_PORT
            announce(
                *where, "/login" if _signing_in.needed else "/", lambda: server_lines(*where, _root, app_instance())
            )
        yield
        stop_background_task("train")
    _audit.end()


def _replace(path: str, method: str, endpoint: Any) -> None:
    """Put a route of ours before the host's."""
    summary = (endpoint.__doc__ or "").partition("\n")[0]
    app.router.add_api_route(
        path, endpoint, methods=[method], response_model=None, summary=summary, route_class_override=BoundedRoute
    )
    app.router.routes.insert(0, app.router.routes.pop())


# The host's files as they are, OHIF's among them, which load scripts and fonts from other hosts: see routes/ohif.py.
app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") != "/static"]
bound_connections()
_host_lifespan = app.router.lifespan_context
app.router.lifespan_context = _lifespan
_replace("/", "GET", start_page)
_replace("/docs", "GET", docs_page)
_replace("/infer/{model}", "POST", run_infer)
_replace("/activelearning/{strategy}", "POST", next_sample)
_replace("/datastore/label", "PUT", save_label)
_replace("/datastore/image", "PUT", add_image)
_replace("/datastore/", "PUT", add_image)
_replace("/datastore/image", "GET", image_for_viewer)
_replace("/datastore/image", "HEAD", check_image)
for method in ("GET", "HEAD"):
    _replace("/datastore/label", method, label_for_viewer)
_replace("/datastore/label/rtstruct", "GET", label_for_radiotherapy)
_replace("/datastore/dataset", "GET", all_labelled)
_replace("/session/", "PUT", without_folders(open_session))
_replace("/session/{session_id}", "GET", without_folders(read_session))
_replace("/session/{session_id}", "DELETE", without_folders(close_session))
# The host's own hold up everybody: they read files, or ask the PACS, where all connections are served.
_replace("/info/", "GET", host_info.app_info)
_replace("/datastore/", "GET", all_images)
_replace("/datastore/image/info", "GET", without_folders(host_datastore.get_image_info))
_replace("/datastore/label/info", "GET", host_datastore.get_label_info)
_replace("/ohif/{path:path}", "GET", ohif_file)
_replace("/ohif/app-config.js", "GET", configure_ohif)
_replace("/progress/", "GET", progress)
_replace("/progress/{job}", "DELETE", cancel)
_replace("/train/{model}", "POST", start_training)
_replace("/train/", "POST", start_all_training)
_replace("/train/", "GET", training_status)
_replace("/train/", "DELETE", stop_training)
for method in ("GET", "POST"):
    _replace("/proxy/dicom/{path:path}", method, forward_to_pacs)
_replace("/audit", "GET", _audit.read)
_login = Login(_signing_in)
_replace("/auth/", "GET", _login.is_needed)
_replace("/auth/token", "POST", _login.token)
_replace("/auth/token/valid", "GET", _login.is_valid)
_replace("/login", "GET", _login.page)
_replace("/login", "POST", _login.sign_in)
_replace("/login/openid", "GET", _login.to_provider)
_replace("/login/openid/return", "GET", _login.from_provider)
_replace("/logout", "GET", _login.before_sign_out)
_replace("/logout", "POST", _login.sign_out)
app.user_middleware.clear()  # The host's only middleware lets every origin in, with credentials.
_most_bytes = _site.max_upload_mb << 20
app.add_middleware(Quotas, users=_signing_in.needed)
app.add_middleware(Bodies, most_bytes=_most_bytes, missing=missing)
app.add_middleware(Guard, rules=Rules(_signing_in, _audit, _site.cors_origins, _most_bytes))
if _site.cors_origins:  # Outermost: browsers ask for leave without a token. Cookies never count for other origins.
    app.add_middleware(
        CORSMiddleware,
        allow_origins=_site.cors_origins,
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=["Authorization", "Content-Type"],
        expose_headers=["Server-Timing", "X-BAPS-Notes"],
    )
app.add_middleware(RootPath, root=_root)
_build_middlewares = app.build_middleware_stack
# Outside all of it: the framework answers what fails itself.
app.build_middleware_stack = lambda: CloseUnread(SecurityHeaders(_build_middlewares()))  # type: ignore[method-assign]
for kind in (BapsError, MONAILabelException):
    app.add_exception_handler(kind, handle_domain_error)
app.add_exception_handler(RequestValidationError, handle_validation_error)
app.add_exception_handler(HTTPException, handle_http_error)
app.add_exception_handler(OSError, handle_os_error)
