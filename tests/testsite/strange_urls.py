"""Sites whose pages are not as the documentation says."""

from django.http import HttpResponseRedirect


def to_the_login(get_response):
    """Send everybody to log in, whatever the view says, as a middleware of the site may."""
    return lambda request: HttpResponseRedirect("/login/?next=s3cret-of-nobody")


urlpatterns = []
