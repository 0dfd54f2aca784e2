from django.http import HttpResponse
from django.urls import include, path

from notifications import views
from tests.site import pages

urlpatterns = [
    path("", lambda request: HttpResponse("ok")),
    path("page/", pages.page),
    path("token/", views.token),
    path("static/<path:path>", pages.static),
    path("notifications/", include("notifications.urls")),
]
