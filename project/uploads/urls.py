"""Where the uploads live."""

from django.urls import path

from project.uploads import views

urlpatterns = [
    path("", views.upload_list, name="uploads"),
    path("uploads/", views.upload_create, name="upload-create"),
    path("uploads/state/", views.upload_state, name="upload-state"),
    path("uploads/clear/", views.upload_clear, name="upload-clear"),
    path("listener/kill/", views.listener_kill, name="listener-kill"),
    path("uploads/<uuid:pk>/status/", views.upload_status, name="upload-status"),
    path("uploads/<uuid:pk>/thumbnail/", views.thumbnail, name="upload-thumbnail"),
]
