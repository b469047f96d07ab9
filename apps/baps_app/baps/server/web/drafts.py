"""The pages about drafts: masks that nnInteractive's clients left behind, which a person saves as labels or deletes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlencode

from fastapi import Form, HTTPException, Request
from fastapi.responses import Response

from baps.annotations.drafts import DamagedDraft, Draft, DraftTakenError, MissingDraftError
from baps.errors import BapsError
from baps.server.labels.drafts import Search, confirm_draft
from baps.server.labels.save_labels import save_mask
from baps.server.request_context import context_of
from baps.server.request_names import checked_name
from baps.server.web.label_table import FINAL
from baps.server.web.labels import note_change
from baps.server.web.layout import principal_of, redirect, render, require_own_page
from baps.server.web.state import state_of
from baps.site.roles import Role

_SEARCH_SECONDS = 3.0
"""Time after which the page says how far the search for an image is, and asks again."""


def drafts_page(request: Request) -> Response:
    """List the drafts that the user may confirm."""
    drafts = [draft for draft in state_of(request).drafts.all() if _may_see(request, draft)]
    return render(request, "web/drafts.html", drafts=drafts)


def draft_page(request: Request, draft: str = "", image: str = "") -> Response:
    """Show a draft, and search for its image.

    Raises:
        NotFoundError: If there is no such draft.
    """
    shown = _draft(request, draft)
    query = urlencode({"draft": shown.name, **({"image": image} if image else {})})
    return render(request, "web/draft.html", draft=shown, image=image, query=query)


def match(request: Request, draft: str = "", image: str = "") -> Response:
    """Show the image of a draft, with pictures, or say why it is not certain.

    Raises:
        NotFoundError: If there is no such draft.
    """
    state, shown = state_of(request), _draft(request, draft)
    search, problem, difference = Search((), True), "", None
    if not image:
        search = state.draft_images.search(shown, _SEARCH_SECONDS)
        image = search.images[0] if search.is_complete and len(search.images) == 1 else ""
    context_of(request).image = image
    try:
        if image:
            difference = state.draft_pictures.look(shown, image)
        elif search.is_complete and not search.images:
            state.draft_images.find(shown, state.drafts.mask(shown.name))  # Says why.
    except BapsError as error:
        problem = str(error)
    return render(
        request,
        "web/draft-match.html",
        draft=shown,
        image=image,
        search=search,
        problem=problem,
        difference=difference,
        query=urlencode({"draft": shown.name, "image": image}),
    )


def picture(request: Request, draft: str = "", image: str = "", index: int = 0) -> Response:
    """Send a picture of a draft on its image. It is made now and is not stored.

    Raises:
        NotFoundError: If there is no such draft, image or picture.
        InputError: If the draft was not drawn on this image.
    """
    context_of(request).image = image
    shown = _draft(request, draft)
    png = state_of(request).draft_pictures.draw(shown, checked_name(image, "image"), index)
    return Response(png, media_type="image/png", headers={"Cache-Control": "no-store"})


def confirm(request: Request, draft: str = Form(""), image: str = Form("")) -> Response:
    """Save a draft as the final label of its image."""
    require_own_page(request)
    state, context = state_of(request), context_of(request)
    context.details.update(draft=draft[:40])
    context.image = checked_name(image, "image") if image else ""
    try:
        shown = _draft(request, draft)
        context.details.update(drawn_by=shown.user, organs=[shown.label])
        saved = confirm_draft(
            state.drafts,
            state.draft_images,
            partial(save_mask, state.app.datastore(), state.app.site.labels),
            shown.name,
            image,
            context.confirms,
            state.app.site.complete_labels,
        )
    except (MissingDraftError, DraftTakenError) as error:
        raise HTTPException(409, f"Nothing was saved. {error}") from None
    context.image = saved.image
    note_change(request, saved.image, FINAL, f"confirmed a draft ({saved.note.rstrip('.')})")
    return redirect(request, f"/web/labels/image?{urlencode({'image': saved.image})}")


def delete(request: Request, draft: str = Form("")) -> Response:
    """Delete a draft."""
    require_own_page(request)
    context_of(request).details.update(draft=draft[:40])
    drafts = state_of(request).drafts
    try:
        if not any(one.name == draft and _may_see(request, one) for one in drafts.all()):
            raise MissingDraftError(draft)
        drafts.discard(draft)
    except (MissingDraftError, DraftTakenError) as error:
        raise HTTPException(409, f"Nothing was deleted. {error}") from None
    return redirect(request, "/web/labels/drafts")


ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/web/labels/drafts", drafts_page),
    ("GET", "/web/labels/draft", draft_page),
    ("GET", "/web/labels/draft/match", match),
    ("GET", "/web/labels/draft/picture", picture),
    ("POST", "/web/labels/draft/confirm", confirm),
    ("POST", "/web/labels/draft/delete", delete),
]


def _may_see(request: Request, draft: Draft | DamagedDraft) -> bool:
    """Return whether a user may see a draft: an annotator sees their own ones."""
    principal = principal_of(request)
    is_own = isinstance(draft, Draft) and draft.user == principal.name
    return is_own or principal.role.may(Role.TRAINER)


def _draft(request: Request, name: str) -> Draft:
    """Return a draft that the user may see.

    Raises:
        MissingDraftError: If there is none.
        BapsError: If it is damaged.
    """
    draft = state_of(request).drafts.get(name)
    if not _may_see(request, draft):
        raise MissingDraftError(name)
    return draft
