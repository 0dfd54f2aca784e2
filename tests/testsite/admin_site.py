"""The test site with Django's admin: SETTINGS are what a site with an admin has, this module is its ROOT_URLCONF."""

from django.contrib import admin
from django.contrib.auth.models import Group, Permission
from django.template.response import TemplateResponse
from django.urls import path

from notifications.contrib.admin import ProgressAdminMixin
from tests.testsite import urls

SETTINGS = {
    "ROOT_URLCONF": "tests.testsite.admin_site",
    "INSTALLED_APPS": [
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.messages",
        "django.contrib.staticfiles",
        "channels",
        "notifications",
        "notifications.inbox",
        "tests.testsite",
    ],
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "tests.testsite.admin_site.policy",
    ],
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
}


def policy(get_response):
    """Let no page run a script, or have a style, that is not the site's own or named by the nonce."""

    def middleware(request):
        request.csp_nonce = "of-this-page"
        response = get_response(request)
        response.headers["Content-Security-Policy"] = (
            "default-src 'none'; script-src 'nonce-of-this-page' 'self'; style-src 'self'; img-src 'self'; "
            "connect-src 'self'; form-action 'self'"
        )
        return response

    return middleware


class GroupAdmin(ProgressAdminMixin, admin.ModelAdmin):
    actions = ("rebuild", "ask")

    @admin.action(description="Rebuild selected groups")
    def rebuild(self, request, queryset):
        for group in queryset:
            self.show_progress(request, f"job:{group.pk}", label=f"Rebuilding {group.name}")

    @admin.action(description="Ask first")
    def ask(self, request, queryset):
        return TemplateResponse(request, "admin/base_site.html", self.admin_site.each_context(request))


class PermissionAdmin(ProgressAdminMixin, admin.ModelAdmin):
    pass


site = admin.AdminSite()
site.register(Group, GroupAdmin)
site.register(Permission, PermissionAdmin)
urlpatterns = [
    path("admin/", site.urls),
    *urls.urlpatterns,
]
