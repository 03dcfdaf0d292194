"""A server with a stand-in for every push provider, as the tests of push and of its nodes use it.

The fixtures are for tests that import them.
"""

import pytest

from .admin import admin
from .push_peer import AppleKey, Browser, Provider, ServiceAccount
from .rawws import RawSocket
from .rest import api
from .tls import Authority

SUBJECT = "mailto:ops@example.org"


class World:
    """A server, a provider that stands in for all three, and its app's access to each."""

    def __init__(self, server, provider, authority):
        self.server, self.provider, self.authority = server, provider, authority
        self.account, self.apple = ServiceAccount(provider), AppleKey()
        web = self.set("web", {"subject": SUBJECT})
        self.vapid = web["vapidPublicKey"]
        self.set("fcm", {"serviceAccount": self.account.json, "endpoint": provider.url})
        self.set("apns", self.apns_by_token())

    def set(self, platform, body):
        return admin(self.server, "PUT", f"/apps/dev/push/providers/{platform}", body)

    def apns_by_token(self):
        return {
            "topic": "org.example.app", "endpoint": self.provider.url, "key": self.apple.pem, "keyId": "KEY1234567",
            "teamId": "TEAM123456",
        }

    def post(self, path, body, **how):
        return api(self.server, "POST", f"/api/push/{path}", body, **how)

    def register(self, platform, credential, member=None, channels=None):
        body = {"platform": platform, "memberId": member, "channels": channels}
        body["webPush" if platform == "web" else "deviceToken"] = credential
        return self.post("register", body)["subscriptionId"]

    def browser(self, name, member=None, channels=None):
        browser = Browser(self.provider, name)
        browser.id = self.register("web", browser.web_push, member, channels)
        return browser

    def subscriptions(self, query=""):
        return api(self.server, "GET", f"/api/push/subscriptions{query}")

    def job(self, job):
        return api(self.server, "GET", f"/api/push/jobs/{job}")


def config(authority, more=""):
    return f'[push]\nallow_private = true\nca_file = "{authority.file}"\n{more}'


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("push-ca"))


@pytest.fixture
def provider(authority):
    provider = Provider(authority)
    yield provider
    provider.end()


def make_token(server, sub=None, cap=None):
    """A token of a signing key that may give everything."""
    if not getattr(server, "push_signing_key", None):
        made = admin(server, "POST", "/apps/dev/signing-keys", {"algorithm": "HS256", "capabilities": {"*": ["*"]}})
        server.push_signing_key = made["kid"]
    body = {"kid": server.push_signing_key, "clientId": sub, "capabilities": cap}
    return admin(server, "POST", "/apps/dev/tokens", body)["token"]


def register_many(world, count):
    with RawSocket(world.server.address) as connection:
        for n in range(count):
            body = {"platform": "fcm", "memberId": f"m{n % 50}", "deviceToken": f"t{n}"}
            api(world.server, "POST", "/api/push/register", body, connection=connection)


def try_post(world, path, body):
    try:
        return world.post(path, body)
    except Exception as error:  # the server is killed under the call
        return error
