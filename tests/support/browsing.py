"""Browser settings for a desktop and a phone, and opening the page in a tab."""

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


def open_tab(context, url, failures=None):
    """Open the URL in a new tab of a browser context. Uncaught JavaScript errors are appended to `failures`."""
    page = context.new_page()
    page.set_default_timeout(20_000)
    if failures is not None:
        page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(url)
    return page
