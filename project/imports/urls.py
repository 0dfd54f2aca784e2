"""Where the imports live."""

from django.urls import path

from project.imports import views

urlpatterns = [
    path("", views.import_list, name="imports"),
    path("clear/", views.import_clear, name="import-clear"),
    path("<uuid:pk>/", views.import_detail, name="import"),
]
