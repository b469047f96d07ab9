"""Create the application that is served: MONAI Label's routes behind a login, with limits and fixes.

* Users sign in where users or an OpenID provider are configured; otherwise only requests from this machine are served.
* Inference, Next Sample, label upload and training run in threads, so that /info/ and other users are served
  meanwhile. The tasks are thread-safe, and the black box has a lock.
* Bodies are read to disk within limits (``middleware/bodies.py``), and requests wait in fair queues by group and user
  (``middleware/quotas.py``).
* Images, models and sessions that a request names must exist. No path is built from a request, and ``params`` cannot
  override image or model.
* An error of the client is a 4xx response with a sentence, not a 500.
* Only what the viewers request is served (``access_policy.py``): nothing deletes, replaces an image or weights, or
  unpacks an archive. Pages of other origins are refused unless the settings name them, and the proxy reaches DICOMweb
  only.
* A training stops when the server stops.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from monailabel.endpoints import datastore as monailabel_datastore
from monailabel.endpoints import info as monailabel_info
from monailabel.interfaces.exception import MONAILabelException
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from baps.errors import BapsError
from baps.server.auth.authenticator import Authenticator
from baps.server.auth.guard import Guard, Rules
from baps.server.auth.request_audit import Audit
from baps.server.error_handlers import (
    handle_domain_error,
    handle_http_error,
    handle_os_error,
    handle_validation_error,
    refuse,
)
from baps.server.middleware.bodies import Bodies, BoundedRoute, CloseUnread, limit_memory_of_forms
from baps.server.middleware.quotas import THREADS, Quotas
from baps.server.middleware.root_path import RootPath
from baps.server.middleware.security_headers import SecurityHeaders
from baps.server.monai_label import TITLE, MonaiLabelState, monailabel_routes
from baps.server.nninteractive.routes import NnInteractive
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
from baps.server.routes.exports import label_for_radiotherapy
from baps.server.routes.infer import cancel, progress, run_infer
from baps.server.routes.login import Login
from baps.server.routes.ohif import configure_ohif, ohif_file
from baps.server.routes.pages import docs_page, favicon
from baps.server.routes.request_targets import find_missing_target
from baps.server.routes.sessions import close_session, open_session, read_session
from baps.server.routes.train import next_sample, start_all_training, start_training
from baps.server.routes.without_paths import stop_training, training_status, without_folders
from baps.server.web.routes import ROUTES
from baps.server.web.state import WebState
from baps.site.app_folder import app_folder
from baps.site.audit import AuditFile
from baps.site.settings import Settings, check_settings

if TYPE_CHECKING:
    from baps.server.app import BapsApp

_FILE_THREADS = 16
"""Threads that read the files of responses in small parts, in addition to those of the quotas."""

Route = tuple[str, str, Callable[..., Any]]
"""Methods, separated by spaces; path; endpoint."""


class Application(FastAPI):
    """A FastAPI application for one MONAI Label app.

    Args:
        monai_label: MONAI Label's state for the app.
        lifespan: Context that starts before the first request and ends after the last.
    """

    def __init__(
        self, monai_label: MonaiLabelState, lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]
    ) -> None:
        super().__init__(title=TITLE, openapi_url="/openapi.json", docs_url=None, redoc_url=None, lifespan=lifespan)
        self._monai_label = monai_label

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._monai_label.select()
        await super().__call__(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """Wrap Starlette's stack too: its outermost part sends error responses, which need the same headers."""
        return CloseUnread(SecurityHeaders(super().build_middleware_stack()))


def create_app(
    settings: Settings,
    studies: str | Path,
    app_dir: Path | None = None,
    root_path: str = "",
    on_start: Callable[[BapsApp], object] = lambda _: None,
) -> FastAPI:
    """Create the application that serves a site.

    The app, with its datastore and models, is loaded when the application starts, not here.

    Args:
        settings: Settings of the site.
        studies: Folder of images, or the DICOMweb address of a PACS.
        app_dir: Folder of the MONAI Label app, which holds ``main.py``, or None for that of this installation.
        root_path: Path below which a proxy serves the application, such as ``/baps``; "" for that of the settings.
        on_start: Called with the app when it is loaded, before the first request.

    Returns:
        The application, for uvicorn or FastAPI's ``TestClient``.

    Raises:
        BapsError: If a setting cannot be used, or the audit file cannot be written.
    """
    check_settings(settings)
    authenticator = Authenticator.from_settings(settings)
    audit = Audit(AuditFile(settings.audit_file, settings.audit_max_mb, settings.audit_keep))
    audit.file.check()
    monai_label = MonaiLabelState(settings, str(studies), app_dir or app_folder())
    nninteractive = NnInteractive(settings, audit.file)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS + _FILE_THREADS
        app = monai_label.start()
        application.state.web = WebState(app, authenticator)
        on_start(app)
        try:
            yield
        finally:
            nninteractive.close()
            monai_label.stop(app)
            audit.close()

    limit_memory_of_forms()
    application = Application(monai_label, lifespan)
    routes = [*_routes(), *ROUTES, *_login_routes(Login(authenticator)), ("GET", "/audit", audit.read)]
    _add_routes(application, [*routes, *nninteractive.routes()])
    _add_middleware(application, settings, authenticator, audit, root_path or settings.root_path)
    for kind in (BapsError, MONAILabelException):
        application.add_exception_handler(kind, handle_domain_error)
    application.add_exception_handler(RequestValidationError, handle_validation_error)
    application.add_exception_handler(HTTPException, handle_http_error)
    application.add_exception_handler(OSError, handle_os_error)
    return application


def _routes() -> list[Route]:
    """Return the routes of this project. If two match a request, the first is used."""
    return [
        ("GET", "/docs", docs_page),
        ("GET", "/favicon.ico", favicon),
        ("POST", "/infer/{model}", run_infer),
        ("POST", "/activelearning/{strategy}", next_sample),
        ("PUT", "/datastore/label", save_label),
        ("PUT", "/datastore/image", add_image),
        ("PUT", "/datastore/", add_image),
        ("GET", "/datastore/image", image_for_viewer),
        ("HEAD", "/datastore/image", check_image),
        ("GET", "/datastore/label", label_for_viewer),
        ("HEAD", "/datastore/label", label_for_viewer),
        ("GET", "/datastore/label/rtstruct", label_for_radiotherapy),
        ("GET", "/datastore/dataset", all_labelled),
        ("PUT", "/session/", without_folders(open_session)),
        ("GET", "/session/{session_id}", without_folders(read_session)),
        ("DELETE", "/session/{session_id}", without_folders(close_session)),
        # MONAI Label runs these in the event loop, where reading a file or a PACS delays every other request.
        ("GET", "/info/", monailabel_info.app_info),
        ("GET", "/datastore/", all_images),
        ("GET", "/datastore/image/info", without_folders(monailabel_datastore.get_image_info)),
        ("GET", "/datastore/label/info", monailabel_datastore.get_label_info),
        ("GET", "/ohif/app-config.js", configure_ohif),
        ("GET", "/ohif/{path:path}", ohif_file),
        ("GET", "/progress/", progress),
        ("DELETE", "/progress/{job}", cancel),
        ("POST", "/train/{model}", start_training),
        ("POST", "/train/", start_all_training),
        ("GET", "/train/", training_status),
        ("DELETE", "/train/", stop_training),
        ("GET", "/proxy/dicom/{path:path}", forward_to_pacs),
        ("POST", "/proxy/dicom/{path:path}", forward_to_pacs),
    ]


def _login_routes(login: Login) -> list[Route]:
    return [
        ("GET", "/auth/", login.is_needed),
        ("POST", "/auth/token", login.token),
        ("GET", "/auth/token/valid", login.is_valid),
        ("GET", "/login", login.page),
        ("POST", "/login", login.sign_in),
        ("GET", "/login/openid", login.to_provider),
        ("GET", "/login/openid/return", login.from_provider),
        ("GET", "/logout", login.before_sign_out),
        ("POST", "/logout", login.sign_out),
    ]


def _add_routes(application: FastAPI, routes: list[Route]) -> None:
    """Add this project's routes, and those of MONAI Label that none of them replaces."""
    replaced = set()
    for methods, path, endpoint in routes:
        application.router.add_api_route(
            path,
            endpoint,
            methods=[methods],
            response_model=None,
            summary=(endpoint.__doc__ or "").partition("\n")[0].rstrip("."),
            route_class_override=BoundedRoute,
        )
        replaced.add((methods, path))
    for route in monailabel_routes():
        if not {(method, route.path) for method in route.methods or ()} & replaced:
            application.router.routes.append(route)


def _add_middleware(
    application: FastAPI, settings: Settings, authenticator: Authenticator, audit: Audit, root_path: str
) -> None:
    """Add the middleware, the innermost first."""
    max_bytes = settings.max_upload_mb << 20
    application.add_middleware(Quotas, users=authenticator.required)
    application.add_middleware(Bodies, max_bytes=max_bytes, find_missing=find_missing_target)
    application.add_middleware(Guard, rules=Rules(authenticator, audit, settings.cors_origins, max_bytes, refuse))
    if settings.cors_origins:  # Before the guard: preflight requests have no token. Cookies are ignored here.
        application.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Server-Timing", "X-BAPS-Notes"],
        )
    application.add_middleware(RootPath, root=root_path)
