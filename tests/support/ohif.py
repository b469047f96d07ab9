"""Drive OHIF in a browser: the actions of a user, and what is on the screen."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, Request, Response

from tests.support.paths import ROOT

SCREENSHOTS = ROOT / "tests-output" / "viewers"
FLAGS = ["--no-sandbox", "--ignore-gpu-blocklist", "--use-gl=angle", "--use-angle=swiftshader",
         "--enable-unsafe-swiftshader"]  # fmt: skip

_VIEWPORT = """
([orientation, world]) => {
  const near = (a, b) => Math.abs(Math.abs(a) - b) < 0.01;
  const axis = {sagittal: 0, coronal: 1, axial: 2}[orientation];
  const viewport = cornerstone.getRenderingEngines().flatMap(engine => engine.getViewports())
    .find(one => near(one.getCamera().viewPlaneNormal[axis], 1));
  const camera = viewport.getCamera(), normal = camera.viewPlaneNormal;
  const away = normal.reduce((sum, n, i) => sum + n * (world[i] - camera.focalPoint[i]), 0);
  const moved = point => point.map((value, i) => value + away * normal[i]);
  viewport.setCamera({focalPoint: moved(camera.focalPoint), position: moved(camera.position)});
  viewport.render();
  const frame = viewport.element.getBoundingClientRect();
  const place = at => { const [x, y] = viewport.worldToCanvas(at); return [frame.x + x, frame.y + y]; };
  const side = [0, 1, 2].map(i => world[i] + (i === axis ? 0 : 10 / Math.SQRT2));
  const [here, there] = [place(world), place(side)];
  return {x: here[0], y: here[1], frame: [frame.x, frame.y, frame.right, frame.bottom],
          pixelsPerMm: Math.hypot(there[0] - here[0], there[1] - here[1]) / 10};
}
"""
"""Scroll the viewport of an orientation to a place (mm, LPS), and say where on the page it is now."""


@dataclass(frozen=True)
class ScreenPosition:
    """A position on the page.

    Attributes:
        x: horizontal position, pixels of the page.
        y: vertical position, pixels of the page.
        frame: edges of its viewport, (left, top, right, bottom).
        pixels_per_mm: scale of the viewport.
    """

    x: float
    y: float
    frame: tuple[float, float, float, float]
    pixels_per_mm: float


@dataclass(frozen=True)
class Inference:
    """A request that OHIF sent, and the reply."""

    params: dict[str, Any]
    status: int
    headers: dict[str, str]
    body: bytes


class Ohif:
    """OHIF in a page of a browser.

    Args:
        page: page of Playwright.
        server: address of the MONAI Label server.
    """

    def __init__(self, page: Page, server: str) -> None:
        self.page, self.server = page, server

    def wait_for_studies(self, patients: Iterable[str]) -> None:
        """Open the list of studies and wait until it shows all of these patients."""
        self.page.goto(f"{self.server}/ohif/", wait_until="networkidle")
        for patient in patients:
            self.page.get_by_text(patient, exact=True).first.wait_for()

    def open(self, study: str) -> None:
        """Open a study in the mode of MONAI Label and wait until its viewports are drawn."""
        self.page.goto(f"{self.server}/ohif/monai-label?StudyInstanceUIDs={study}", wait_until="networkidle")
        if (confirm := self.page.get_by_text("Confirm and Hide")).is_visible():
            confirm.click()
        self.page.wait_for_function(
            "() => window.cornerstone && cornerstone.getRenderingEngines().flatMap(engine => engine.getViewports())"
            ".filter(one => one.getImageData && one.getImageData()).length >= 3"
        )
        self.page.wait_for_load_state("networkidle")

    def connect(self) -> None:
        """Enter the server in the panel and wait until its models are listed."""
        address = self.page.locator("input[value^='http']").first
        address.fill(f"{self.server}/")
        address.locator("xpath=following::button[1]").click()
        self.page.get_by_text("Active Learning").wait_for()

    def prompt_for(self, model: str, organ: str) -> None:
        """Choose a model and an organ for clicks."""
        tab = self.page.locator(".tab", has=self.page.get_by_text("Point Prompts"))
        tab.get_by_text("Point Prompts").click()
        tab.locator("select.selectBox").select_option(model)
        tab.locator("tr.clickable-row", has_text=organ).click()

    def choose(self, section: str, name: str, **options: str) -> None:
        """Set options of a model or a trainer in the panel."""
        self.page.get_by_text("Options / Configurations").first.click()
        self.page.locator("tr", has_text="Section:").locator("select").select_option(section)
        self.page.locator("tr", has_text="Name:").locator("select").select_option(name)
        for option, value in options.items():
            field = self.page.locator(f"[id='{section}{name}{option}']")
            if field.evaluate("field => field.tagName") == "SELECT":
                field.select_option(value)
            else:
                field.fill(value)
        self.page.get_by_role("button", name="Confirm", exact=True).click()

    def scroll_to(self, orientation: str, world: NDArray[np.float64]) -> ScreenPosition:
        """Scroll the viewport of an orientation to a position, mm, LPS; return it on the screen."""
        result = self.page.evaluate(_VIEWPORT, [orientation, world.tolist()])
        self.page.wait_for_timeout(500)
        return ScreenPosition(result["x"], result["y"], tuple(result["frame"]), result["pixelsPerMm"])

    def points(self) -> int:
        """Count the clicks that are shown."""
        result: int = self.page.evaluate("() => cornerstoneTools.annotation.state.getAllAnnotations().length")
        return result

    def click(self, position: ScreenPosition) -> None:
        """Click at a position. In a viewport that is not active, OHIF uses the first click to activate it."""
        before = self.points()
        for _ in range(2):
            self.page.mouse.click(position.x, position.y)
            self.page.wait_for_timeout(500)
            if self.points() > before:
                return
        raise AssertionError("OHIF shows no point where it was clicked.")

    def run(self) -> Inference:
        """Run the model on the points."""
        return self._run("Run PointPrompts")

    def segment_all(self, model: str) -> Inference:
        """Run a model that needs no click."""
        tab = self.page.locator(".tab", has=self.page.get_by_text("Auto-Segmentation"))
        if not tab.locator("select.selectBox").is_visible():
            tab.get_by_text("Auto-Segmentation").click()
        tab.locator("select.selectBox").select_option(model)
        return self._run("Run Segmentation")

    def _run(self, title: str) -> Inference:
        with self.page.expect_response(lambda response: "/infer/" in response.url, timeout=60_000) as waiting:
            self.page.get_by_title(title, exact=True).click()
        response: Response = waiting.value
        return Inference(_params(response.request), response.status, response.headers, response.body())

    def open_segmentation(self, study: str, description: str) -> None:
        """Open a DICOM SEG of a study in the mode for segmentations."""
        self.page.goto(f"{self.server}/ohif/segmentation?StudyInstanceUIDs={study}", wait_until="networkidle")
        if (confirm := self.page.get_by_text("Confirm and Hide")).is_visible():
            confirm.click()
        self.page.get_by_text(description).first.dblclick()
        self.page.get_by_role("button", name="Yes").click()
        self.page.get_by_text("Add Segment", exact=True).wait_for()
        self.page.wait_for_timeout(2000)

    def paint(self, segment: str) -> None:
        """Paint a segment with the brush in the middle of the visible slice."""
        self.page.get_by_text(segment, exact=True).last.click()
        self.page.locator("[data-cy=Brush]").click()
        self.page.wait_for_timeout(1000)
        box = self.page.locator(".cornerstone-canvas").first.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + 40, y + 10, steps=8)
        self.page.mouse.up()
        self.page.wait_for_timeout(1000)

    def export_segmentation(self, name: str) -> int:
        """Export a DICOM SEG; return the status of the PACS's answer."""
        menu = self.page.get_by_text("Add Segment", exact=True).locator(
            "xpath=preceding::button[@aria-haspopup='menu'][1]"
        )
        menu.click()
        self.page.get_by_role("menuitem", name="Export & Download").press("ArrowRight")
        self.page.get_by_role("menuitem", name="Export DICOM SEG", exact=True).press("Enter")
        self.page.locator("input[type=text]").last.fill(name)
        with self.page.expect_response(lambda response: response.request.method == "POST") as waiting:
            self.page.get_by_role("button", name="Save", exact=True).click()
        status: int = waiting.value.status
        return status

    def look(self, name: str) -> NDArray[np.uint8]:
        """Take a screenshot, (rows, columns, 3), and save it as a picture."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        content = self.page.screenshot(path=SCREENSHOTS / f"{name}.png")
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

    def look_for_overlay(self, name: str, position: ScreenPosition, before: int) -> int:
        """Wait until a viewport has more coloured pixels than before and their number is constant; return it."""
        last = before
        for _ in range(40):
            now = int(coloured(self.look(name), position).sum())
            if now == last > before:
                return now
            last = now
            self.page.wait_for_timeout(500)
        raise AssertionError(f"No overlay appears: {last} pixels have a colour, {before} had one before.")


def _params(request: Request) -> dict[str, Any]:
    text = request.post_data or ""
    params: dict[str, Any] = json.loads(text[text.index("{") : text.rindex("}") + 1])
    return params


def coloured(picture: NDArray[np.uint8], position: ScreenPosition) -> NDArray[np.bool_]:
    """Return the coloured pixels inside a viewport, (rows, columns): an overlay on a grey image.

    The top and the bottom of the viewport are excluded, because texts and messages appear there.
    """
    left, _, right, _ = (round(edge) for edge in position.frame)
    top, bottom = round(position.y) - 200, round(position.y) + 200
    inside = picture[top:bottom, left + 30 : right - 25].astype(int)
    return np.ptp(inside, axis=-1) > 10
