"""JWT on socket and HTTP (contract D3, D6, D27), made by other libraries; what is refused, each by its reason; revocation."""

import base64
import hashlib
import hmac
import http.server
import json
import subprocess
import threading
import time
import uuid

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from harness.admin import admin
from harness.client import Client
from harness.rawws import Refused
from harness.rest import call, expect_refusal
from harness.server import CLIENT_KEY, SERVER_KEY, Server
from harness.wait import wait_until

SECRET = "a secret for the tests, above 32 bytes long"
KID = "dev-signing"
NOTICED_S = 1.5


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Server(tmp_path_factory.mktemp("tokens"), env={"SHARDWIRE_DEV_JWT_SECRET": SECRET},
                 config="[limits]\nfailed_auth_per_address_rate = false\ntoken_expiry_grace_ms = 1000\n[auth]\nleeway_s = 5\n")
    yield one.start()
    one.kill()


@pytest.fixture(scope="module")
def pairs(server):
    """`{algorithm: (kid, private key)}`, known to the server by their public keys."""
    made = {"RS256": rsa.generate_private_key(65537, 2048), "ES256": ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate()}
    for algorithm, key in made.items():
        body = {"kid": f"k-{algorithm}", "algorithm": algorithm, "material": {"pem": public_pem(key)}}
        admin(server, "POST", "/apps/dev/signing-keys", body)
    return {algorithm: (f"k-{algorithm}", key) for algorithm, key in made.items()}


def public_pem(key):
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def private_pem(key):
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


def token(secret=SECRET, algorithm="HS256", kid=KID, **claims):
    now = int(time.time())
    claims = {"sub": "ann", "iat": now, "exp": now + 600, **claims}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, secret, algorithm, headers={"kid": kid} if kid else None)


def connect(server, text, **how):
    return Client(server, target=f"/?token={text}", **how)


def refused(server, target):
    with pytest.raises(Refused) as refusal:
        Client(server, target=target)
    return refusal.value.answer


def b64(data):
    return base64.urlsafe_b64encode(data if isinstance(data, bytes) else json.dumps(data).encode()).rstrip(b"=").decode()


# -- accepted -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256", "EdDSA"])
def test_tokens_of_others_are_accepted(server, pairs, algorithm):
    """PyJWT's."""
    kid, key = pairs.get(algorithm, (KID, SECRET))
    with connect(server, token(key, algorithm, kid)) as client:
        assert client.client_id == "ann"
        client.subscribe("t:a")
        client.publish("t:a", 1)


def test_a_token_made_with_openssl_is_accepted(server, pairs, tmp_path):
    kid, key = pairs["RS256"]
    (tmp_path / "key.pem").write_bytes(private_pem(key))
    signed = f"{b64({'alg': 'RS256', 'kid': kid})}.{b64({'sub': 'ossl', 'exp': int(time.time()) + 60})}"
    signature = subprocess.run(["openssl", "dgst", "-sha256", "-sign", str(tmp_path / "key.pem")],
                               input=signed.encode(), capture_output=True, check=True).stdout
    with connect(server, f"{signed}.{b64(signature)}") as client:
        assert client.client_id == "ossl"


def test_a_token_made_with_nodes_crypto_is_accepted(server, pairs):
    kid, key = pairs["ES256"]
    script = """
        const crypto = require('crypto'); const [pem, kid] = process.argv.slice(1);
        const part = (o) => Buffer.from(JSON.stringify(o)).toString('base64url');
        const signed = part({alg: 'ES256', kid}) + '.' + part({sub: 'node', exp: Date.now() / 1000 + 60});
        const signature = crypto.sign('sha256', signed, {key: pem, dsaEncoding: 'ieee-p1363'});
        console.log(signed + '.' + signature.toString('base64url'));"""
    made = subprocess.run(["node", "-e", script, "--", private_pem(key).decode(), kid], capture_output=True, check=True, text=True)
    with connect(server, made.stdout.strip()) as client:
        assert client.client_id == "node"


def test_a_minted_token_is_accepted(server):
    minted = admin(server, "POST", "/apps/dev/tokens", {"clientId": "bob", "capabilities": {"t:*": ["subscribe"]}, "ttlS": 60})
    with connect(server, minted["token"]) as client:
        assert client.client_id == "bob"
        client.subscribe("t:x")
        client.send_json({"action": "publish", "channel": "t:x", "data": 1, "id": "i"})
        client.expect_error(40300, id="i")
    assert jwt.decode(minted["token"], SECRET, ["HS256"])["jti"] == minted["jti"]


def test_the_ways_to_present_a_token(server):
    text = token()
    with Client(server, target="/", headers=[("Authorization", f"Bearer {text}")]) as client:
        assert client.client_id == "ann"
    with Client(server, target=f"/?key={CLIENT_KEY}&token={text}") as client:
        assert client.client_id == "ann"


def test_without_sub_a_client_is_anonymous(server):
    with connect(server, token(sub=None)) as client:
        assert client.client_id.startswith("anon-")


# -- refused ------------------------------------------------------------------------------------------------------------


def test_forged_tokens_are_refused(server, pairs):
    kid, key = pairs["RS256"]
    pem, now = public_pem(key), int(time.time())
    claims = {"sub": "eve", "exp": now + 60}

    def by_hand(header, secret=None):
        signed = f"{b64(header)}.{b64(claims)}"
        signature = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest() if secret else b""
        return f"{signed}.{b64(signature)}"

    good = token()
    forged = {
        "the public key as secret": by_hand({"alg": "HS256", "kid": kid}, pem),
        "none": by_hand({"alg": "none", "kid": KID}),
        "none, spelt otherwise": by_hand({"alg": "nOnE", "kid": KID}),
        "no alg": by_hand({"kid": KID}, SECRET),
        "another alg of the same kind": jwt.encode(claims, SECRET, "HS512", headers={"kid": KID}),
        "another key's kid": token(kid=kid),
        "a kid that is not there": token(kid="other"),
        "a kid that is a path": token(kid="../../etc/passwd"),
        "no kid": token(kid=None),
        "another secret": token("another secret that has 32 bytes and more"),
        "no signature": good.rsplit(".", 1)[0] + ".",
        "claims of another": ".".join([good.split(".")[0], b64({**claims, "sub": "root"}), good.split(".")[2]]),
        "two parts": good.rsplit(".", 1)[0],
        "four parts": good + ".x",
        "no JSON": f"{b64(b'[')}.{b64(b'{')}.x",
    }
    for what, text in forged.items():
        answer = refused(server, f"/?token={text}")
        assert answer.status == 401, what
        assert expect_refusal(answer, 401, 40102)["error"], what
        expect_refusal(call(server, "GET", "/api/channels/c/messages", key=text), 401, 40102)


NOW = int(time.time())


@pytest.mark.parametrize("claims, code", [
    ({"exp": None}, 40102),
    ({"exp": "soon"}, 40102),
    ({"exp": -1}, 40102),
    ({"exp": 1e300}, 40102),
    ({"exp": NOW - 3600, "iat": NOW - 7200}, 40142),
    ({"nbf": NOW + 3600}, 40102),
    ({"iat": NOW + 3600, "exp": NOW + 7200}, 40102),
    ({"exp": NOW + 2 * 86400}, 40102),
    ({"exp": NOW + 2 * 86400, "iat": None}, 40102),
    ({"cap": "no JSON"}, 40102),
    ({"cap": {"a*": ["publish"]}}, 40102),
    ({"cap": {"a": ["fly"]}}, 40102),
    ({"cap": {f"c{n}": [] for n in range(257)}}, 40102),
    ({"info": "text"}, 40102),
    ({"jti": "j" * 129}, 40102),
], ids=str)
def test_claims_that_are_refused(server, claims, code):
    expect_refusal(refused(server, f"/?token={token(**claims)}"), 401, code)


@pytest.mark.parametrize("sub", ["", "x" * 129, "a\nb"])
def test_client_ids_that_are_none(server, sub):
    expect_refusal(refused(server, f"/?token={token(sub=sub)}"), 401, 40102)


def test_an_oversized_token_is_refused(server):
    answer = refused(server, f"/?token={token(info={'x': 'y' * 9000})}")
    assert answer.status in (401, 431), answer
    server_says = call(server, "GET", "/api/channels/c/messages", key=token(pad="z" * 6000))
    assert server_says.status in (200, 400, 401, 431)


def test_key_and_token_of_different_apps(server):
    app = admin(server, "POST", "/apps", {})["id"]
    key = admin(server, "POST", f"/apps/{app}/keys", {"kind": "client"})["key"]
    expect_refusal(refused(server, f"/?key={key}&token={token()}"), 401, 40102)
    expect_refusal(refused(server, f"/?key=ck_unknown_0123456789&token={token()}"), 401, 40101)
    path = f"/api/admin/apps/{app}/channels/c/messages"
    expect_refusal(call(server, "GET", path, key=token()), 403, 40300)


def test_no_token_is_in_the_log(server):
    text = token()
    connect(server, text).close()
    refused(server, f"/?token={text}x")
    assert text not in server.log() and SECRET not in server.log()


# -- rights -------------------------------------------------------------------------------------------------------------

OPERATIONS = {
    "subscribe": [{"action": "subscribe"}],
    "publish": [{"action": "publish", "data": 1, "id": "p"}],
    "history": [{"action": "history"}],
}


@pytest.mark.parametrize("granted", [*OPERATIONS, "presence"])
def test_each_operation_needs_its_right(server, granted):
    with connect(server, token(cap={"t:*": [granted]})) as client:
        for operation, frames in OPERATIONS.items():
            for channel, allowed in (("t:c", operation == granted), ("u:c", False)):
                for frame in frames:
                    client.send_json({**frame, "channel": channel})
                    answer = client.recv_json()
                    assert (answer.get("code") == 40300) != allowed, (granted, operation, channel, answer)
                    while answer.get("action") == "ack" and operation == granted == "subscribe":
                        answer = client.recv_json()


def test_a_rewind_needs_history_too(server):
    with connect(server, token(cap={"t:*": ["subscribe"]})) as client:
        client.send_json({"action": "subscribe", "channel": "t:r", "rewind": 5})
        client.expect_error(40300, channel="t:r")


def test_rights_are_those_of_token_and_signing_key(server):
    kid = admin(server, "POST", "/apps/dev/signing-keys", {
        "algorithm": "HS256", "material": {"secret": SECRET}, "capabilities": {"a:*": ["*"]}})["kid"]
    with connect(server, token(kid=kid, cap=json.dumps({"*": ["subscribe"]}))) as client:
        client.subscribe("a:x")
        for frame in ({"action": "subscribe", "channel": "b:x"}, {"action": "publish", "channel": "a:x", "data": 1, "id": "1"}):
            client.send_json(frame)
            client.expect_error(40300, channel=frame["channel"])


def test_tokens_call_the_http_api_with_their_rights_and_in_their_name(server):
    channel = f"t:{uuid.uuid4().hex}"
    path = f"/api/channels/{channel}/messages"
    text = token(cap={"t:*": ["publish", "history"]})
    assert call(server, "POST", path, {"data": 1}, key=text).status == 200
    expect_refusal(call(server, "POST", path, {"data": 2, "clientId": "root"}, key=text), 403, 40300)
    messages = call(server, "GET", path, key=text).json()["messages"]
    assert [m["publisherId"] for m in messages] == ["ann"]
    for method, target in (("POST", "/api/channels/u:x/messages"), ("GET", "/api/channels/u:x/messages"),
                           ("DELETE", path), ("GET", "/api/channels"), ("POST", "/api/clients/ann/disconnect")):
        body = {"data": 1} if method == "POST" else None
        expect_refusal(call(server, method, target, body, key=text), 403, 40300)
    expect_refusal(call(server, "POST", path, {"data": 1}, key=CLIENT_KEY), 403, 40300)


# -- while connected ----------------------------------------------------------------------------------------------------


def test_an_expired_token_ends_its_connection(server):
    now = int(time.time())
    client = connect(server, token(iat=now, exp=now + 1))
    stays = connect(server, token())
    client.expect_error(40142, timeout=6)
    client.expect_close(4009)
    assert time.time() >= now + 2, "before the grace was over"
    stays.nothing_waiting()


def test_on_expiry_keep(new_server):
    server = new_server(shards=1, env={"SHARDWIRE_DEV_JWT_SECRET": SECRET},
                        config="[limits]\ntoken_expiry_grace_ms = 0\n[auth]\non_expiry = 'keep'\nleeway_s = 0\n")
    text = token(exp=int(time.time()) + 2)
    with connect(server, text) as client:
        wait_until(lambda: time.time() > jwt.decode(text, options={"verify_signature": False})["exp"] + 1.5, what="its end")
        client.nothing_waiting()
    expect_refusal(refused(server, f"/?token={text}"), 401, 40142)


def test_claim_names_can_be_others(new_server):
    server = new_server(shards=1, env={"SHARDWIRE_DEV_JWT_SECRET": SECRET}, config="[auth.claims]\nsub = 'uid'\ncap = 'rights'\n")
    with connect(server, token(uid="zoe", rights={"t:*": ["subscribe"]})) as client:
        assert client.client_id == "zoe"
        client.send_json({"action": "publish", "channel": "t:x", "data": 1, "id": "1"})
        client.expect_error(40300, id="1")


@pytest.mark.parametrize("subject", ["clientId", "jti", "kid"])
def test_a_revocation_ends_connections_and_refuses_new_ones(server, subject):
    name = f"r-{uuid.uuid4().hex[:12]}"
    kid = admin(server, "POST", "/apps/dev/signing-keys", {"kid": name, "algorithm": "HS256", "material": {"secret": SECRET}})["kid"]
    text = token(kid=kid, sub=name, jti=name)
    clients = [connect(server, text) for _ in range(4)]
    stays = connect(server, token())
    made = admin(server, "POST", "/apps/dev/revocations", {subject: name, "ttlS": 60})
    for client in clients:
        client.expect_close(4010, timeout=NOTICED_S)
    expect_refusal(refused(server, f"/?token={text}"), 401, 40102)
    expect_refusal(call(server, "GET", "/api/channels/c/messages", key=text), 401, 40102)
    stays.nothing_waiting()
    admin(server, "DELETE", f"/apps/dev/revocations/{made['id']}")
    connect(server, text).close()


def test_a_revocation_of_channels_takes_them_while_it_lasts(server):
    text = token(sub="carl")
    with connect(server, text) as client, connect(server, token()) as other:
        client.subscribe("room:1", "lobby")
        other.subscribe("room:1")
        admin(server, "POST", "/apps/dev/revocations", {"clientId": "carl", "channel": "room:*", "ttlS": 3})
        client.expect(action="unsubscribed", channel="room:1", timeout=NOTICED_S)
        client.expect_error(40300, channel="room:1")
        client.send_json({"action": "subscribe", "channel": "room:1"})
        client.expect_error(40300, channel="room:1")
        with connect(server, text) as later:
            later.send_json({"action": "publish", "channel": "room:2", "data": 1, "id": "1"})
            later.expect_error(40300, id="1")
        client.publish("lobby", 1)
        other.nothing_waiting()

        def subscribed():
            client.send_json({"action": "subscribe", "channel": "room:1"})
            return client.expect(channel="room:1")["action"] == "subscribed"

        wait_until(subscribed, timeout=6, interval=0.1, what="the right to be back")


def test_tokens_issued_after_a_revocation_are_not_concerned(server):
    now = int(time.time())
    body = {"clientId": "dora", "issuedBeforeMs": (now - 10) * 1000, "ttlS": 60}
    admin(server, "POST", "/apps/dev/revocations", body)
    expect_refusal(refused(server, f"/?token={token(sub='dora', iat=now - 20)}"), 401, 40102)
    connect(server, token(sub="dora", iat=now - 5)).close()


def test_a_disabled_signing_key_ends_its_connections(server):
    kid = admin(server, "POST", "/apps/dev/signing-keys", {"algorithm": "HS256", "material": {"secret": SECRET}})["kid"]
    client = connect(server, token(kid=kid))
    listed = admin(server, "PATCH", f"/apps/dev/signing-keys/{kid}", {"disabled": True})
    assert SECRET not in json.dumps(listed)
    client.expect_close(4003, timeout=NOTICED_S)
    expect_refusal(refused(server, f"/?token={token(kid=kid)}"), 403, 40301)


def test_wrong_material_is_refused(server, pairs):
    pem = public_pem(pairs["RS256"][1])
    for algorithm, material in (("HS256", {"pem": pem}), ("HS256", {"secret": "short"}), ("ES256", {"pem": pem}),
                                ("RS256", {"secret": SECRET}), ("RS256", None)):
        body = {"algorithm": algorithm, "material": material}
        assert admin(server, "POST", "/apps/dev/signing-keys", body, status=400)["code"] == 40003


# -- key sets -----------------------------------------------------------------------------------------------------------


def key_set(*keys):
    made = []
    for kid, key in keys:
        jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
        made.append({**jwk, "kid": kid, "alg": "RS256", "use": "sig"})
    made.append({"kty": "oct", "kid": "symmetric", "k": b64(SECRET.encode())})
    return json.dumps({"keys": made})


def accepts(server, text):
    try:
        connect(server, text).close()
        return True
    except Refused:
        return False


def test_a_key_set_in_a_file(server, tmp_path):
    key = rsa.generate_private_key(65537, 2048)
    file = tmp_path / "jwks.json"
    file.write_text(key_set(("idp-1", key)))
    app = admin(server, "POST", "/apps", {"settings": {"jwksFile": str(file)}})["id"]
    text = token(key, "RS256", "idp-1")
    wait_until(lambda: accepts(server, text), what="the key set to be read")
    assert not accepts(server, token(SECRET, "HS256", "symmetric"))
    admin(server, "DELETE", f"/apps/{app}")
    wait_until(lambda: not accepts(server, text), what="the app to be gone")


def test_a_key_set_by_url_outlives_its_issuer(new_server):
    key = rsa.generate_private_key(65537, 2048)
    asked = []

    class Issuer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if len(asked) == 1:
                self.send_error(503)
                return
            body = key_set(("idp-2", key)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    issuer = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Issuer)
    threading.Thread(target=issuer.serve_forever, daemon=True).start()
    server = new_server(shards=2, config="[auth]\njwks_allow_http = true\n")
    url = "http://127.0.0.1:%d/keys" % issuer.server_address[1]
    app = admin(server, "POST", "/apps", {"settings": {"jwksUrl": url}})["id"]
    text = token(key, "RS256", "idp-2")
    wait_until(lambda: accepts(server, text), what="the key set to be fetched after a failure")
    issuer.shutdown()
    issuer.server_close()
    admin(server, "PATCH", f"/apps/{app}", {"name": "renamed"})
    assert accepts(server, text)
    # It cannot take over a key that an operator has given.
    assert not accepts(server, token(key, "RS256", KID))


def test_a_token_publishes_over_http_at_the_rate_of_one_connection(server):
    text = token(sub=f"fast-{uuid.uuid4().hex}")
    batch = [{"data": n} for n in range(100)]
    path = "/api/channels/t:fast/messages"
    codes = [item.get("code") for _ in range(4) for item in call(server, "POST", path, batch, key=text).json()["messages"]]
    assert codes[:100] == [None] * 100 and 42900 in codes, "two shards admit two bursts of 100 at most"
    assert codes.count(None) <= 300
    items = call(server, "POST", path, batch, key=SERVER_KEY).json()["messages"]
    assert not any("code" in item for item in items)
