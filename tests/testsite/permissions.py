"""Permissions to watch topics on the test site."""


def may_watch(user, upload_id: str) -> bool:
    """Users may watch uploads whose ids begin with their login names, or with ``all``."""
    return upload_id.startswith((user.username, "all"))


async def may_watch_order(user, order_id: str) -> bool:
    return order_id.startswith(user.username)


def clean_order(order_id: str) -> str:
    if order_id.startswith("bad"):
        raise ValueError("bad order")
    return order_id.lower()


def may_watch_vault(user, vault_id: str) -> bool:
    """Ask as most sites do; Django's users remember what they were allowed."""
    return user.has_perm("auth.view_user")


def teams_of(user):
    """Everybody is in a team of their own, and in that of all."""
    return [user.username, "all"]


def may_watch_report(user, report_id: str) -> bool:
    return user.is_staff
