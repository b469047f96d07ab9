"""Route that exports labels for other programs."""

from __future__ import annotations

from io import BytesIO
from urllib.parse import quote

from fastapi import Response
from monailabel.interfaces.utils.app import app_instance

from baps.server.routes.datastore import image_file
from baps.server.routes.infer import NOTES, notes_header


def label_for_radiotherapy(image: str) -> Response:
    """Send the final label of a DICOM series as an RTSTRUCT.

    Raises:
        NotFoundError: If there is no such image, or it has no final label.
        InputError: If the image is not a DICOM series, or its label cannot be converted.
    """
    content = BytesIO()
    image_file(image)
    notes: list[str] = []
    app_instance().datastore().label_to_rtstruct(image, notes).save_as(content, write_like_original=False)
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(image)}-rtstruct.dcm"}
    if notes:
        headers[NOTES] = notes_header(notes)
    return Response(content.getvalue(), media_type="application/dicom", headers=headers)
