"""A real mail server for one test: aiosmtpd in a thread, with TLS and sign-in as asked for.

Not a client. Its port is the kernel's; it can go away and come back on it.
"""

import email
import email.policy
import ssl

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult

from .wait import wait_until


class Postman:
    """`with Postman() as postman:` takes letters; `Postman(tls=(cert, key))` speaks TLS, from the first byte with `wrapped`."""

    def __init__(self, tls=None, wrapped=False, login=None, refuse=None):
        self.letters, self.sign_ins, self.refuse, self.port = [], [], refuse, 0
        context = None
        if tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*map(str, tls))
        self.wrapped = context if wrapped else None
        self.options = {"data_size_limit": 2**20}
        if context and not wrapped:
            self.options |= {"tls_context": context, "require_starttls": True}
        if login:
            self.options |= {"authenticator": self.check, "auth_required": True, "auth_require_tls": not wrapped}
        self.login = login

    def check(self, server, session, envelope, mechanism, data):
        given = (data.login.decode(), data.password.decode())
        self.sign_ins.append(given)
        return AuthResult(success=given == self.login, handled=False)

    async def handle_RCPT(self, server, session, envelope, address, options):
        if self.refuse:
            return self.refuse.pop(0) if isinstance(self.refuse, list) else self.refuse
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        letter = email.message_from_bytes(envelope.content, policy=email.policy.default)
        letter.raw, letter.was_tls = envelope.content, session.ssl is not None
        letter.sender, letter.to = envelope.mail_from, envelope.rcpt_tos
        self.letters.append(letter)
        return "250 taken"

    def start(self):
        postman = self

        class AnyPort(Controller):
            def factory(self):
                return SMTP(postman, **postman.options)

            def _trigger_server(self):
                self.port = postman.port = self.server.sockets[0].getsockname()[1]
                super()._trigger_server()

        self.controller = AnyPort(self, hostname="127.0.0.1", port=self.port, ssl_context=self.wrapped)
        self.controller.start()
        return self

    def stop(self):
        self.controller.stop()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def wait_for(self, to, subject, seconds=20):
        """The letter to somebody with these words in its subject."""

        def found():
            return next((one for one in self.letters if to in one.to and subject in one["subject"]), None)

        return wait_until(found, seconds, f"a letter to {to}: {subject}")
