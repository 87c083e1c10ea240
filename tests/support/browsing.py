"""Somebody's screen, and their tabs."""

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


def visit_again(context, url, failures=None):
    """Another tab of the same person."""
    page = context.new_page()
    page.set_default_timeout(20_000)
    if failures is not None:
        page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(url)
    return page
