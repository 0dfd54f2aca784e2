"""
The progress of jobs in Django's admin: an action that starts a job shows its bar above the change list.

    class ReportAdmin(ProgressAdminMixin, admin.ModelAdmin):
        actions = ["export"]

        @admin.action(description="Export selected reports")
        def export(self, request, queryset):
            export = Export.objects.create(...)
            run_export.delay(export.pk)
            self.show_progress(request, f"job:{export.pk}", label="Export of reports")
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse

from ..exceptions import TopicError
from ..topics import Topic

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    Base = ModelAdmin[Any]
else:
    Base = object

MAX_BARS: Final = 5
"""Bars that a session remembers, of all its change lists: the newest. A session in a cookie has about 4,000 bytes."""
MAX_AGE: Final = 3600
"""Seconds after which a bar is no longer shown. The page signs its grant anew each time."""
MAX_LABEL: Final = 100
"""Characters of a label."""

SESSION_KEY: Final = "notifications_admin"
DISMISS: Final = "_dismiss_progress"
"""The field of the button's form; none of the admin's own has this name."""
TEMPLATE: Final = "notifications/admin/change_list.html"


class Bar(NamedTuple):
    """A bar as the session has it: a list of texts and a number."""

    admin: str
    """The site's name and the model, as their change list is one place."""
    topic: str
    label: str
    began: float
    """Seconds since 1970."""


class ProgressAdminMixin(Base):
    """
    Mixin for a ``ModelAdmin`` whose actions start jobs: their bars are above its change list.

    They are shown to the session in which ``show_progress`` was called, in all its tabs and after a reload, until they
    are dismissed, or for ``MAX_AGE`` seconds. Whatever template the change list has is extended, in its blocks
    ``extrahead`` and ``content``, and only while there are bars.
    """

    def show_progress(self, request: HttpRequest, topic: Topic | str, *, label: str | None = None) -> None:
        """
        Show the bar of a job above this model's change list, to the session of the request.

        The page signs a grant for its user, who may watch the job with it and, where the site includes
        ``notifications.urls``, cancel it. So call this for jobs that the user of the request may see.

        Args:
            request: The request, as an action has it.
            topic: The job's, such as ``"job:42"``.
            label: What the bar is called, in at most ``MAX_LABEL`` characters. By default the topic.

        Raises:
            TopicError: The topic is not valid.

        """
        told = (Topic.parse(topic) if isinstance(topic, str) else topic).told
        bar = Bar(self._progress_place, told, str(label or told)[:MAX_LABEL], time.time())
        self._keep(request, [*(other for other in _bars(request) if other[:2] != bar[:2]), bar])

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the change list with the bars, or dismiss one of them."""
        if request.method == "POST" and DISMISS in request.POST:
            return self._dismiss(request)
        response = super().changelist_view(request, extra_context)
        if not isinstance(response, TemplateResponse) or response.context_data is None:
            return response
        context = response.context_data
        bars = [bar for bar in _bars(request) if bar.admin == self._progress_place]
        if bars and "cl" in context:  # an action may have answered with a page of its own
            context["progress_extends"] = response.resolve_template(response.template_name)
            context["progress_bars"] = [{"topic": Topic.parse(bar.topic), "label": bar.label} for bar in reversed(bars)]
            context["progress_cancel_url"] = _cancel_url()
            context["progress_dismiss"] = DISMISS
            response.template_name = TEMPLATE
        return response

    def _dismiss(self, request: HttpRequest) -> HttpResponse:
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        dismissed = (self._progress_place, request.POST[DISMISS])
        self._keep(request, [bar for bar in _bars(request) if bar[:2] != dismissed])
        return HttpResponseRedirect(request.get_full_path())

    def _keep(self, request: HttpRequest, bars: list[Bar]) -> None:
        request.session[SESSION_KEY] = [list(bar) for bar in bars[-MAX_BARS:]]

    @property
    def _progress_place(self) -> str:
        return f"{self.admin_site.name} {self.opts.label_lower}"


def _bars(request: HttpRequest) -> list[Bar]:
    """Return what the session remembers, the oldest first, without what is too old or no longer a topic."""
    bars = [Bar(*values) for values in request.session.get(SESSION_KEY, [])]
    return [bar for bar in bars if 0 <= time.time() - bar.began < MAX_AGE and _is_topic(bar.topic)]


def _is_topic(text: str) -> bool:
    try:
        Topic.parse(text)
    except TopicError:  # the site's TOPICS have changed
        return False
    return True


def _cancel_url() -> str | None:
    try:
        return reverse("notifications:cancel")
    except NoReverseMatch:
        return None
