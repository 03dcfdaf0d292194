//! The admin API's paths and methods, in one table; `openapi.json` describes each of them.
//!
//! Not here: what the public API serves for one app, which `http::api` serves here too, under the same names
//! ([`api::Routes::for_app`]).

use std::borrow::Cow;

use hyper::Method;
use shardwire_proto::error::ErrorCode;
use shardwire_proto::url::percent_decode;

use crate::http::{Refusal, effective_method};

/// What a call asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Document,
    Nodes,
    Config,
    DrainState,
    Drain,
    Connections,
    Connection,
    EndConnection,
    Apps,
    CreateApp,
    App,
    UpdateApp,
    DeleteApp,
    Keys,
    CreateKey,
    Key,
    UpdateKey,
    DeleteKey,
    RotateKey,
    SigningKeys,
    CreateSigningKey,
    SigningKey,
    UpdateSigningKey,
    DeleteSigningKey,
    Revocations,
    Revoke,
    DeleteRevocation,
    MintToken,
    Plans,
    Plan,
    PutPlan,
    DeletePlan,
    Usage,
    Accounts,
    CreateAccount,
    Account,
    UpdateAccount,
    DeleteAccount,
    ResetAccount,
    Audit,
    Webhooks,
    CreateWebhook,
    Webhook,
    UpdateWebhook,
    DeleteWebhook,
    RotateWebhook,
    TestWebhook,
    WebhookEvents,
    WebhookDeliveries,
    DeadLetters,
    PurgeDeadLetters,
    ReplayDeadLetters,
    DeadLetter,
    PurgeDeadLetter,
    ReplayDeadLetter,
    PushProviders,
    PutPushProvider,
    DeletePushProvider,
}

/// What a path stands for: a call per method. A `HEAD` is among them wherever a `GET` is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resource {
    pub(super) path: &'static str,
    pub(super) calls: &'static [(&'static str, Endpoint)],
    /// For the `Allow` header.
    methods: &'static str,
}

const fn resource(
    path: &'static str,
    methods: &'static str,
    calls: &'static [(&'static str, Endpoint)],
) -> Resource {
    Resource {
        path,
        calls,
        methods,
    }
}

/// Every path. `{id}` is what a path is about, `{item}` one of what that has.
pub(super) const RESOURCES: [Resource; 34] = [
    resource(
        "/admin/openapi.json",
        "GET, HEAD",
        &[("GET", Endpoint::Document)],
    ),
    resource("/admin/nodes", "GET, HEAD", &[("GET", Endpoint::Nodes)]),
    resource("/admin/config", "GET, HEAD", &[("GET", Endpoint::Config)]),
    resource(
        "/admin/drain",
        "GET, HEAD, POST",
        &[("GET", Endpoint::DrainState), ("POST", Endpoint::Drain)],
    ),
    resource(
        "/admin/connections",
        "GET, HEAD",
        &[("GET", Endpoint::Connections)],
    ),
    resource(
        "/admin/connections/{id}",
        "GET, HEAD, DELETE",
        &[
            ("GET", Endpoint::Connection),
            ("DELETE", Endpoint::EndConnection),
        ],
    ),
    resource(
        "/admin/apps",
        "GET, HEAD, POST",
        &[("GET", Endpoint::Apps), ("POST", Endpoint::CreateApp)],
    ),
    resource(
        "/admin/apps/{app}",
        "GET, HEAD, PATCH, DELETE",
        &[
            ("GET", Endpoint::App),
            ("PATCH", Endpoint::UpdateApp),
            ("DELETE", Endpoint::DeleteApp),
        ],
    ),
    resource(
        "/admin/apps/{app}/keys",
        "GET, HEAD, POST",
        &[("GET", Endpoint::Keys), ("POST", Endpoint::CreateKey)],
    ),
    resource(
        "/admin/apps/{app}/keys/{id}",
        "GET, HEAD, PATCH, DELETE",
        &[
            ("GET", Endpoint::Key),
            ("PATCH", Endpoint::UpdateKey),
            ("DELETE", Endpoint::DeleteKey),
        ],
    ),
    resource(
        "/admin/apps/{app}/keys/{id}/rotate",
        "POST",
        &[("POST", Endpoint::RotateKey)],
    ),
    resource(
        "/admin/apps/{app}/signing-keys",
        "GET, HEAD, POST",
        &[
            ("GET", Endpoint::SigningKeys),
            ("POST", Endpoint::CreateSigningKey),
        ],
    ),
    resource(
        "/admin/apps/{app}/signing-keys/{id}",
        "GET, HEAD, PATCH, DELETE",
        &[
            ("GET", Endpoint::SigningKey),
            ("PATCH", Endpoint::UpdateSigningKey),
            ("DELETE", Endpoint::DeleteSigningKey),
        ],
    ),
    resource(
        "/admin/apps/{app}/revocations",
        "GET, HEAD, POST",
        &[("GET", Endpoint::Revocations), ("POST", Endpoint::Revoke)],
    ),
    resource(
        "/admin/apps/{app}/revocations/{id}",
        "DELETE",
        &[("DELETE", Endpoint::DeleteRevocation)],
    ),
    resource(
        "/admin/apps/{app}/tokens",
        "POST",
        &[("POST", Endpoint::MintToken)],
    ),
    resource(
        "/admin/apps/{app}/usage",
        "GET, HEAD",
        &[("GET", Endpoint::Usage)],
    ),
    resource(
        "/admin/apps/{app}/webhooks",
        "GET, HEAD, POST",
        &[
            ("GET", Endpoint::Webhooks),
            ("POST", Endpoint::CreateWebhook),
        ],
    ),
    resource(
        "/admin/apps/{app}/webhooks/{id}",
        "GET, HEAD, PATCH, DELETE",
        &[
            ("GET", Endpoint::Webhook),
            ("PATCH", Endpoint::UpdateWebhook),
            ("DELETE", Endpoint::DeleteWebhook),
        ],
    ),
    resource(
        "/admin/apps/{app}/webhooks/{id}/rotate",
        "POST",
        &[("POST", Endpoint::RotateWebhook)],
    ),
    resource(
        "/admin/apps/{app}/webhooks/{id}/test",
        "POST",
        &[("POST", Endpoint::TestWebhook)],
    ),
    resource(
        "/admin/apps/{app}/webhooks/{id}/events",
        "GET, HEAD",
        &[("GET", Endpoint::WebhookEvents)],
    ),
    resource(
        "/admin/apps/{app}/webhooks/{id}/deliveries",
        "GET, HEAD",
        &[("GET", Endpoint::WebhookDeliveries)],
    ),
    resource(
        "/admin/apps/{app}/webhooks/{id}/dead-letters",
        "GET, HEAD, POST, DELETE",
        &[
            ("GET", Endpoint::DeadLetters),
            ("POST", Endpoint::ReplayDeadLetters),
            ("DELETE", Endpoint::PurgeDeadLetters),
        ],
    ),
    resource(
        "/admin/apps/{app}/webhooks/{id}/dead-letters/{item}",
        "GET, HEAD, DELETE",
        &[
            ("GET", Endpoint::DeadLetter),
            ("DELETE", Endpoint::PurgeDeadLetter),
        ],
    ),
    resource(
        "/admin/apps/{app}/webhooks/{id}/dead-letters/{item}/replay",
        "POST",
        &[("POST", Endpoint::ReplayDeadLetter)],
    ),
    resource(
        "/admin/apps/{app}/push/providers",
        "GET, HEAD",
        &[("GET", Endpoint::PushProviders)],
    ),
    resource(
        "/admin/apps/{app}/push/providers/{id}",
        "PUT, DELETE",
        &[
            ("PUT", Endpoint::PutPushProvider),
            ("DELETE", Endpoint::DeletePushProvider),
        ],
    ),
    resource("/admin/plans", "GET, HEAD", &[("GET", Endpoint::Plans)]),
    resource(
        "/admin/plans/{id}",
        "GET, HEAD, PUT, DELETE",
        &[
            ("GET", Endpoint::Plan),
            ("PUT", Endpoint::PutPlan),
            ("DELETE", Endpoint::DeletePlan),
        ],
    ),
    resource(
        "/admin/accounts",
        "GET, HEAD, POST",
        &[
            ("GET", Endpoint::Accounts),
            ("POST", Endpoint::CreateAccount),
        ],
    ),
    resource(
        "/admin/accounts/{id}",
        "GET, HEAD, PATCH, DELETE",
        &[
            ("GET", Endpoint::Account),
            ("PATCH", Endpoint::UpdateAccount),
            ("DELETE", Endpoint::DeleteAccount),
        ],
    ),
    resource(
        "/admin/accounts/{id}/reset",
        "POST",
        &[("POST", Endpoint::ResetAccount)],
    ),
    resource("/admin/audit", "GET, HEAD", &[("GET", Endpoint::Audit)]),
];

/// A call that a request's method and path make. Parameters that the path does not have are empty.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) endpoint: Endpoint,
    pub(super) app: String,
    pub(super) id: String,
    pub(super) item: String,
}

/// Paths to resources.
#[derive(Debug)]
pub(super) struct Routes(matchit::Router<Resource>);

impl Routes {
    pub(super) fn new() -> Self {
        let mut router = matchit::Router::new();
        for resource in RESOURCES {
            let inserted = router.insert(resource.path, resource);
            assert!(inserted.is_ok(), "the paths above do not conflict");
        }
        Self(router)
    }

    /// Finds the call that a request makes; `None` where no path of the table is meant.
    ///
    /// # Errors
    /// 405 for a method that the path does not have; 40000 for a path that cannot be decoded.
    pub(super) fn find(&self, method: &Method, path: &str) -> Result<Option<Call>, Refusal> {
        let Ok(matched) = self.0.at(path) else {
            return Ok(None);
        };
        let Resource { calls, methods, .. } = *matched.value;
        let method = effective_method(method).as_str();
        let found = calls.iter().find(|(own, _)| *own == method);
        let (_, endpoint) = *found.ok_or_else(|| Refusal::method_not_allowed(methods))?;
        let param = |name| -> Result<String, ErrorCode> {
            let encoded = matched.params.get(name).unwrap_or_default();
            percent_decode(encoded).map(Cow::into_owned)
        };
        Ok(Some(Call {
            endpoint,
            app: param("app")?,
            id: param("id")?,
            item: param("item")?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_is_what_there_is() {
        for Resource {
            path,
            calls,
            methods,
        } in RESOURCES
        {
            let mut allowed: Vec<&str> = calls.iter().map(|(method, _)| *method).collect();
            if allowed.contains(&"GET") {
                allowed.insert(1, "HEAD");
            }
            assert_eq!(allowed.join(", "), methods, "{path}");
        }
    }

    #[test]
    fn every_call_is_in_the_permission_table() {
        use shardwire_proto::account::permissions::PERMISSIONS;

        let own = RESOURCES.iter().flat_map(|resource| {
            let methods = resource.calls.iter().map(|(method, _)| *method);
            methods.map(|method| (resource.path.to_owned(), method))
        });
        for (path, method) in own.chain(crate::http::api::Routes::for_app()) {
            let below = path.strip_prefix("/admin").unwrap();
            let mut rows = PERMISSIONS.iter();
            assert!(
                rows.any(|row| row.method == method && row.path == below),
                "{method} {below}"
            );
        }
    }

    #[test]
    fn parameters_are_decoded_and_methods_told_apart() {
        let routes = Routes::new();
        let call = routes.find(&Method::PATCH, "/admin/apps/a%2Fb/keys/k%20");
        let call = call.unwrap().unwrap();
        assert_eq!(call.endpoint, Endpoint::UpdateKey);
        assert_eq!((&*call.app, &*call.id), ("a/b", "k "));
        let head = routes.find(&Method::HEAD, "/admin/apps").unwrap().unwrap();
        assert_eq!(head.endpoint, Endpoint::Apps);
        let refused = routes.find(&Method::PUT, "/admin/apps").unwrap_err();
        assert_eq!(refused.status, 405);
        assert!(routes.find(&Method::GET, "/admin/other").unwrap().is_none());
        assert!(routes.find(&Method::GET, "/admin/apps/%ff").is_err());
    }
}
