//! The OpenAPI 3.1 document of the admin API, kept by hand. The tests hold it against the tables of paths.

/// The document, as it is served.
pub(super) const DOCUMENT: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::http::admin::routes::RESOURCES;
    use crate::http::api::Routes;

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    fn operations(document: &Value) -> impl Iterator<Item = (&String, &String, &Value)> {
        let paths = document["paths"].as_object().unwrap();
        paths.iter().flat_map(|(path, item)| {
            let item = item.as_object().unwrap();
            item.iter().map(move |(method, call)| (path, method, call))
        })
    }

    #[test]
    fn it_describes_every_call_and_no_other() {
        let document = document();
        let described: BTreeSet<(String, String)> = operations(&document)
            .map(|(path, method, _)| (path.clone(), method.to_uppercase()))
            .collect();
        let own = RESOURCES.iter().flat_map(|resource| {
            let methods = resource.calls.iter().map(|(method, _)| *method);
            methods.map(|method| (resource.path.to_owned(), method.to_owned()))
        });
        let shared = Routes::for_app().map(|(path, method)| (path, method.to_owned()));
        let served: BTreeSet<(String, String)> = own.chain(shared).collect();
        assert_eq!(described, served);
    }

    #[test]
    fn every_call_says_what_may_be_wrong() {
        let document = document();
        let mut names = BTreeSet::new();
        for (path, method, call) in operations(&document) {
            let answers = call["responses"].as_object().unwrap();
            for status in ["400", "401", "405", "429", "503"] {
                assert!(answers.contains_key(status), "{method} {path}: {status}");
            }
            // What is put where nothing was is made, but for an app.
            assert_eq!(
                answers.contains_key("404"),
                path.contains("{app}") || (path.contains('{') && method != "put"),
                "{method} {path}"
            );
            assert!(
                names.insert(call["operationId"].as_str().unwrap()),
                "{method} {path}"
            );
        }
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn check(document: &Value, value: &Value) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(to)) = fields.get("$ref") {
                        let pointer = to.strip_prefix('#').unwrap();
                        assert!(document.pointer(pointer).is_some(), "{to}");
                    }
                    fields.values().for_each(|value| check(document, value));
                }
                Value::Array(items) => items.iter().for_each(|item| check(document, item)),
                _ => {}
            }
        }
        let document = document();
        check(&document, &document);
    }
}
