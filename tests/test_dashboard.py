"""The dashboard as people use it: Chromium against the real server, driven by Playwright; axe-core looks at every page.

With SHARDWIRE_PICTURES=FOLDER the pages are photographed into it, light and dark.
"""

import os
import pathlib
import re
import shutil
import time

import pytest

from harness.admin import admin
from harness.client import Client
from harness.ctl import ctl
from harness.hooks import CONFIG as HOOKS, Receiver, status
from harness.people import PASSWORD, Person, letter, member, operator
from harness.rest import api
from harness.wait import wait_until
from test_accounts import totp

sync_api = pytest.importorskip("playwright.sync_api")
axe_module = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed"),
]

PICTURES = os.environ.get("SHARDWIRE_PICTURES")
# Seconds that a page may take on a machine that is busy with other tests.
PATIENCE_MS = 30_000


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Opens a window of its own; scripts that are refused or fail make the test fail."""
    contexts, wrongs = [], []

    def open_one(**options):
        context = chromium.new_context(**options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrongs.append(str(error)))
        page.on("console", lambda message: wrongs.append(message.text) if "Content Security Policy" in message.text else None)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not wrongs, wrongs


def url(server, path="/"):
    return "http://%s:%d/dashboard%s" % (*server.admin, path)


def sign_in(page, server, email="ann@example.com", path="/"):
    page.goto(url(server, path))
    page.fill("input[name=email]", email)
    page.fill("input[name=password]", PASSWORD)
    page.click("main button[type=submit]")
    page.wait_for_url(lambda there: "/login" not in there or "/login/code" in there)


def open_dialog(page, name):
    """Opens what asks whether it is meant."""
    page.locator(f"[popovertarget='{name}']:not([popovertargetaction])").click()


def expect(locator):
    return sync_api.expect(locator)


def check_accessibility(page, where):
    """No fault that axe-core calls serious or worse."""
    found = axe_module.Axe().run(page).response["violations"]
    grave = [(v["id"], [node["target"] for node in v["nodes"]]) for v in found if v["impact"] in ("serious", "critical")]
    assert not grave, f"{where}: {grave}"


def expect_wrong(page, field, text):
    """A field is marked, says why to eyes and to screen readers, and has the focus."""
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_be_focused()
    notes = [page.locator(f"[id='{name}']").inner_text() for name in field.get_attribute("aria-describedby").split()]
    assert text in notes, notes


def take_picture(page, name):
    if PICTURES:
        pathlib.Path(PICTURES).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{PICTURES}/{name}.png")


def test_from_the_first_start_to_the_first_message_in_the_console(new_server, open_page):
    server = new_server(shards=1)
    link = next(line.strip() for line in server.out().splitlines() if "/dashboard/setup?token=" in line)
    page = open_page()
    page.goto(link)
    page.fill("input[name=name]", "Ann")
    page.fill("input[name=email]", "ann@example.com")
    page.fill("input[name=password]", PASSWORD)
    page.click("main button[type=submit]")
    page.wait_for_url(lambda there: "/setup" not in there)
    assert page.locator("h1").inner_text() == "Overview"
    page.goto(url(server, "/apps/dev/keys"))
    key_form = page.locator("form[action$='/apps/dev/keys']")
    if not key_form.is_visible():
        page.locator("details", has=key_form).locator("summary").first.click()
    key_form.locator("[name=kind]").select_option("client")
    key_form.locator("[name=name]").fill("console")
    key_form.locator("button[type=submit]").click()
    key = page.locator("#secret").inner_text().strip()
    assert key.startswith("ck_")
    page.reload()
    assert key not in page.content(), "a key is shown once"
    page.goto(url(server, "/apps/dev/console?channel=chat"))
    page.select_option("#connect-way", "key")
    page.fill("#connect-key", key)
    page.click("#connect")
    expect(page.locator("#state")).to_contain_text("onnected")
    page.fill("#sub-channel", "chat")
    page.click("#subscribe")
    expect(page.locator("#subscriptions")).to_contain_text("chat")
    # What others publish arrives, and what the page publishes is published.
    peer = Client(server)
    peer.subscribe("chat")
    peer.publish("chat", {"text": "hello from a peer"})
    expect(page.locator("#log .message").first).to_contain_text("hello from a peer")
    page.fill("#pub-channel", "chat")
    page.fill("#pub-data", '{"text": "hello from the page"}')
    page.click("#publish")
    while True:
        got = peer.expect(action="message", channel="chat")
        if got["data"] == {"text": "hello from the page"}:
            break
    peer.drop()


def test_a_key_is_rotated_and_disabled(new_server, open_page):
    server = new_server(shards=1)
    operator(server)
    made = admin(server, "POST", "/apps/dev/keys", {"kind": "client", "name": "web"})
    page = open_page()
    sign_in(page, server, path="/apps/dev/keys")
    page.wait_for_url("**/apps/dev/keys")
    rotate = page.locator(f"form[action$='/keys/{made['id']}/rotate']")
    open_dialog(page, f"rot-{made['id']}")
    rotate.locator("button[type=submit]").click()
    fresh = page.locator("#secret").inner_text().strip()
    assert fresh.startswith("ck_") and fresh != made["key"]
    for key in (made["key"], fresh):
        client = Client(server, key=key)
        client.subscribe("rotated")
        client.drop()
    page.goto(url(server, "/apps/dev/keys"))
    open_dialog(page, f"off-{made['id']}")
    page.locator(f"form[action$='/keys/{made['id']}/disable'] button[type=submit]").click()
    expect(page.locator("main")).to_contain_text("The key is disabled")
    assert admin(server, "GET", f"/apps/dev/keys/{made['id']}")["disabled"]


def test_a_viewer_looks_and_cannot_change(new_server, open_page):
    server = new_server(shards=1)
    ann = operator(server)
    team = ann.call("GET", "/teams")["teams"][0]["id"]
    member(ann, team, "vera@example.com", "viewer", "Vera")
    page = open_page()
    sign_in(page, server, "vera@example.com", "/apps/dev/keys")
    page.wait_for_url("**/apps/dev/keys")
    assert page.locator("main form[method=post]").count() == 0, "forms that would be refused are not shown"
    answer = page.evaluate(
        """async () => (await fetch('/dashboard/api/apps/dev/keys', {method: 'POST', body: '{"kind": "client"}', headers:
        {'Content-Type': 'application/json', 'X-CSRF-Token': document.querySelector('meta[name=csrf-token]').content}})).status"""
    )
    assert answer == 403
    page.goto(url(server, "/connections"))
    assert page.locator("h1").count() == 1 and "allow" in page.locator("main").inner_text()
    page.goto(url(server, "/apps/none/keys"))
    assert page.locator("main").is_visible()


def test_a_webhook_is_made_and_its_dead_letter_replayed(new_server, open_page):
    with Receiver() as receiver:
        server = new_server(shards=1, config=HOOKS + "retry_ms = [100]\n")
        operator(server)
        page = open_page()
        sign_in(page, server, path="/apps/dev/webhooks")
        form = page.locator("form[action$='/apps/dev/webhooks']")
        form.locator("[name=url]").fill(receiver.url)
        form.locator("[name=events][value='message.published']").check()
        form.locator("button[type=submit]").click()
        secret = page.locator("#secret").inner_text().strip()
        [hook] = admin(server, "GET", "/apps/dev/webhooks")["webhooks"]
        receiver.always = status(500)
        api(server, "POST", "/api/channels/c/messages", {"data": "lost?"})
        letters = f"/apps/dev/webhooks/{hook['id']}/dead-letters"
        wait_until(lambda: admin(server, "GET", letters)["deadLetters"], 20, "it to be given up")
        page.goto(url(server, f"/apps/dev/webhooks/{hook['id']}"))
        check_accessibility(page, "webhook")
        take_picture(page, "webhook-light")
        receiver.always = None
        page.locator("form[action*='/dead-letters/'][action$='/replay'] button[type=submit]").first.click()
        [event] = receiver.wait_for(1)
        assert event["data"] == "lost?" and receiver.accepted[0].signed_by(secret)
        wait_until(lambda: not admin(server, "GET", letters)["deadLetters"], what="the dead letter to be gone")
        page.reload()
        expect(page.locator("main")).not_to_contain_text("Replay all")


def test_a_second_factor_is_set_up_and_asked_for(new_server, open_page):
    server = new_server(shards=1)
    operator(server)
    page = open_page()
    sign_in(page, server, path="/account/security")
    page.wait_for_url("**/account/security")
    begin = page.locator("form[action$='/account/totp']")
    begin.locator("[name=password]").fill("not the password")
    begin.locator("button").click()
    expect_wrong(page, begin.locator("[name=password]"), "Your password is wrong.")
    begin.locator("[name=password]").fill(PASSWORD)
    begin.locator("button").click()
    page.wait_for_url("**/account/totp")
    assert page.locator("svg").count() >= 1
    secret = re.search(r"[A-Z2-7]{32}", page.locator("main").inner_text().replace(" ", "")).group(0)
    page.fill("input[name=code]", totp(secret, time.time() - 30))
    page.locator("form[action$='/account/totp/confirm'] button[type=submit]").click()
    codes = re.findall(r"[a-z2-7]{8}-[a-z2-7]{8}", page.locator("main").inner_text())
    assert len(codes) == 10
    other = open_page()
    sign_in(other, server)
    other.wait_for_url("**/login/code")
    other.fill("input[name=code]", "000000")
    other.click("main button[type=submit]")
    expect(other.locator("main")).to_contain_text("Code is wrong")
    other.fill("input[name=code]", totp(secret))
    other.click("main button[type=submit]")
    other.wait_for_url(lambda there: "/login" not in there)
    third = open_page()
    sign_in(third, server)
    third.wait_for_url("**/login/code")
    third.fill("input[name=code]", codes[0])
    third.click("main button[type=submit]")
    third.wait_for_url(lambda there: "/login" not in there)


def test_what_is_wrong_is_said_beside_its_field_and_what_was_typed_stays(new_server, open_page):
    server = new_server(shards=1)
    operator(server)
    page = open_page(viewport={"width": 360, "height": 740})
    sign_in(page, server, path="/account/security")
    page.wait_for_url("**/account/security")
    form = page.locator("form[action$='/account/password']")
    # What the browser knows is said before anything is sent.
    form.locator("button").click()
    expect(form.locator("[aria-invalid=true]")).to_have_count(2)
    expect(form.locator("[name=current]")).to_be_focused()
    assert form.locator(".field-error").count() == 2
    form.locator("[name=current]").fill("not the password")
    expect(form.locator("[aria-invalid=true]")).to_have_count(1)
    form.locator("[name=password]").fill("other lamp eight trees")
    form.locator("button").click()
    expect_wrong(page, form.locator("[name=current]"), "Password now is wrong.")
    assert "field that is marked" in page.locator("[role=alert]").inner_text()
    assert form.locator("[name=current]").input_value() == form.locator("[name=password]").input_value() == ""
    assert page.locator("[aria-invalid=true]").count() == 1, "no other form of the page is marked"
    check_accessibility(page, "a wrong password")
    form.locator("[name=current]").fill(PASSWORD)
    form.locator("[name=password]").fill("short")
    form.locator("button").click()
    expect_wrong(page, form.locator("[name=password]"), "New password is too short: 12 characters or more.")
    # A field that is folded away is shown, and one in a dialog too.
    page.goto(url(server, "/apps/dev/keys"))
    form = page.locator("form[action$='/apps/dev/keys']")
    if not form.is_visible():
        page.locator("details", has=form).locator("summary").first.click()
    form.locator("[name=name]").fill("till")
    form.locator("[name=kind]").select_option("server")
    form.locator("[name=capabilities]").fill('{"chat:*"')
    form.locator("button[type=submit]").click()
    expect(form.locator("[name=capabilities]")).to_be_focused()
    assert "is not JSON" in page.locator("#key-capabilities-error").inner_text()
    assert form.locator("[name=name]").input_value() == "till" and form.locator("[name=kind]").input_value() == "server"
    assert form.locator("[name=capabilities]").input_value() == '{"chat:*"'
    page.goto(url(server, "/apps/dev"))
    open_dialog(page, "app-delete")
    page.fill("#app-delete [name=confirm]", "other")
    page.click("#app-delete button[type=submit]")
    expect_wrong(page, page.locator("#app-delete [name=confirm]"), "That is not the app's id; nothing was deleted.")
    expect(page.locator("#app-delete")).to_be_visible()
    check_accessibility(page, "a dialog that is shown again")
    page.goto(url(server, "/teams"))
    page.locator("details", has=page.locator("form[action$='/teams']")).locator("summary").first.click()
    page.fill("form[action$='/teams'] [name=name]", " ")
    page.click("form[action$='/teams'] button")
    expect_wrong(page, page.locator("form[action$='/teams'] [name=name]"), "Name must be 1 to 80 characters without control characters.")


def test_an_address_is_changed_on_the_profile_and_taken_back_by_its_link(new_server, open_page):
    server = new_server(shards=1)
    operator(server)
    page = open_page()
    sign_in(page, server, path="/account")
    page.wait_for_url("**/account")
    form = page.locator("form[action$='/account/email']")
    page.locator("details", has=form).locator("summary").first.click()
    form.locator("[name=email]").fill("new@example.com")
    form.locator("[name=password]").fill("wrong")
    form.locator("button").click()
    expect_wrong(page, form.locator("[name=password]"), "Your password is wrong.")
    assert form.locator("[name=email]").input_value() == "new@example.com"
    form.locator("[name=password]").fill(PASSWORD)
    form.locator("button").click()
    expect(page.locator("main")).to_contain_text("letter is on its way")
    expect(page.locator("#address ~ *").first).to_contain_text("ann@example.com")
    assert "waits for its link" in page.locator("main").inner_text()
    check_accessibility(page, "a change that waits")
    link = letter(server, "new@example.com", "Is this your new address")
    mail = open_page()
    mail.goto(link)
    check_accessibility(mail, "the confirming page")
    mail.click("main button[type=submit]")
    mail.wait_for_url("**/login**")
    page.reload()
    assert "new@example.com" in page.locator("main").inner_text() and "waits for" not in page.locator("main").inner_text()
    mail.goto(letter(server, "ann@example.com", "The address of your account was changed"))
    check_accessibility(mail, "the way back")
    mail.click("main button[type=submit]")
    mail.wait_for_url("**/reset?token=*")
    mail.fill("input[name=password]", "other lamp eight trees")
    mail.click("main button[type=submit]")
    mail.wait_for_url("**/login")
    page.goto(url(server, "/account"))
    page.wait_for_url("**/login**")


def test_an_apps_settings_are_a_form(new_server, open_page):
    server = new_server(shards=1)
    ann = operator(server)
    ann.call("PUT", "/plans/small", {"connectionsMax": 100})
    rates = {"publish": {"channel": {"per_window": 5, "window_ms": 1000, "burst": 5}}}
    ann.call("PATCH", "/apps/dev", {"settings": {"hello": True, "namespaces": [{"pattern": "old:*", "rates": rates}]}})
    page = open_page(viewport={"width": 360, "height": 740})
    sign_in(page, server, path="/apps/dev")
    page.wait_for_url("**/apps/dev")
    form = page.locator("form[action$='/apps/dev']")

    def field(name):
        return form.locator(f"[name='{name}']")

    def save():
        form.locator(".save button").click()

    def settings():
        return admin(server, "GET", "/apps/dev")["settings"]

    assert field("hello").input_value() == "true" and field("namespaces.0.pattern").input_value() == "old:*"
    field("name").fill("Chat")
    field("hello").select_option("")
    field("selfAssertedIds").select_option("false")
    field("allowedOrigins").fill("https://a.example\nhttps://b.example")
    field("plan").select_option("small")
    field("limits.connectionsMax").fill("50")
    field("limits.publishRate.per_window").fill("20")
    page.get_by_text("Rates of what clients do").click()
    field("limits.rates.history.client.per_window").fill("3")
    field("limits.rates.http.app.off").check()
    field("namespaces.0.push_offline").check()
    field("namespaces.0.messages_max").fill("10")
    page.get_by_role("heading", name="Another pattern").click()
    field("namespaces.1.pattern").fill("new:*")
    field("namespaces.1.place").fill("0")
    field("namespaces.1.persist").uncheck()
    save()
    # The browser knows that places begin at 1.
    expect(field("namespaces.1.place")).to_be_focused()
    field("namespaces.1.place").fill("1")
    field("namespaces.0.place").fill("2")
    save()
    expect(page.locator(".flash")).to_contain_text("settings are saved")
    check_accessibility(page, "settings")
    got = settings()
    first, second = got.pop("namespaces")
    limit = {"per_window": 20, "window_ms": 1000, "burst": 20}
    assert got == {
        "selfAssertedIds": False, "allowedOrigins": ["https://a.example", "https://b.example"], "plan": "small",
        "limits": {"connectionsMax": 50, "publishRate": limit, "rates": {
            "history": {"client": {"per_window": 3, "window_ms": 1000, "burst": 3}}, "http": {"app": False}}},
    }
    assert first["pattern"] == "new:*" and not first["persist"] and "rates" not in first
    assert second["pattern"] == "old:*" and second["push_offline"] and second["messages_max"] == 10
    assert second["rates"] == rates and admin(server, "GET", "/apps/dev")["name"] == "Chat"
    # What is refused is shown where it is, and all that was typed stays.
    field("name").fill("Other")
    field("allowedOrigins").fill("a.example")
    save()
    expect(field("allowedOrigins")).to_be_focused()
    assert field("name").input_value() == "Other" and field("allowedOrigins").input_value() == "a.example"
    field("allowedOrigins").fill("")
    field("namespaces.1.ttl_s").fill("1")
    save()
    expect(field("namespaces.1.ttl_s")).to_be_focused()
    assert "below 120" in page.locator("[id='f-namespaces.1.ttl_s-error']").inner_text()
    field("namespaces.1.ttl_s").fill("600")
    field("namespaces.0.pattern").fill("")
    save()
    expect(page.locator(".flash")).to_contain_text("settings are saved")
    got = settings()
    assert [n["pattern"] for n in got["namespaces"]] == ["old:*"] and "allowedOrigins" not in got
    # The same as JSON.
    page.get_by_role("heading", name="Advanced").click()
    page.fill("[name=settings]", '{"hello": false')
    page.click("form[action$='/apps/dev/settings'] button")
    expect(page.locator("[name=settings]")).to_be_focused()
    assert page.input_value("[name=settings]") == '{"hello": false'
    page.fill("[name=settings]", '{"hello": false}')
    page.click("form[action$='/apps/dev/settings'] button")
    expect(page.locator(".flash")).to_contain_text("settings are saved")
    assert settings() == {"hello": False}
    # Whoever does not run the server neither gives a plan nor loses one.
    ann.call("PATCH", "/apps/dev", {"settings": {"plan": "small"}})
    member(ann, ann.call("GET", "/teams")["teams"][0]["id"], "dora@example.com", "developer", "Dora")
    other = open_page()
    sign_in(other, server, "dora@example.com", "/apps/dev")
    other.wait_for_url("**/apps/dev")
    assert other.locator("[name=plan]").count() == 0 and "Plan: small" in other.locator("main").inner_text()
    other.fill("[name='limits.connectionsMax']", "7")
    other.click(".save button")
    expect(other.locator(".flash")).to_contain_text("settings are saved")
    assert settings() == {"hello": False, "plan": "small", "limits": {"connectionsMax": 7}}


def test_a_sign_in_leads_back_and_a_sign_out_ends_it(new_server, open_page):
    server = new_server(shards=1)
    operator(server)
    page = open_page()
    page.goto(url(server, "/apps/dev/usage"))
    assert "/dashboard/login?next=" in page.url
    page.fill("input[name=email]", "ann@example.com")
    page.fill("input[name=password]", "not the password")
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_contain_text("ddress or password is wrong")
    assert page.input_value("input[name=email]") == "ann@example.com"
    page.fill("input[name=password]", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/apps/dev/usage")
    # A form of a page that was made for another session is not taken.
    page.evaluate("document.querySelectorAll('input[name=csrf]').forEach(field => field.value = 'other')")
    page.evaluate("document.querySelector('form[action$=\"/logout\"]').submit()")
    page.wait_for_url("**/logout")
    assert "load the page again" in page.locator("main").inner_text()
    page.goto(url(server))
    page.evaluate("document.querySelector('form[action$=\"/logout\"]').submit()")
    page.wait_for_url("**/login")
    page.goto(url(server))
    page.wait_for_url("**/login**")


@pytest.fixture(scope="module")
def busy(tmp_path_factory):
    """A server with people, apps, channels and some traffic; where the pictures are taken."""
    from harness.server import Server

    server = Server(tmp_path_factory.mktemp("busy"), shards=2).start()
    ann = operator(server, name="Ann Lovelace")
    team = ann.call("GET", "/teams")["teams"][0]["id"]
    for email, role, name in [
        ("grace@example.com", "admin", "Grace Hopper"), ("linus@example.com", "developer", "Linus T."),
        ("vera@example.com", "viewer", "Vera Rubin"), ("max@example.com", "billing", "Max Planck"),
    ]:
        member(ann, team, email, role, name)
    ann.call("PATCH", f"/teams/{team}", {"name": "Engines Ltd"})
    ann.call("POST", f"/teams/{team}/invitations", {"email": "ada@example.com", "role": "developer"})
    ann.call("POST", f"/teams/{team}/apps", {"id": "shop", "name": "The shop"})
    ann.call("PUT", "/plans/small", {"connectionsMax": 100, "channelsMax": 50, "messagesPerDay": 1000})
    ann.call("PATCH", "/apps/dev", {"name": "Development", "settings": {"plan": "small"}})
    for name, kind in (("web", "client"), ("mobile", "client"), ("billing", "server")):
        ann.call("POST", "/apps/dev/keys", {"kind": kind, "name": name})
    clients = [Client(server) for _ in range(6)]
    for n, client in enumerate(clients):
        client.subscribe("orders")
        client.subscribe(f"room:{n % 3}")
    for n in range(40):
        clients[n % 6].publish(f"room:{n % 3}", {"text": f"message {n}", "from": f"client {n % 6}"})
        if n % 4 == 0:
            clients[0].publish("orders", {"order": 1000 + n, "total": 12.5})
    yield server, team, clients
    for client in clients:
        client.drop()
    server.kill()


def pages(team):
    return {
        "overview": "/", "apps": "/apps", "settings": "/apps/dev", "keys": "/apps/dev/keys", "channels": "/apps/dev/channels",
        "channel": "/apps/dev/channels/orders", "console": "/apps/dev/console?channel=orders", "usage": "/apps/dev/usage?step=minute",
        "teams": "/teams", "team": f"/teams/{team}", "team-audit": f"/teams/{team}/audit", "audit": "/audit", "accounts": "/accounts",
        "connections": "/connections", "account": "/account", "sessions": "/account/sessions", "security": "/account/security",
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_and_fits_a_phone(busy, open_page, scheme):
    server, team, clients = busy
    page = open_page(color_scheme=scheme, viewport={"width": 1280, "height": 860})
    page.goto(url(server, "/login"))
    check_accessibility(page, "login")
    take_picture(page, f"login-{scheme}")
    sign_in(page, server)
    for name, path in pages(team).items():
        answer = page.goto(url(server, path))
        assert answer.status == 200 and "/login" not in page.url, f"{name}: {answer.status} {page.url}"
        assert page.locator("h1").count() == 1, name
        if name == "overview":
            for n in range(3):
                clients[0].publish("orders", {"n": n})
            page.wait_for_timeout(5000 if PICTURES else 0)  # charts of a few seconds, for the picture
        check_accessibility(page, f"{name}, {scheme}")
        take_picture(page, f"{name}-{scheme}")
        page.set_viewport_size({"width": 360, "height": 740})
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{name} is {wide} px wider than a phone"
        take_picture(page, f"{name}-{scheme}-phone")
        page.set_viewport_size({"width": 1280, "height": 860})


def test_the_keyboard_is_enough(busy, open_page):
    server, _, _ = busy
    page = open_page()
    sign_in(page, server)
    page.keyboard.press("Tab")
    assert "content" in page.evaluate("document.activeElement.textContent").lower(), "first comes a link past the navigation"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") != ""
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.tagName + ' ' + (document.activeElement.getAttribute('href') ?? '')"))
    assert len(seen) > 5


def test_pages_tell_browsers_what_they_may_do(busy):
    server, _, _ = busy
    answer = Person(server).request("GET", "/dashboard/login")
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self';" in policy and "unsafe" not in policy
    assert "ws://%s:%d" % ("127.0.0.1", server.address[1]) in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=", answer.body)
    name = re.search(r'/dashboard/assets/[0-9a-f]+/style\.css', answer.body).group(0)
    asset = Person(server).request("GET", name)
    assert asset.status == 200 and "immutable" in asset.headers["cache-control"]
    assert Person(server).request("GET", "/dashboard/assets/other/style.css").headers["cache-control"] == "no-cache"
    assert Person(server).request("GET", "/dashboard/assets/x/none.js").status == 404
    assert Person(server).request("GET", "/").headers["location"] == "/dashboard"


def test_the_operator_resets_an_account_from_the_page(busy, open_page):
    server, _, _ = busy
    ctl(server, "accounts", "create", "kim@example.com", "--password-file", "-", stdin=PASSWORD)
    page = open_page()
    sign_in(page, server, path="/accounts")
    page.wait_for_url("**/accounts")
    kim = admin(server, "GET", "/accounts/kim@example.com")["id"]
    form = page.locator(f"form[action$='/accounts/{kim}/reset']")
    if not form.locator("button[type=submit]").is_visible():
        open_dialog(page, page.locator("[popover]", has=form).get_attribute("id"))
    form.locator("button[type=submit]").click()
    expect(page.locator("main")).to_contain_text("/dashboard/reset?token=")
