"""The site's page in the browser: see what the site has learned, and steer it.

Each page is a module of this package: ``overview``, ``train``, ``adapters``. To add one:

1. Write a module with functions that gather its data into frozen dataclasses, without a request, and one function per
   route, which calls them and returns ``layout.render(request, "web/NAME.html", ...)``. Its ``ROUTES`` lists method,
   path and function. Paths begin with ``/web/``.
2. Write its template, which extends ``web/layout.html``.
3. Add the module to ``web.routes``, and its link to ``layout.TABS`` with the role that sees it.
4. Add each request that changes something, or shows patient data, to ``access_policy.POLICIES``, and to
   ``docs/reference/http-routes.md``. ``GET /web/...`` is allowed for annotators.
5. A route that changes something calls ``layout.require_own_page`` first, and redirects to a page afterwards.

A page answers within 200 ms while a training runs. What takes longer, such as a query to a PACS, is computed in a
thread, see ``background.BackgroundValue``. What fails is shown in its part of the page as a sentence; the rest of the
page works. Pages work without scripts, except for live progress. Nothing is loaded from other hosts, and no script or
style is inline, see ``layout.POLICY``.
"""
