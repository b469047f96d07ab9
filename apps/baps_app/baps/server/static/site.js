// The few lines that the site's pages need beside htmx.

// A part of a page that is requested after the session has ended: load the page again, which leads to the login page.
document.addEventListener('htmx:responseError', event => {
  if (event.detail.xhr.status === 401) location.reload();
});

// A form is sent once, also if its button is pressed twice.
document.addEventListener('submit', event => {
  for (const button of event.target.querySelectorAll('button')) setTimeout(() => { button.disabled = true; });
});

// A page that the browser kept may be out of date, and its buttons disabled.
addEventListener('pageshow', event => { if (event.persisted) location.reload(); });
