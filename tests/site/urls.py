from django.http import HttpResponse
from django.urls import include, path

urlpatterns = [
    path("", lambda request: HttpResponse("ok")),
    path("notifications/", include("notifications.urls")),
]
